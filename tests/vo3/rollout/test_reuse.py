"""KV reuse is exact: against one forward pass without a cache, across shared prefixes and whatever the buckets are."""

from __future__ import annotations

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_fakes as fakes
from flax import nnx
from rollout_fakes import BUCKETS, TASK, NoiseVideo, ScriptedEngine, answer, call
from whole_pass import forward

import vo3.models
from vo3.chat import encode
from vo3.rollout import Buckets, Engine, RolloutPolicy, Sampling
from vo3.video import VideoCrop

SCRIPT = (
    call(),
    "<grounding>{}</grounding>",
    call(5, 11, "coarse"),
    call(0, 4, "medium"),
    answer(),
)
BABBLE = 24


@pytest.mark.parametrize("source", ["noise", "mp4"])
def test_greedy_tokens_equal_recomputing_everything(
    model, tokenizer, scripted, crop, source, strict_dtypes
):
    """Each token sampled with the cache is the likeliest after one pass over all that precedes it, without a cache."""
    engine = scripted(*SCRIPT, babble=BABBLE)
    rollout = engine.rollout(TASK, crop if source == "mp4" else NoiseVideo())
    assert len(rollout.clips) == 4
    logprobs, places = forward(model, tokenizer, rollout, babble=BABBLE)
    assert len(places) == 5 * BABBLE
    ids = encode(rollout.trajectory.turns, tokenizer).ids
    before = logprobs[[at - 1 for at, _ in places]]
    wanted = np.array([ids[at] for at, _ in places])
    np.testing.assert_array_equal(before.argmax(-1), wanted)
    # Not because the model always says the same, nor because it does not matter what it was shown.
    assert len(set(wanted.tolist())) > 10
    recorded = [
        x for turn in rollout.trajectory.turns if turn.logprobs for x in turn.logprobs[:BABBLE]
    ]
    np.testing.assert_allclose(recorded, before.max(-1), atol=1e-4)


def test_sampled_tokens_have_the_forward_passs_logprobs(model, tokenizer, scripted, strict_dtypes):
    engine = scripted(*SCRIPT, babble=BABBLE)
    rollout = engine.rollout(TASK, NoiseVideo(), sampling=Sampling(temperature=1.0, seed=5))
    logprobs, places = forward(model, tokenizer, rollout, babble=BABBLE)
    ids = encode(rollout.trajectory.turns, tokenizer).ids
    wanted = [logprobs[at - 1, ids[at]] for at, _ in places]
    recorded = [
        x for turn in rollout.trajectory.turns if turn.logprobs for x in turn.logprobs[:BABBLE]
    ]
    np.testing.assert_allclose(recorded, wanted, atol=1e-4)


def test_seeds(scripted):
    def ids(seed):
        got = scripted(*SCRIPT, babble=BABBLE).rollout(
            TASK, NoiseVideo(), sampling=Sampling(temperature=1.0, seed=seed)
        )
        return [turn.ids for turn in got.trajectory.turns if turn.ids]

    assert ids(7) == ids(7) and ids(7) != ids(8)


def test_buckets_change_nothing(model, tokenizer, scripted):
    """Prompts in chunks of 8 tokens, clips in chunks of one temporal patch, a cache that grows often: the same tokens."""
    small = Buckets(tokens=(8, 32), patches=(16,), capacity=(1024, 1280, 1536, 1792, 4096))
    policy = RolloutPolicy(max_length=4096, reserve=64)
    engine = ScriptedEngine(
        model, tokenizer=tokenizer, policy=policy, buckets=small, script=SCRIPT, babble=BABBLE
    )
    large = scripted(*SCRIPT, babble=BABBLE).rollout(TASK, NoiseVideo()).trajectory
    split = engine.rollout(TASK, NoiseVideo()).trajectory
    assert [turn.ids for turn in split.turns] == [turn.ids for turn in large.turns]
    grown = [key for key in engine.programs.compiled if key[0] == "resize"]
    assert len(grown) >= 2


