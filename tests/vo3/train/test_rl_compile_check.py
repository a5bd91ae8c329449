"""What rl_compile_check says of the 7B; compiling for a real chip takes minutes, so it stands under `soak`."""

import importlib.util
import os
import types

import pytest

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from vo3.train import compile_check as base
from vo3.train import config as c
from vo3.train import rl_compile_check as check
from vo3.train.chips import GIB, topology
from vo3.train.config import ConfigError

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install libtpu"
)


def report(total):
    part = check.Part("update", total / 2, total / 4, total / 4, 1.0)
    chip = topology("v5p:2x2x4").chip
    return check.RLReport(chip, {"fsdp": 16, "data": 1}, 1, 4, 2 * GIB, (part,))


def test_the_report_adds_up_and_says_whether_it_fits():
    text = check.render(report(40 * GIB))
    assert "40.00" in text and text.endswith("\nfits") and "mesh fsdp 16;" in text
    assert "caches: 2.00 GiB" in text
    assert check.render(report(400 * GIB)).endswith("does not fit")


def test_a_contradiction_ends_before_anything_compiles():
    with pytest.raises(ConfigError, match="exclude each other"):
        check.check(
            c.override(c.load("configs/rl.py"), **{"rl.options": ("gspo", "tis")}), "v5p-32"
        )


def test_compile_check_hands_an_rl_config_over(monkeypatch, capsys):
    given = {"config": c.load("configs/rl.py"), "topology": "v5p-32", "num_slices": 1, "length": 0, "patches": 0, "dump": None}  # fmt: skip
    told = []
    monkeypatch.setattr(check, "main", told.append)
    monkeypatch.setattr(base, "flags", types.SimpleNamespace(FLAGS=types.SimpleNamespace(**given)))
    base.main([])
    assert told == [[]]
    given["length"] = 4096
    monkeypatch.setattr(base, "flags", types.SimpleNamespace(FLAGS=types.SimpleNamespace(**given)))
    with pytest.raises(SystemExit):
        base.main([])
    assert told == [[]] and "rl.shapes" in capsys.readouterr().err


@pytest.mark.soak
@needs_libtpu
def test_the_7b_fits_sixteen_v5p_chips():
    found = check.check(c.load("configs/rl.py"), "v5p:2x2x4")
    assert [part.name.split(",")[0] for part in found.parts] == [
        "update",
        "prompt",
        "extend",
        "decode",
    ]
    assert found.fits and found.tensor == 4 and 0 < found.cache < 40 * GIB
