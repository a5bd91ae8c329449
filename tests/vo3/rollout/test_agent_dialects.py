"""Other agents' dialects through the engine: scripted conversations on a real file, whole and exact, with bad calls and limits."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib
import re

import numpy as np
import pytest
import rollout_fakes as fakes
from rollout_fakes import BUCKETS, TASK, ScriptedEngine, call
from whole_pass import forward

import vo3.models
from data_prep.dialects import convert
from vo3.agent import VideoAgent
from vo3.chat import PromptPack, Role, encode
from vo3.chat.dialects import DIALECTS
from vo3.chat.tags import format_turn
from vo3.models.safetensors_io import CheckpointError
from vo3.rollout import RolloutPolicy
from vo3.rollout.vision import clip_patches
from vo3.trajectory import Call, Trajectory, Turn
from vo3.video import CropPolicy, VideoCrop

BABBLE = 8
SMALL = {
    "video-o3": fakes.CROP,
    "longvt": CropPolicy("longvt", max_frames=6, max_crop_frames=4, patch_max=8),
    "videozoomer": CropPolicy("videozoomer", max_frames=6, patch_max=8, patch_min=1),
}
NAMES = list(SMALL)


def look(name: str, t0: float = 3.0, t1: float = 6.5, **how) -> str:
    how = how or {"strategy": "fine"} if name == "video-o3" else how
    block = DIALECTS[name].format_call(Call(t0, t1, **{"strategy": None, **how}), video="v.mp4")
    return format_turn("hm", block)


def answer(text: str = "A") -> str:
    """Up to the end token: other dialects than Video-o3 do not stop at `</answer>`."""
    return fakes.answer(text) + "<|im_end|>"


@pytest.fixture
def engine(model, tokenizer, programs):
    def make(name, *script, babble=0, **policy):
        return ScriptedEngine(
            model,
            tokenizer=tokenizer,
            programs=programs,
            policy=RolloutPolicy(dialect=name, **{"max_length": 4096, "reserve": 64, **policy}),
            buckets=BUCKETS,
            shared_prefixes=0,
            script=script,
            babble=babble,
        )

    return make


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_equal_recomputing_everything(
    name, model, tokenizer, engine, mp4, strict_dtypes
):
    """Frame by frame too: each picture is encoded alone, stands behind its label, and the cache holds what one pass gives."""
    script = [
        look(name),
        f"<{DIALECTS[name].tag}>{{}}</{DIALECTS[name].tag}>",
        look(name, 8.0, 11.0),
        answer(),
    ]
    rollout = engine(name, *script, babble=BABBLE).rollout(TASK, VideoCrop(mp4, SMALL[name]))
    trajectory = rollout.trajectory
    kinds = [turn.kind for turn in trajectory.turns[2:]]
    assert kinds == ["call", "observation", "call", "error", "call", "observation", "answer"]
    assert (trajectory.answer, trajectory.meta["dialect"]) == ("A", name)
    logprobs, places = forward(model, tokenizer, rollout, babble=BABBLE)
    ids = encode(trajectory.turns, tokenizer).ids
    before = logprobs[[at - 1 for at, _ in places]]
    wanted = np.array([ids[at] for at, _ in places])
    np.testing.assert_array_equal(before.argmax(-1), wanted)
    assert len(places) == 4 * BABBLE and len(set(wanted.tolist())) > 4
    assert Trajectory.loads(trajectory.dumps()) == trajectory


@pytest.mark.parametrize("name", ["longvt", "videozoomer"])
def test_a_clip_is_one_picture_after_another(name, engine, tokenizer, mp4, model):
    video = VideoCrop(mp4, SMALL[name])
    got = engine(name, look(name), answer()).rollout(TASK, video)
    overview, clip = got.trajectory.observations
    assert overview.media == clip.media == "frames"
    assert overview.grid == (6, 4, 8) and overview.tokens == 48 and len(overview.times) == 6
    frames = len(clip.times)
    # LongVT: 1 a second, an even number; VideoZoomer: 3.5 s at 1 a second.
    assert frames == {"longvt": 2, "videozoomer": 3}[name]
    # The same as showing each frame as an image of its own.
    turn = next(t for t in got.trajectory.turns if t.kind == "observation")
    assert turn.text.count("<video>") == 1
    image = dataclasses.replace(
        clip, media="image", grid=(1, 4, 8), tokens=clip.tokens // frames, labels=()
    )
    labels = clip.labels or ("",) * frames
    text = turn.text.replace("<video>", "".join(f"{label}<image>" for label in labels))
    apart = encode([Turn("observation", text, observations=(image,) * frames)], tokenizer)
    together = encode([turn], tokenizer)
    np.testing.assert_array_equal(together.ids, apart.ids)
    np.testing.assert_array_equal(together.positions, apart.positions)
    np.testing.assert_array_equal(together.feature_index, apart.feature_index)
    assert together.grids == apart.grids == ((1, 4, 8),) * frames
    # But it is a clip, not images: the attention policies tell it from the overview.
    whole = encode(got.trajectory.turns, tokenizer)
    assert (whole.roles == Role.OVERVIEW).sum() == overview.tokens
    assert (whole.roles == Role.CLIP).sum() == clip.tokens
    calls = list(clip_patches(got.clips[1], model.config.vision, (32,), 0))
    assert [c.grid for c in calls] == [(1, 4, 8)] * frames
    assert [c.row for c in calls] == [8 * i for i in range(frames)]


def test_the_words_around_what_is_shown(engine, mp4):
    folder = mp4.rpartition("/")[0]
    task = dataclasses.replace(TASK, video=mp4)
    turns = (
        engine("longvt", look("longvt"), answer())
        .rollout(task, VideoCrop(mp4, SMALL["longvt"]))
        .trajectory.turns
    )
    assert "crop_video" in turns[0].text
    # The tool wants a path; the folder is nobody's business.
    assert "blocks.mp4" in turns[1].text and folder not in turns[1].text
    assert turns[3].text.startswith("<tool_response>\n<video>") and turns[3].text.endswith(
        "</tool_response>"
    )
    turns = engine("videozoomer", look("videozoomer"), answer(r"\boxed{B}")).rollout(task, VideoCrop(mp4, SMALL["videozoomer"])).trajectory.turns  # fmt: skip
    assert turns[1].observations[0].labels[:2] == ("<frame0_time0.00s>", "<frame1_time2.30s>")
    assert turns[3].observations[0].labels == ("<frame0_time3.00s>", "<frame1_time4.70s>", "<frame2_time6.50s>")  # fmt: skip
    assert turns[-1].answer == "B"


def test_the_rate_of_a_call_decides_the_frames(engine, mp4):
    video = VideoCrop(mp4, SMALL["videozoomer"])
    script = [look("videozoomer", 2.0, 6.0, fps=rate) for rate in (0.5, 2.0, 4.0)]
    got = engine("videozoomer", *script, answer()).rollout(TASK, video).trajectory
    assert [len(o.times) for o in got.observations[1:]] == [2, 8, 16]
    assert [c.fps for c in got.calls] == [0.5, 2.0, 4.0]
    refused = engine("videozoomer", look("videozoomer", 2.0, 6.5, fps=4.0), answer())
    got = refused.rollout(TASK, video).trajectory
    assert "18 frames; at most 16" in got.turns[3].error and len(got.observations) == 1


@pytest.mark.parametrize(("name", "rounds"), [("longvt", 5), ("videozoomer", 4)])
def test_limits(name, rounds, engine, mp4):
    """The last call is carried out, and its turn asks for the answer; a call in the forced turn is none."""
    script = [look(name, t, t + 2.0) for t in range(rounds + 1)]
    got = engine(name, *script).rollout(TASK, VideoCrop(mp4, SMALL[name])).trajectory
    forced = got.turns[-2]
    assert (forced.kind, len(forced.observations), got.meta["forced_by"]) == ("forced", 1, "rounds")
    assert len([t for t in got.turns if t.role == "assistant"]) == rounds + 1
    assert (got.outcome, got.answer) == ("refused", None)


def test_another_dialects_call_ends_nothing(engine, mp4):
    """Video-o3's tags are words to the others: the turn goes on to its end token, and the text is what is scored."""
    got = (
        engine("longvt", call() + "<|im_end|>")
        .rollout(TASK, VideoCrop(mp4, SMALL["longvt"]))
        .trajectory
    )
    assert (got.outcome, got.turns[-1].stop) == ("text", "end")


