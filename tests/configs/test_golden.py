"""Every config, resolved, against a text that is read in review: a default that moves shows here.

`python -m tests.configs.test_golden` writes the texts again.
"""

import pathlib

import pytest

from vo3.train import config as c

GOLDEN = pathlib.Path(__file__).parent / "golden"
NAMES = ("debug", "tiny", "sft_stage1", "sft_stage2")


def resolved(name):
    config = c.load(f"configs/{name}.py")
    return c.to_text(c.resolve(config, devices=8, steps_per_epoch=100, needs_data=False))


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_config_is_the_golden_one(name):
    assert resolved(name) == (GOLDEN / f"{name}.txt").read_text()


def test_the_published_values_stand():
    """The published Video-o3 fine-tuning (arXiv 2601.23224), value by value."""
    one, two = (c.load(f"configs/sft_stage{i}.py") for i in (1, 2))
    for config in (one, two):
        assert (config.optim.name, config.optim.rate, config.optim.schedule) == (
            "adamw",
            1e-5,
            "cosine",
        )
        assert (config.optim.warmup, config.epochs, config.steps) == (0.1, 1, 0)
        assert (config.data.tokens_per_row, config.dtype) == (40_000, "bfloat16")
        assert config.data.crop_policy == "sft"
        # The released code hands seconds per step to transformers 4.57, which cuts them to whole ones.
        assert config.data.mrope_time == "hf_int"
    assert (one.tdam.policy, two.tdam.policy, two.tdam.mask_ratio) == ("off", "released", 0.1)
    assert (one.data.trajectories_per_step, two.data.trajectories_per_step) == (128, 256)


def test_the_frozen_part_is_the_tower_without_its_merger():
    import re

    patterns = c.load("configs/sft_stage1.py").frozen
    frozen = lambda path: any(re.search(p, path) for p in patterns)
    assert frozen("vision.blocks.attn.qkv.kernel")
    assert frozen("vision.patch_embed.kernel")
    assert not frozen("vision.merger.fc1.kernel")
    assert not frozen("decoder.layers.q.kernel")
    assert not frozen("embed.table")


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_is_the_command(name):
    text = pathlib.Path(f"configs/{name}.py").read_text()
    assert f"python -m vo3.train.sft --config=configs/{name}.py" in text


if __name__ == "__main__":
    for each in NAMES:
        (GOLDEN / f"{each}.txt").write_text(resolved(each))
