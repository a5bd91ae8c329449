"""One-turn baselines: what they are shown and taught; TDAM in the stream; their configs and commands."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from vo3.chat import PromptPack, encode
from vo3.chat.tdam import CLIP, OVERVIEW
from vo3.chat.tokens import Role
from vo3.clueworld import data, evaluate, patches, recipe, tasks, trajectories
from vo3.clueworld.data import DataConfig, fitted, make_stream
from vo3.clueworld.legibility import cells, glyph
from vo3.clueworld.loss import masked
from vo3.clueworld.pretrain import Probe, losses
from vo3.clueworld.scales import RESOLUTIONS, VIEWS, get_scale
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.clueworld.views import observe, sightings
from vo3.clueworld.world import make_world
from vo3.rewards import score
from vo3.train import config as config_lib

PACK, TOKENIZER = PromptPack.load("clueworld"), build_tokenizer()


@given(
    st.integers(0, 2**40),
    st.sampled_from(list(tasks.KINDS)),
    st.sampled_from(VIEWS[1:]),
    st.booleans(),
)
def test_a_baseline_is_taught_the_truth_in_one_turn(seed, kind, view, options):
    world, rng = make_world(seed), np.random.default_rng(seed)
    shown = observe(world, 0, policy=get_scale("clueworld").view(view))
    question = tasks.KINDS[kind](world, rng)
    task = tasks.make_task(world, question, video="-", task_id="-", rng=rng, options=options)
    made = trajectories.make_one_look(world, question, task, pack=PACK, shown=shown)
    assert not made.calls and [t.kind for t in made.turns] == ["system", "question", "answer"]
    seen = [s.card.color for s in sightings(world, shown, missing=True)]
    named = made.turns[-1].text.removeprefix("<think>cards ").split(".")[0].split()
    assert named == seen
    if tasks.source_of(question) == tasks.GROUNDING:
        # Frames of `middle` and `fine` lie so far apart that their times may only touch the card's.
        told, (clue,) = json.loads(made.answer)["temporal_segment"], question.clues
        assert told[0] <= clue.end and clue.start <= told[1]
        if view.startswith("coarse"):
            assert score(made, task.target).accuracy > 0.3
    else:
        assert made.answer == task.target.answer
        for card in question.looks:
            assert str(card.digit) in made.turns[-1].text
    ids = encode(made.turns, TOKENIZER).ids
    assert (ids != TOKENIZER.unk_token_id).all()


@pytest.mark.parametrize("trajectories", [True, False])
@pytest.mark.parametrize("view", ["middle", "fine"])
def test_the_stream_of_a_baseline(view, trajectories):
    config = DataConfig(
        worlds=2, length=1280 if trajectories else 640, patches=32 if trajectories else 2, view=view,
        transcripts=2, trajectories=trajectories,
    )  # fmt: skip
    batch = make_stream(config).batch(1)
    assert batch.overviews.shape[2:4] == RESOLUTIONS[view]
    assert not batch.clips.any()
    text = TOKENIZER.decode(batch.ids[0])
    assert "<grounding>" not in text and "shows" in text


def trajectory(kind, seed=3):
    world, rng = make_world(seed), np.random.default_rng(0)
    question = tasks.KINDS[kind](world, rng)
    task = tasks.make_task(world, question, video="-", task_id="-", rng=rng, options=False)
    policy = get_scale("clueworld").policy
    return trajectories.make_trajectory(world, question, task, pack=PACK, policy=policy).turns


def test_released_masks_what_it_comes_to_with_one_token_answers():
    turns = trajectory("sum")
    plain = encode(turns, TOKENIZER)
    seen = masked(plain, turns, TOKENIZER, "released").visibility
    text = lambda where: TOKENIZER.decode(plain.ids[where])
    assert text(seen.kind == OVERVIEW) == "<|video_pad|>" * 64
    assert text(seen.kind == CLIP) == "<|video_pad|>" * 72
    assert text(seen.hide == OVERVIEW).isdigit() and (seen.hide == OVERVIEW).sum() == 1
    # The second call alone; the query that predicts its first token is not masked.
    second = text(seen.hide == CLIP)
    assert second.startswith('{"temporal_segment": [') and second.count("temporal") == 1
    assert plain.roles[np.flatnonzero(seen.hide == CLIP)[0] - 1] == Role.TEXT


def test_tdam_policies_reach_the_batch():
    def hidden(policy, **more):
        config = DataConfig(worlds=1, length=1100, transcripts=0, tdam=policy, **more)
        return make_stream(config).batch(0).visibility

    masks = {p: hidden(p) for p in ("off", "released", "predictor", "turn")}
    count = {p: int((v.hide > 0).sum()) for p, v in masks.items()}
    assert count["off"] == 0 and not masks["off"].kind.any()
    assert 0 < count["released"] < count["predictor"] + 20 < count["turn"]
    for visibility in masks.values():
        np.testing.assert_array_equal(visibility.enter, masks["off"].enter)
    assert not hidden("turn", view="middle").hide.any()  # one video: nothing to decouple


def test_the_config_of_a_baseline_is_the_agents_but_for_view_length_and_a_frozen_tower():
    for stage in recipe.STAGES:
        agent = config_lib.flatten(config_lib.load(f"configs/clueworld.py:{stage}"))
        other = config_lib.flatten(config_lib.load(f"configs/clueworld.py:{stage}.middle"))
        assert other.pop("data.view") == "middle"
        assert agent.pop("frozen") == () and other.pop("frozen") == (r"^vision\.",)
        assert {k for k in other if other[k] != agent[k]} <= {
            "data.length",
            "init_vision",
            "init_from",
        }
    with pytest.raises(ValueError, match="unknown view 'large'"):
        config_lib.load("configs/clueworld.py:whole.large")
    with pytest.raises(ValueError, match="unknown stage"):
        config_lib.load("configs/clueworld.py:hole")
    with pytest.raises(ValueError, match=r"data\.stated is 'digit'; one of '', 'digits'"):
        DataConfig(stated="digit")


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("agent.0", "clueworld"),
        ("middle.0", "clueworld-middle"),
        ("agent.1", "clueworld-1"),
        ("middle.2", "clueworld-middle-2"),
    ],
)
def test_a_stage_starts_from_its_own_run(name, run):
    first = config_lib.load(f"configs/clueworld.py:letters.{name}")
    assert (first.init_vision, first.init_from) == (f"out/{run}/vision/vision.npz", "")
    later = config_lib.load(f"configs/clueworld.py:whole.{name}")
    assert (later.init_vision, later.init_from) == ("", f"out/{run}/order")


@pytest.mark.parametrize("view", VIEWS)
def test_rows_of_every_stage_have_room_for_what_is_drawn(view, monkeypatch):
    """Texts that are left out of a row would be trained on less than the config says: at most two of some 800, and rows are not much longer than needed."""
    left_out, drawn = 0, 0

    def count(row, length, *, asks):
        nonlocal left_out, drawn
        kept = fitted(row, length, asks=asks)
        left_out, drawn = left_out + len(row) - len(kept), drawn + len(row)
        assert sum(len(example.encoded.ids) for example in row) > 0.55 * length
        return kept

    # What is seen does not matter here, and rendering takes longest.
    monkeypatch.setattr(data, "fitted", count)
    monkeypatch.setattr(data, "render", lambda world, shown, scale: np.zeros((*shown.grid, 3)))
    monkeypatch.setattr(data, "noisy", lambda frames, rng, noise: frames)
    monkeypatch.setattr(data, "pack_rows", lambda rows, **_: rows)
    for stage in recipe.STAGES:
        config = config_lib.load(f"configs/clueworld.py:{stage}.{view}.7").data.to_dict()
        config["worlds"] = 8
        make_stream(DataConfig(**config)).batch(0)
    assert drawn > 500 and left_out <= 2


@pytest.mark.parametrize("view", VIEWS)
def test_trajectories_show_the_whole_of_what_evaluation_shows(view, monkeypatch):
    monkeypatch.setattr(data, "render", lambda world, shown, scale: np.zeros((*shown.grid, 3)))
    monkeypatch.setattr(data, "noisy", lambda frames, rng, noise: frames)
    asked = make_world(evaluate.FIRST_SEED)
    stages = 0
    for stage in recipe.STAGES:
        config = DataConfig(**config_lib.load(f"configs/clueworld.py:{stage}.{view}.0").data)
        if config.trajectories:
            stages += 1
            world, shown, _ = make_stream(config)._overview(asked, np.random.default_rng(0))
            assert shown == observe(asked, 0, policy=get_scale("clueworld").view(view))
            assert world == asked
    assert stages == 7


def test_a_row_without_room_leaves_out_texts_and_never_what_is_asked():
    config = DataConfig(worlds=1, lookups=3, matched=1.0)
    stream = make_stream(config)
    rng = np.random.default_rng(0)
    world, overview, _ = stream._overview(make_world(3), rng)
    asked = stream._example(stream._trajectory(world, tasks.SINGLE_SEEN, overview, rng), 0, 0)
    texts = [stream._words.draw(rng) for _ in range(3)]
    size = lambda row: sum(len(example.encoded.ids) for example in row)
    row = [*texts, asked]
    assert fitted(row, size(row), asks=True) == row
    assert fitted(row, size(row) - 1, asks=True) == [texts[0], texts[1], asked]
    assert fitted(row, size([asked]), asks=True) == [asked]
    with pytest.raises(
        ValueError, match=rf"data.length is {size([asked]) - 1}: .* {size([asked])} tokens"
    ):
        fitted(row, size([asked]) - 1, asks=True)
    assert fitted([asked, asked], size([asked]), asks=False) == [asked]


def test_the_recipe_of_a_baseline(tmp_path):
    agent, middle = recipe.commands(tmp_path), recipe.commands(tmp_path, "middle")
    assert list(agent) == list(middle)
    for stage in ("vision", "mean", "settled"):
        assert changed(agent[stage], middle[stage]) == ["--view=middle"]
    for stage in recipe.STAGES:
        there = [f"--config=configs/clueworld.py:{stage}.middle.0"]
        assert changed(agent[stage], middle[stage]) == there


def test_a_stage_that_was_asked_to_end_ends_the_recipe(tmp_path, monkeypatch):
    ran, steps = [], iter((150, 250, 58))
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")

    def run(command, check, env):
        # As a stage leaves its folder, with exit code 0 whether done or not; memory is kept, but where the user says otherwise.
        assert env["MALLOC_MMAP_MAX_"] == "0" and env["MALLOC_ARENA_MAX"] == "2"
        name = next((p for p in command if p.startswith("--config=")), None)
        folder = tmp_path / "vision"
        if name is not None:
            folder = tmp_path / name.split(":")[1].split(".")[0]
            config = config_lib.load(name.removeprefix("--config="))
            (folder / "checkpoints" / str(next(steps))).mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"steps": config.steps}))
        ran.append(folder.name)
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(recipe.subprocess, "run", run)
    with pytest.raises(SystemExit, match=r"read was asked to end after 58 steps; the same command"):
        recipe.main(["--workdir", str(tmp_path)])
    assert ran == ["vision", "letters", "text", "read"]
    # What is there is of this view and seed alone.
    for other in (["--seed", "1"], ["--view", "middle"]):
        with pytest.raises(SystemExit, match=r"holds view agent, seed 0, asked for are"):
            recipe.main(["--workdir", str(tmp_path), *other])
    with pytest.raises(
        SystemExit, match=r"mean is the mean of polish, last, far, and .*polish has no"
    ):
        recipe.main(["--workdir", str(tmp_path), "--only", "mean"])
    monkeypatch.setattr(recipe.subprocess, "run", lambda *_, **__: types.SimpleNamespace(returncode=3))  # fmt: skip
    with pytest.raises(SystemExit, match=r"recipe: vision ended with code 3, see above"):
        recipe.main(["--workdir", str(tmp_path / "new")])
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(SystemExit, match=r"recipe\.json does not tell whose the folder is"):
        recipe.main(["--workdir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"--seed is -1"):
        recipe.main(["--workdir", str(tmp_path / "new"), "--seed", "-1"])


def test_fine_tuning_of_seeds_shares_no_data(tmp_path):
    first, second = recipe.commands(tmp_path), recipe.commands(tmp_path, seed=1)
    for stage in ("vision", "mean", "settled"):
        assert changed(first[stage], second[stage]) == ["--seed=1"]
    seeds = set()
    for command in (first, second):
        for stage in recipe.STAGES:
            name = next(a for a in command[stage] if a.startswith("--config=")).partition(":")[2]
            config = config_lib.load(f"configs/clueworld.py:{name}")
            seeds.add(config.data.seed)
            assert config.seed == int(name[-1])
    assert len(seeds) == 2 * len(recipe.STAGES)


def changed(one: list[str], other: list[str]) -> list[str]:
    return [b for a, b in zip(one, other, strict=True) if a != b]


def test_vision_of_a_baseline_reads_its_own_frames():
    batch = patches.VisionStream(worlds=2, view="middle").batch(0)
    assert batch.coarse.shape == (10, 2, 56, 112, 3) and batch.fine is None
    # What a token is asked is what its frame shows: one token a card, none where there is none.
    assert batch.fine_digit.shape == batch.fine_color.shape == (10, 8, 2)
    shown = (batch.fine_digit != patches.BLANK).sum(1)
    np.testing.assert_array_equal(shown, batch.coarse_digit != patches.BLANK)
    np.testing.assert_array_equal(batch.fine_digit.min(1), batch.coarse_digit)
    assert (batch.fine_color != patches.NONE).any()
    # Left half: clock; the digit's token lies in the right one.
    where = np.argwhere(batch.fine_digit != patches.BLANK)
    assert (where[:, 1] % 4 >= 2).all()


@pytest.mark.parametrize("view", ["agent", "middle"])
def test_every_token_of_a_frame_is_asked_for_its_digit(view):
    batch = patches.VisionStream(worlds=4, scale="micro", view=view).batch(0)
    probe = Probe(rngs=nnx.Rngs(0), scale="micro")
    plain, _ = losses(probe, batch)
    shown = batch.fine_digit[batch.fine_digit != patches.BLANK]  # one token a card
    # A head that always says one digit, at all tokens of both frames, is as often right as the digit is shown.
    said = int(np.bincount(shown).argmax())
    probe.digit.kernel[...] = jnp.zeros_like(probe.digit.kernel[...])
    probe.digit.bias[...] = jnp.tile(20.0 * jax.nn.one_hot(said, 11), 2)
    sure, accuracy = losses(probe, batch)
    assert accuracy["digit"] == pytest.approx(np.mean(shown == said))
    assert sure > plain + 5  # and it is counted


def test_digits_begin_large_where_they_do_not_lie_alike():
    alike = {view for view in VIEWS if get_scale("clueworld").alike(view)}
    assert alike == {"agent", "fine"}
    assert get_scale("micro").alike("middle")
    for view in VIEWS:  # what `alike` says is what the boxes of the digits say
        policy = get_scale("clueworld").view(view)
        height = 84 if view == "agent" else observe(make_world(1), 0, policy=policy).height
        token = 28 * 168 / height
        offsets = {(box.left % token, box.top % token) for box in boxes()}
        assert (len(offsets) == 1) == (view in alike)
    sizes = {}
    for view in ("fine", "middle"):
        stream = patches.VisionStream(worlds=1, view=view, steps=10)
        sizes[view] = [stream._config(step).dot for step in range(10)]
    assert sizes == {"fine": [2] * 10, "middle": [5, 5, 5, 4, 4, 3, 2, 2, 2, 2]}


def boxes():
    config = get_scale("clueworld").world
    return [glyph(cell, config) for cell in cells(config)]


def test_a_checkpoint_of_another_view_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="was not trained for this view"):
        evaluate.main(["--workdir", str(tmp_path), "--worlds", "1", "--baseline", "middle"])
