"""What the three modes show and say."""

from __future__ import annotations

import dataclasses

import eval_samples
import pytest
import rollout_fakes as fakes

from vo3.chat import PromptPack
from vo3.evals import config as config_lib
from vo3.evals.modes import one_look_pack, prepare, with_overview
from vo3.rollout import RolloutPolicy
from vo3.rollout.programs import Programs
from vo3.train.config import ConfigError, override
from vo3.video import CropPolicy

PACK = PromptPack.load("default")
EVAL = CropPolicy("eval")


def mode(name, **options):
    return prepare(name, crop=EVAL, rollout=RolloutPolicy(), pack=PACK, **options)


def test_tools_are_the_published_evaluation():
    tools = mode("tools")
    assert (tools.crop, tools.pack, tools.key) == (EVAL, PACK, "tools")
    assert (tools.rollout.max_turns, tools.rollout.force_answer) == (8, True)


def test_one_look_at_equal_and_at_given_tokens():
    assert mode("direct").crop == EVAL
    assert mode("direct", direct_quota=-1).crop.overview_quota == 16384 + 6144
    given = mode("think", direct_quota=8192).crop
    # Frames go with the quota: as many tokens a frame as before.
    assert (given.overview_quota, given.max_frames) == (8192, 384)
    swept = mode("direct", quota=2048, direct_quota=-1)
    assert (swept.crop.overview_quota, swept.key) == (2048, "direct-2048")


def test_too_few_tokens_are_refused():
    assert with_overview(EVAL, 50).max_frames == 2
    with pytest.raises(ConfigError, match="an overview of 0 tokens"):
        with_overview(EVAL, 0)


def test_the_wording_of_the_one_look_modes():
    task = eval_samples.task()
    direct, think = one_look_pack(PACK, "direct"), one_look_pack(PACK, "think")
    assert "nothing else" in direct.system(task)
    assert think.system(task) == PACK.templates["system.single"]
    assert "grounding" not in think.system(task) + direct.system(task)
    assert (direct.name, think.name) == ("default+direct", "default+think")
    own = PromptPack.load("clueworld")
    assert one_look_pack(own, "direct") is own


def test_no_clip_is_shown_in_one_look():
    """A model that calls is asked for its answer at once."""
    tokenizer = fakes.byte_tokenizer()
    model = fakes.random_model(tokenizer)
    direct = prepare(
        "direct", crop=fakes.CROP, rollout=RolloutPolicy(max_length=4096, reserve=64), pack=PACK
    )
    engine = fakes.scripted_engine(
        model, tokenizer, Programs(model), fakes.call(), fakes.answer("B")
    )
    made = engine.rollout(fakes.TASK, fakes.NoiseVideo(), policy=direct.rollout).trajectory
    assert [t.kind for t in made.turns] == ["system", "question", "call", "forced", "answer"]
    assert (made.answer, len(made.observations)) == ("B", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmarks": ""}, "benchmarks is empty"),
        ({"benchmarks": "mlvu,mlvu"}, "names something twice"),
        ({"sweep": "64,x"}, "sweep: 'x' is no number"),
        ({"dtype": "int8"}, "dtype='int8'; one of"),
        ({"crop.recipe": "sftt"}, "crop.recipe='sftt'"),
        ({"shard": 2, "shards": 2}, "numbered from 0"),
        ({"judge.url": "http://x"}, "belong together"),
        ({"max_turns": -1}, "max_turns=-1 is below 0"),
        ({"direct_quota": -2}, "direct_quota=-2 is below -1"),
        ({"mesh.data": 0}, "sizes are 1 or more"),
        ({"time_limit": 0.0}, "seconds above 0"),
        ({"top_p": 0.0}, "top_p must lie in"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        config_lib.validate(override(config_lib.defaults(), **changes))
    assert message in str(error.value)


def test_the_published_values_stand():
    """The published Video-o3 evaluation: 8 turns, greedy, 4096 new tokens a turn, no subtitles, at most 12 videos."""
    c = config_lib.defaults()
    assert (c.max_turns, c.max_new_tokens, c.max_videos) == (0, 4096, 12)
    assert (c.temperature, c.subtitles, c.modes, c.crop.recipe) == (0.0, False, "tools", "")
    policy = config_lib.rollout_policy(c)
    assert (policy.mode, policy.force_answer, policy.max_turns) == ("eval", True, 8)
    assert config_lib.sampling(c).method == "greedy"


def test_the_crop_policy_of_a_config():
    own = dataclasses.replace(CropPolicy("rl"), fine_quota=4000)
    assert config_lib.crop_policy(config_lib.defaults(), own) == own
    changed = override(config_lib.defaults(), **{"crop.recipe": "eval", "crop.coarse_quota": 1024})
    assert config_lib.crop_policy(changed, own) == dataclasses.replace(EVAL, coarse_quota=1024)
    impossible = override(config_lib.defaults(), **{"crop.overview_quota": 10})
    with pytest.raises(ConfigError, match=r"config\.crop: "):
        config_lib.crop_policy(impossible, own)
    other = override(config_lib.defaults(), **{"crop.recipe": "qwen3_vl"})
    with pytest.raises(
        ConfigError, match=r"config\.crop: the crop recipe 'qwen3_vl' plans tokens of"
    ):
        config_lib.crop_policy(other, own)