@pytest.mark.parametrize("name", NAMES)
def test_trajectories_are_converted_to_training_rows(name, engine, mp4):
    """What the engine recorded in one dialect is written in every other by the same calls."""
    task = dataclasses.replace(TASK, video="v.mp4")
    got = engine(name, look(name), answer()).rollout(task, VideoCrop(mp4, SMALL[name])).trajectory
    row = json.loads(got.dumps())
    for target in NAMES:
        written = convert(row, source="video-o3", target=target).row
        texts = [m["content"] for m in written["messages"] if m["role"] == "assistant"]
        parsed = DIALECTS[target].parse(texts[0], 12.0)
        assert (parsed.call.start, parsed.call.end) == (3.0, 6.5)
        assert DIALECTS[target].parse(texts[1], 12.0).answer == "A"


# ---- who chooses


def settings(folder, **given):
    file = folder / "vo3.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | given))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return fakes.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_a_checkpoint_says_its_dialect(checkpoint):
    (checkpoint / "vo3.json").write_text('{"dialect": "longvt"}')
    model = vo3.models.load(checkpoint)
    agent = VideoAgent(model)
    assert model.dialect == agent.engine.policy.dialect == "longvt"
    assert agent.engine.pack.name == "longvt" and agent.crop_policy.recipe == "longvt"
    assert agent.engine.max_length() == min(128_000, model.config.text.max_position_embeddings)
    # Chosen by hand, with what belongs to the choice.
    agent = VideoAgent(model, dialect="videozoomer", max_new_tokens=5)
    assert agent.engine.policy == RolloutPolicy(dialect="videozoomer", max_new_tokens=5)
    assert agent.engine.pack.name == "videozoomer" and agent.crop_policy.recipe == "videozoomer"
    agent = VideoAgent(model, dialect="videozoomer", prompt_pack="default", crop_policy=fakes.CROP)
    assert agent.engine.pack == PromptPack.load() and agent.crop_policy == fakes.CROP
    # A checkpoint's own settings stand beside its dialect, and beside that alone.
    settings(checkpoint, crop_policy=fakes.CROP.to_json(), prompt_pack="clueworld")
    model = vo3.models.load(checkpoint)
    assert (
        VideoAgent(model).crop_policy == fakes.CROP
        and VideoAgent(model).engine.pack.name == "clueworld"
    )
    assert VideoAgent(model, dialect="video-o3").engine.pack.name == "default"