def test_only_new_tokens_are_prefilled(scripted, tokenizer):
    engine = scripted(*SCRIPT, babble=BABBLE)
    rollout = engine.rollout(TASK, NoiseVideo())
    counts = rollout.trajectory.meta["tokens"]
    scripted_ids = sum(len(turn.ids) - BABBLE for turn in rollout.trajectory.turns if turn.ids)
    # The last turn's scripted words are appended and never needed.
    unused = len(rollout.trajectory.turns[-1].ids) - BABBLE
    assert counts["context"] == counts["prefilled"] + counts["sampled"] + unused
    assert counts["sampled"] == 5 * BABBLE and scripted_ids > 0


def test_questions_on_one_video_share_its_overview(scripted):
    engine = scripted(*SCRIPT, babble=BABBLE, shared_prefixes=1)
    alone = scripted(*SCRIPT, babble=BABBLE)
    questions = [TASK, dataclasses.replace(TASK, question="How many dogs are there?"), TASK]
    patches = []
    for task in questions:
        engine.said = alone.said = 0
        shared = engine.rollout(task, NoiseVideo())
        single = alone.rollout(task, NoiseVideo())
        assert [t.ids for t in shared.trajectory.turns] == [t.ids for t in single.trajectory.turns]
        assert [t.logprobs for t in shared.trajectory.turns] == [
            t.logprobs for t in single.trajectory.turns
        ]
        patches.append(shared.trajectory.meta["tokens"])
    assert patches[0]["shared"] == 0 and patches[1]["shared"] == patches[2]["shared"] > 800
    assert patches[1]["patches"] == patches[0]["patches"] - 32  # the overview's, encoded once
    assert (engine.prefixes.hits, engine.prefixes.misses, len(engine.prefixes)) == (2, 1, 1)


def test_an_overview_is_read_once(scripted):
    engine = scripted(answer(), shared_prefixes=1)
    first, second = NoiseVideo(1), NoiseVideo(1)
    for video in (first, first, second, first):
        engine.said = 0
        engine.rollout(TASK, video)
    # The store goes by pixels; reading goes by the video object asked about last.
    assert (first.overviews, second.overviews, engine.prefixes.hits) == (2, 1, 3)
    alone = scripted(answer(), shared_prefixes=0)
    alone.rollout(TASK, first)
    assert first.overviews == 3 and alone._overview is None


def test_another_video_of_the_same_length_shares_nothing(scripted):
    engine = scripted(answer(), babble=BABBLE, shared_prefixes=2)
    got = []
    for seed in (1, 2, 1):
        engine.said = 0
        got.append(engine.rollout(TASK, NoiseVideo(seed)).trajectory)
    assert [t.meta["tokens"]["shared"] > 0 for t in got] == [False, False, True]
    assert got[0].turns[-1].ids == got[2].turns[-1].ids != got[1].turns[-1].ids


def test_the_store_keeps_what_was_used_last(scripted):
    engine = scripted(answer(), shared_prefixes=1)
    for seed in (1, 2, 2, 1):
        engine.said = 0
        engine.rollout(TASK, NoiseVideo(seed))
    assert (engine.prefixes.hits, len(engine.prefixes)) == (1, 1)


def test_new_parameters_drop_the_prefixes(model, tokenizer):
    engine = ScriptedEngine(
        model,
        tokenizer=tokenizer,
        policy=RolloutPolicy(max_length=4096, reserve=64),
        buckets=BUCKETS,
        script=[answer()],
        babble=BABBLE,
    )
    old = engine.rollout(TASK, NoiseVideo()).trajectory.turns[-1].ids
    compiled = engine.compilations
    changed = nnx.clone(model)
    changed.decoder.norm.scale[...] = changed.decoder.norm.scale[...] * np.linspace(
        -1, 1, 64, dtype=np.float32
    )
    engine.update(changed)
    engine.said = 0
    got = engine.rollout(TASK, NoiseVideo()).trajectory
    assert got.turns[-1].ids != old and got.meta["tokens"]["shared"] == 0
    assert engine.compilations == compiled
    fresh = ScriptedEngine(
        changed,
        tokenizer=tokenizer,
        policy=engine.policy,
        buckets=BUCKETS,
        script=[answer()],
        babble=BABBLE,
    )
    assert fresh.rollout(TASK, NoiseVideo()).trajectory.turns[-1].ids == got.turns[-1].ids


