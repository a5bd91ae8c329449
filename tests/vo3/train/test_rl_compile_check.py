"""What rl_compile_check says of the 7B; compiling for a real chip takes minutes, so it stands under `soak`."""

import importlib.util
import os
import types

import pytest

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp

from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig
from vo3.train import ahead_of_time as aot
from vo3.train import compile_check as base
from vo3.train import config as c
from vo3.train import rl_compile_check as check
from vo3.train.chips import GIB, topology
from vo3.train.config import ConfigError
from vo3.train.policy_step import PolicyPrograms
from vo3.train.program_memory import Part

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install libtpu"
)

SMALL = Qwen2_5_VLConfig.tiny(
    vocab=640,
    text={"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "mrope_section": (8, 12, 12)},
    vision={"depth": 1, "fullatt_block_indexes": (0,), "out_hidden_size": 128, "hidden_size": 64, "num_heads": 1},
)  # fmt: skip


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


def residents(monkeypatch, **changes):
    """(bytes beside each program, arguments of the update, the report) of a small model on four chips; nothing is compiled."""
    found, reference = {}, []

    def compiled(name, lowered, *, resident):
        found[name.split(",")[0]] = resident
        if name.startswith("update"):
            reference.append(lowered[4])
        return Part(name, 0.0, 0.0, resident, 0.0)

    class Given(PolicyPrograms):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.add = types.SimpleNamespace(lower=lambda *arguments: arguments)

    monkeypatch.setattr(check, "PolicyPrograms", Given)
    monkeypatch.setattr(check, "compiled", compiled)
    monkeypatch.setitem(aot.PUBLISHED, "small", SMALL)
    small = {
        "model": "small", "loss.chunk": 128, "rl.group": 2, "rl.shapes": ((1024, 64, 512),),
        "rl.rollout.max_length": 512, "rl.rollout.tensor": 2, "rl.rollout.slots": 4,
        "rl.buckets.tokens": (64,), "rl.buckets.patches": (64,), "rl.buckets.prefix": (256,), "rl.buckets.suffix": (512,),
    }  # fmt: skip
    config = c.override(c.load("configs/rl.py"), **{**small, **changes})
    report = check.check(config, "v5p:2x2x1")
    return found, reference[0], report


@needs_libtpu
def test_what_lies_beside_the_programs_by_hand(monkeypatch):
    plain, reference, one = residents(monkeypatch)
    assert not jax.tree.leaves(reference)
    # Two layers, k and v, one kv head a device, head dimension 64, bf16; 4 slots on each set: (256 of the prefix, 2 * 512 of the leaves).
    per_slot = 2 * 2 * 1 * 64 * 2
    prefix, suffix = 4 * 256 * per_slot, 4 * 2 * 512 * per_slot
    assert one.cache == prefix + suffix
    assert plain["update"] == 0
    assert plain["prompt"] - plain["decode"] == suffix and plain["extend"] == plain["decode"]
    # Two lanes of two slots: as much in all, half of it waits. With the reference, in bf16: a quarter on each of four chips.
    changed, reference, two = residents(monkeypatch, **{"rl.rollout.lanes": 2, "rl.kl": 0.01})
    assert two.cache == one.cache
    kept = changed["decode"] - plain["decode"] - (prefix + suffix) / 2
    assert changed["prompt"] - plain["prompt"] - kept == prefix / 2
    assert {x.dtype for x in jax.tree.leaves(reference)} == {jnp.dtype("bfloat16")}
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(reference))
    assert whole / 4 <= kept < whole / 3  # norms and biases lie whole
    assert changed["update"] == 0


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