def test_an_unknown_dialect_of_a_checkpoint_names_the_file(checkpoint):
    (checkpoint / "vo3.json").write_text('{"dialect": "os:path"}')
    with pytest.raises(CheckpointError, match=r"vo3\.json, dialect: 'os:path' is none of"):
        VideoAgent(vo3.models.load(checkpoint))


# ---- docs/dialects.md


PAGE = pathlib.Path(__file__).parents[3] / "docs" / "dialects.md"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page's two examples as modules."""
    folder = tmp_path_factory.mktemp("page")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, text in zip(("spoken", "slow"), blocks, strict=True):
        (folder / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("spoken"), importlib.import_module("slow")


def test_the_pages_dialect_works(written, engine, mp4):
    script = ["<look>3-6</look>", "<look>over there</look>", "<look>3-99</look>", answer()]
    made = engine("spoken:SPOKEN", *script)
    got = made.rollout(TASK, VideoCrop(mp4, fakes.CROP)).trajectory
    assert [t.kind for t in got.turns[2:]] == ["call", "observation", "call", "error", "call", "forced", "answer"]  # fmt: skip
    assert [(c.start, c.end) for c in got.calls] == [(3.0, 6.0), (3.0, 12.0)]
    assert "'over there' is not START-END" in got.turns[5].error
    assert got.meta["dialect"] == "spoken:SPOKEN" and made.max_length() == 4096
    spoken = written[0].SPOKEN
    assert spoken.read_call(spoken.write_call(got.calls[0]), 12.0) == got.calls[0]


def test_the_pages_tool_works(written, engine, mp4):
    video = written[1].SlowMotion(mp4, fakes.CROP)
    got = engine("video-o3", look("video-o3", strategy="coarse"), answer()).rollout(TASK, video)
    shown = got.trajectory.observations[1]
    assert (shown.height, shown.width) == VideoCrop(mp4, fakes.CROP).crop(3.0, 6.5, "fine").frames.shape[1:3]  # fmt: skip


def test_the_page_tells_what_holds():
    """Its table of calls and rounds, against the dialects."""
    page = PAGE.read_text()
    for dialect in DIALECTS.values():
        line = next(x for x in page.splitlines() if x.startswith(f"| `{dialect.name}`"))
        assert f"<{dialect.tag}>" in line and f"| {dialect.eval_limits.max_turns}, then one" in line
        for stop in dialect.eval_limits.stop:
            assert f"`{stop}`" in line