def test_nothing_compiles_after_warm_up(model, tokenizer):
    """Other lengths of question, thought, clip and context: no program beyond those of the bucket tables."""
    buckets = Buckets(tokens=(16, 256), patches=(64,), capacity=(1024, 2048))
    engine = ScriptedEngine(
        model,
        tokenizer=tokenizer,
        policy=RolloutPolicy(max_length=4096, reserve=64),
        buckets=buckets,
        script=(),
        babble=5,
        shared_prefixes=1,
    )
    warm = engine.warm_up()
    # encode 1, place 2, prefill 2 x 3, start 1, decode 3, resize 6
    assert warm == 19 == len(engine.programs.compiled)
    with jax.log_compiles(False):
        for n, script in enumerate(
            [SCRIPT, (call(think="x" * 500), answer()), (answer(),), SCRIPT]
        ):
            engine.script, engine.said = list(script), 0
            question = dataclasses.replace(TASK, question="why? " * (40 * n + 1))
            engine.rollout(question, NoiseVideo(n % 2))
    assert engine.compilations == warm
    assert max(collections.Counter(engine.programs.compiled).values()) == 1


def test_the_real_decoder_stops_by_itself(model, tokenizer, mp4, crop):
    """Unscripted: a random model on a real file runs to its length limit and gives a whole record."""
    engine = Engine(
        model,
        tokenizer=tokenizer,
        policy=RolloutPolicy(max_length=4096, max_new_tokens=32),
        buckets=BUCKETS,
    )
    rollout = engine.rollout(TASK, crop)
    assert rollout.trajectory.outcome == "text" and len(rollout.trajectory.turns[-1].ids) == 32
    assert isinstance(crop, VideoCrop) and rollout.clips[0].end == pytest.approx(12, abs=0.2)


def test_two_devices_say_what_one_says(model, tokenizer, scripted, tmp_path):
    """Weights, heads and cache over a mesh of two."""
    model.save_hf(tmp_path / "model")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("model",))
    spread = vo3.models.load(tmp_path / "model", mesh=mesh)
    engine = ScriptedEngine(
        spread,
        tokenizer=tokenizer,
        policy=RolloutPolicy(max_length=4096, reserve=64),
        buckets=Buckets(tokens=(256,), patches=(64,), capacity=(2048,)),
        script=SCRIPT[:2] + SCRIPT[-1:],
        babble=8,
    )
    got = engine.rollout(TASK, NoiseVideo()).trajectory
    one = scripted(*SCRIPT[:2], SCRIPT[-1], babble=8).rollout(TASK, NoiseVideo()).trajectory
    assert [turn.ids for turn in got.turns] == [turn.ids for turn in one.turns]
    cache = engine.programs.empty(1, 2048)
    assert cache.k.sharding.shard_shape(cache.k.shape)[2] == cache.k.shape[2] // 2
    assert max(collections.Counter(engine.programs.compiled).values()) == 1


@pytest.mark.soak
def test_bfloat16(tokenizer):
    """Weights, features and cache in bf16; scores stay f32."""
    half = fakes.random_model(tokenizer, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    engine = ScriptedEngine(
        half,
        tokenizer=tokenizer,
        policy=RolloutPolicy(max_length=4096, reserve=64),
        buckets=Buckets(tokens=(256,), patches=(64,), capacity=(2048,)),
        script=SCRIPT[:1] + SCRIPT[-1:],
        babble=8,
    )
    rollout = engine.rollout(TASK, NoiseVideo(), sampling=Sampling(temperature=1.0, seed=1))
    cache = engine.programs.empty(1, 2048)
    assert cache.k.dtype == jnp.bfloat16
    recorded = [x for turn in rollout.trajectory.turns if turn.logprobs for x in turn.logprobs[:8]]
    logprobs, places = forward(half, tokenizer, rollout, babble=8)
    ids = encode(rollout.trajectory.turns, tokenizer).ids
    wanted = [logprobs[at - 1, ids[at]] for at, _ in places]
    # bf16 keeps 8 bits; a cache of another model's numbers would be off by whole units.
    np.testing.assert_allclose(recorded, wanted, atol=0.3)
