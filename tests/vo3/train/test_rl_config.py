"""The RL configuration: the published values, contradictions, what the sections mean."""

import sys

import pytest

from vo3.rewards import free_form
from vo3.train import config as c
from vo3.train import rl_config as r
from vo3.train.config import ConfigError

NAMES = ("rl", "rl_zero", "rl_clueworld")


def config(name="rl", **changes):
    return c.override(c.load(f"configs/{name}.py"), **{"data.rows": "rows.jsonl", **changes})


def test_the_published_values_stand():
    """The published Video-o3 RL (arXiv 2601.23224), value by value."""
    one = config()
    assert (one.rl.group, one.rl.prompts_per_step, one.epochs) == (16, 32, 1)
    optim = one.optim
    assert (optim.name, optim.rate, optim.schedule, optim.weight_decay, optim.clip) == (
        "adamw", 1e-6, "constant", 0.01, 1.0,
    )  # fmt: skip
    assert (one.rl.clip, one.rl.kl, one.rl.options) == ((0.2, 0.3), 0.0, ())
    assert (one.rl.min_std, one.rl.aggregation, r.updates(one)) == (1e-4, "seq-mean-token-mean", 1)
    sampling, policy = r.sampling(one), r.rollout_policy(one)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert (policy.max_turns, policy.max_new_tokens, policy.max_length) == (6, 8192, 32_768)
    assert (policy.mode, policy.max_videos, policy.force_answer) == ("rl", 12, False)
    assert one.frozen == () and one.data.crop_policy == "rl"
    reward = r.reward_policy(one)
    assert (reward.recipe, reward.decay, reward.free_form) == ("qwen2_5_vl", 0.05, "letter")
    assert reward.rule("tool_penalty_single_turn") == "refrain"


@pytest.mark.parametrize("name", NAMES)
def test_configs_resolve_and_their_docstring_is_the_command(name):
    import pathlib

    changes = {"data.rows": ""} if name == "rl_clueworld" else {}
    resolved = r.resolve(config(name, **changes), devices=8, prompts=None if changes else 320)
    assert resolved.steps == (60 if changes else 10)
    text = pathlib.Path(f"configs/{name}.py").read_text()
    assert f"python -m vo3.train.grpo --config=configs/{name}.py" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rl.options": ("gspo", "tis")}, "exclude each other"),
        ({"rl.options": ("gspo",), "rl.aggregation": "token-mean"}, "use seq-mean-token-mean"),
        ({"rl.options": ("dapo",)}, "known are gspo, no_std, overlong, tis"),
        ({"rl.aggregation": "mean"}, "one of seq-mean-token-mean, token-mean"),
        ({"rl.options": ("overlong",), "rl.overlong_limit": 10}, "is not below rl.overlong_limit"),
        ({"rl.group": 1}, "rl.group=1 is below 2"),
        ({"rl.clip": (1.2, 0.3)}, "two positive numbers"),
        ({"rl.mini_batches": 5}, "no multiple of rl.mini_batches"),
        ({"rl.mini_batches": 0}, "rl.mini_batches=0 is below 1"),
        ({"rl.align": 0}, "rl.align=0 is below 1"),
        ({"rl.curriculum": "single_first", "rl.mix": (("a", 1.0),)}, "leave one of them out"),
        ({"rl.curriculum": "single_first", "data.source": "clueworld"}, "is of rows"),
        ({"rl.shapes": ((65_536, 64, 16),)}, "a turn of rl.rollout.max_new_tokens=8192 has up to"),
        ({"rl.shapes": ((256, 64, 8),)}, "the border of its leaf need 32896"),
        ({"rl.shapes": ((65_536, 64, 8), (32_768, 64, 8))}, "each must hold the one before"),
        ({"rl.shapes": ((65_500, 64, 8),)}, "multiples of rl.align"),
        ({"rl.shapes": ((65_536, 64),)}, r"\(65536, 64\) is not like"),
        ({"rl.shapes": (65_536, 131_072, 32_768)}, r"65536 is not like .*one alone is \(\("),
        ({"rl.shapes": ((65_536.5, 131_072, 32_768),)}, "is not like"),
        ({"rl.reward.data_sources": ("mine", "free")}, "'mine' is not like"),
        ({"rl.rollout.temperature": 0.0}, "gives equal rollouts"),
        ({"rl.reward.recipe": "other"}, "unknown reward recipe"),
        ({"rl.reward.free_form": "exact"}, "unknown free_form"),
        ({"rl.when_short": "wait"}, "one of stop, train"),
        ({"rl.mix": (("a", -1.0),)}, "has the share -1.0"),
        ({"rl.mix": ("a", 0.5)}, "'a' is not like"),
        ({"tdam.policy": "turn", "tdam.mask_ratio": 0.1}, "is of fine-tuning"),
        ({"data.clip_cache": "x"}, "leave them empty"),
        ({"data.source": "tfds"}, "use 'rows' or 'clueworld'"),
        ({"optim.clip": 0.0}, "is not above 0"),
        ({"data.rows": ""}, "needs data.rows"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        r.validate(config(**changes))


@pytest.mark.parametrize(
    ("kind", "package", "name"),
    [("rouge", "rouge_score", "rouge-score"), ("numeric", "math_verify", "math-verify")],
)
def test_a_reward_whose_package_is_missing_is_refused(monkeypatch, kind, package, name):
    free_form._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ConfigError, match=rf"rl\.reward\.free_form='{kind}' needs the package {name}; pip"
    ):
        r.validate(config(**{"rl.reward.free_form": kind}))
    r.validate(config())
    monkeypatch.undo()
    r.validate(config(**{"rl.reward.free_form": kind}))


def test_a_segment_is_asked_of_rows_with_one_name_alone():
    known = config().rl.reward.data_sources
    with pytest.raises(ConfigError, match=r"'charades' by the rule 'segment'.*name the rows so"):
        r.validate(config(**{"rl.reward.data_sources": (*known, ("charades", "segment"))}))
    r.validate(config(**{"rl.reward.data_sources": (*known, ("mine", "free"))}))


def test_two_options_that_can_both_be_meant_pass():
    r.validate(config(**{"rl.options": ("no_std", "overlong"), "rl.aggregation": "token-mean"}))
    loss = r.policy_loss(config(**{"rl.options": ("tis",)}))
    assert (loss.correction, loss.sequence_ratio) == (2.0, False)
    assert r.policy_loss(config(**{"rl.options": ("gspo",)})).sequence_ratio


def test_all_faults_are_told_at_once_and_unknown_keys_named():
    with pytest.raises(ConfigError) as error:
        r.validate(config(**{"on_nan": "ignore", "rl.group": 1, "rl.epochs": 0}))
    assert len(str(error.value).splitlines()) == 3
    with pytest.raises(ConfigError, match=r"nearest is config\.rl\.min_std"):
        config(**{"rl.min_st": 1.0})
    with pytest.raises(ConfigError, match=r"start from vo3\.train\.rl_config"):
        r.validate(c.defaults())


def test_schedules_count_optimiser_steps():
    one = config(**{"steps": 7, "rl.mini_batches": 4, "rl.epochs": 2})
    assert r.for_optimizer(one).steps == 56 and one.steps == 7
