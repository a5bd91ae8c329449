"""What evals.compile_check says: by hand where nothing compiles, a tiny model for a real chip, the 7B under `soak`."""

import importlib.util
import os

import pytest

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from vo3.evals import compile_check as check
from vo3.evals import config as config_lib
from vo3.train.chips import GIB, topology
from vo3.train.config import ConfigError, override
from vo3.train.program_memory import Part

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install libtpu"
)
SEVEN = "Qwen2.5-VL-7B-Instruct"


def settings(**changes):
    return override(
        config_lib.defaults(), **{key.replace("__", "."): v for key, v in changes.items()}
    )


def report(total):
    part = Part("decode", total / 2, total / 4, total / 4, 1.0)
    chip = topology("v5litepod-1").chip
    return check.AskReport(chip, 1, 73_728, 16_384, 6144, 1, 9 * GIB, 4 * GIB, (part,))


def test_the_report_adds_up_and_says_whether_it_fits():
    text = check.render(report(12 * GIB), f"models/{SEVEN}", "int8")
    assert f"{SEVEN}, int8 on v5e, 1 chip: compiled for it, nothing ran" in text
    # 73,728 - 16,384 - 1,024 hold nine clips of 6,144.
    assert "56,320 for turns and clips (9 fine ones of 6,144); 1 question at a time" in text
    assert "12.00" in text and text.endswith("\nfits")
    assert check.render(report(16 * GIB), SEVEN, "").endswith("does not fit")


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        ({"checkpoint": "nowhere"}, "v6e-1", "one of Qwen2.5-VL-7B-Instruct"),
        ({"checkpoint": SEVEN}, "v6e-4", "4 chips and the model is on one; set --config.mesh.tensor"),
        ({"checkpoint": SEVEN, "mesh__tensor": 8}, "v6e-4", "8"),
        ({"checkpoint": SEVEN, "quantize": "int4"}, "v6e-1", "quantize='int4'"),
        ({"checkpoint": SEVEN}, "v9e-1", "topology 'v9e-1'"),
    ],
)  # fmt: skip
@needs_libtpu
def test_contradictions_end_before_anything_compiles(changes, where, message, monkeypatch):
    monkeypatch.setattr(check, "compiled", lambda *args, **kwargs: pytest.fail("it compiled"))
    with pytest.raises((ConfigError, ValueError), match=message):
        check.check(settings(**changes), where)


@needs_libtpu
def test_what_stays_on_the_device_is_counted_beside_what_a_program_is_given(monkeypatch):
    """The 7B by arithmetic; only the compiler's part is left out."""
    planned = {}

    def compiled(name, lowered, *, resident):
        planned[name.split()[0]] = resident
        return Part(name, 0.0, 0.0, resident, 0.0)

    monkeypatch.setattr(check, "compiled", compiled)
    got = check.check(settings(checkpoint=SEVEN, quantize="int8"), "v5litepod-1")
    # 28 layers of keys and values, 4 heads of 128, two bytes.
    slot = 2 * 28 * 4 * 128 * 2
    assert got.cache == 32_768 * slot and got.context == 32_768
    # Decoder and output matrix in a byte each and an f32 a channel; embedding, tower, biases and norms in two bytes.
    layers = 3584 * (3584 * 2 + 2 * 512 + 3 * 18_944)
    table = 152_064 * 3584
    assert 28 * layers + 3 * table < got.weights < 28 * layers + 3 * table + 1.5 * GIB
    features = 16_384 * 3584 * 2
    vision = planned["decode"] - got.cache
    assert 1.2 * GIB < vision < 1.5 * GIB
    assert planned["prefill"] == pytest.approx(vision + got.cache + features)
    assert planned["encode"] == pytest.approx(got.weights - vision + 2 * got.cache + features)
    assert planned["resize"] == pytest.approx(got.weights + got.cache)


@pytest.mark.soak
@needs_libtpu
def test_the_7b_in_int8_fits_sixteen_gigabytes(no_compilation_cache):
    found = check.check(settings(checkpoint=SEVEN, quantize="int8"), "v5litepod-1")
    assert [part.name.split()[0] for part in found.parts] == [
        "encode",
        "prefill",
        "decode",
        "resize",
    ]
    assert found.fits
