"""What is tuned per device is read, complete, and changes what the kernels are built with."""

import json

import pytest

import pallas_kernels
from pallas_kernels import tuning
from pallas_kernels.splash import tpu

DEVICES = sorted(set(tuning.DEVICE_KINDS.values()))


@pytest.mark.parametrize("device", DEVICES)
def test_every_known_device_has_its_file_with_reasons(device):
    tuned = tuning.load(device)
    for block in (tuned.block_q, tuned.block_kv, tuned.window_block):
        assert block > 0 and block % 128 == 0
    assert tuned.window_block <= min(tuned.block_q, tuned.block_kv)
    assert json.loads((tuning.FOLDER / f"{device}.json").read_text())["why"]


def test_every_file_is_of_a_known_device():
    assert {p.stem for p in tuning.FOLDER.glob("*.json")} == set(DEVICES)


def test_an_unknown_device_is_refused():
    with (
        pytest.raises(NotImplementedError, match=r"nothing is tuned for device 'v99'.*v5e"),
        pallas_kernels.target("v99"),
    ):
        pass


def test_short_reach_takes_the_window_blocks():
    with pallas_kernels.target("v6e"):
        tuned = tuning.load("v6e")
        window, whole = (tuned.window_block,) * 2, (tuned.block_q, tuned.block_kv)
        assert window != whole
        assert tpu.block_sizes(16, 16, 65536, 65536, 2, reach=64) == window
        assert tpu.block_sizes(16, 16, 65536, 65536, 2, reach=tuned.window_block + 1) == whole
        assert tpu.block_sizes(16, 16, 65536, 65536, 2) == whole


def test_a_kernel_may_hold_more_heads_than_the_others():
    """v6e: forward takes two kv heads of seven query heads a step, backward one; a lone kv head stays alone."""
    tuned = tuning.load("v6e")
    of = lambda kv_heads: tpu._Statics.of(tuned, 7, kv_heads, 512, 2, 1.0, False)
    assert [s.kv_heads for s in of(4)] == [2, 1, 1]
    assert [s.kv_heads for s in of(1)] == [1, 1, 1]
