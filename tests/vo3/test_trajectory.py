"""The trajectory type: JSON round trips, schema version, and what construction refuses."""

from __future__ import annotations

import dataclasses
import json

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from vo3.trajectory import (
    IMAGE_MARK,
    SCHEMA_VERSION,
    STRATEGIES,
    VIDEO_MARK,
    Call,
    Clue,
    Observation,
    Target,
    Task,
    Trajectory,
    Turn,
)

pytestmark = pytest.mark.quick

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda t: VIDEO_MARK not in t and IMAGE_MARK not in t
)
number = st.floats(allow_nan=False, allow_infinity=False)
maybe = lambda s: st.none() | s
count = st.integers(0, 2**31)
grid = st.tuples(count, count, count)
call = st.builds(Call, number, number, st.sampled_from(STRATEGIES))
shown = st.builds(
    Observation,
    index=count,
    start=number,
    end=number,
    fps=number,
    times=st.lists(number, max_size=3).map(tuple),
    indices=st.lists(count, max_size=3).map(tuple),
    height=count,
    width=count,
    grid=grid,
    tokens=count,
    strategy=maybe(st.sampled_from(STRATEGIES)),
    media=st.sampled_from(["video", "image"]),
)
task = st.builds(
    Task,
    id=text,
    video=text | st.lists(text, max_size=3).map(tuple),
    question=text,
    options=maybe(st.dictionaries(text, text, max_size=3)),
    target=maybe(
        st.builds(
            Target,
            answer=text,
            clues=st.lists(st.builds(Clue, number, number, text), max_size=2).map(tuple),
            data_source=text,
        )
    ),
    frame_fps=maybe(number),
)


@st.composite
def turns(draw):
    kind = draw(
        st.sampled_from(
            ["system", "question", "observation", "error", "forced", "call", "answer", "text"]
        )
    )
    observations = tuple(draw(st.lists(shown, max_size=2)))
    marks = "".join(VIDEO_MARK if o.media == "video" else IMAGE_MARK for o in observations)
    return Turn(
        kind,
        draw(text) + marks + draw(text),
        observations,
        call=draw(maybe(call)),
        answer=draw(maybe(text)),
        error=draw(maybe(text)),
        ids=draw(maybe(st.lists(count, max_size=4).map(tuple))),
        logprobs=draw(maybe(st.lists(number, max_size=4).map(tuple))),
        stop=draw(maybe(st.sampled_from(["tag", "end", "length"]))),
        seconds=draw(maybe(number)),
    )


trajectories = st.builds(
    Trajectory,
    task=task,
    turns=st.lists(turns(), max_size=4).map(tuple),
    outcome=st.sampled_from(["answered", "text", "refused", "exceeded", "void"]),
    answer=maybe(text),
    model=maybe(text),
    prompt_pack=maybe(text),
    meta=st.dictionaries(
        text, st.none() | st.booleans() | number | text | st.lists(count), max_size=3
    ),
)


@settings(max_examples=150)
@given(trajectories)
def test_json_round_trip(trajectory):
    line = trajectory.dumps()
    assert "\n" not in line
    assert Trajectory.loads(line) == trajectory
    assert Trajectory.from_json(trajectory.to_json()) == trajectory
    assert hash(Trajectory.loads(line).turns) == hash(trajectory.turns)  # tuples all the way down


def small() -> Trajectory:
    o = Observation(0, 0.0, 4.0, 2.0, (0.0, 0.5), (0, 1), 28, 28, (1, 2, 2), 1)
    return Trajectory(
        task=Task("1", "v.mp4", "q", {"A": "a"}, Target("A", (Clue(1, 2),), "s")),
        turns=(
            Turn("question", "<video> q", (o,)),
            Turn("call", "c", call=Call(1.0, 2.0, "fine"), ids=(1, 2), logprobs=(-0.5, -1.0)),
            Turn("answer", "a", answer="A"),
        ),
        outcome="answered",
        answer="A",
    )


def test_what_a_trajectory_shows():
    trajectory = small()
    assert trajectory.to_json()["schema_version"] == SCHEMA_VERSION
    assert [o.index for o in trajectory.observations] == [0]
    assert trajectory.calls == (Call(1.0, 2.0, "fine"),)
    assert [t.role for t in trajectory.turns] == ["user", "assistant", "assistant"]
    assert Turn("system", "").role == "system"
    with pytest.raises(dataclasses.FrozenInstanceError):
        trajectory.answer = "B"


@pytest.mark.parametrize("version", [None, 0, SCHEMA_VERSION + 1, "1"])
def test_another_schema_version_is_refused(version):
    data = small().to_json() | {"schema_version": version}
    with pytest.raises(
        ValueError, match=f"schema version {version!r}, this reads {SCHEMA_VERSION}"
    ):
        Trajectory.from_json(data)


def without(data: dict, *path) -> dict:
    data = json.loads(json.dumps(data))
    place = data
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return data


@pytest.mark.parametrize(
    "path",
    [("task",), ("turns",), ("outcome",), ("task", "id"), ("turns", 0, "kind"), ("turns", 0, "observations", 0, "grid"),
     ("turns", 1, "call", "end"), ("task", "target", "clues", 0, "start")],
)  # fmt: skip
def test_a_missing_field_is_refused(path):
    with pytest.raises(ValueError, match="not a trajectory"):
        Trajectory.from_json(without(small().to_json(), *path))


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("turns", 1, "text"), None, "'NoneType'"),
        (("turns", 1, "ids"), ["1"], "Turn.ids"),
        (("turns", 1, "stop"), "tired", "Turn.stop"),
        (("turns", 0, "observations", 0, "fps"), None, "Observation.fps"),
        (("turns", 0, "observations", 0, "tokens"), True, "Observation.tokens"),
        (("turns", 0, "observations", 0, "grid"), [1, 2], "Observation.grid"),
        (("turns", 1, "call", "end"), "2", "Call.end"),
        (("task", "options"), ["a"], "Task.options"),
        (("task", "video"), 3, "Task.video"),
        (("task", "target", "answer"), None, "Target.answer"),
        (("meta",), None, "Trajectory.meta"),
        (("outcome",), "won", "Trajectory.outcome"),
    ],
)
def test_a_field_of_another_type_is_named(path, value, name):
    data = json.loads(json.dumps(small().to_json()))
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=f"not a trajectory: .*{name}"):
        Trajectory.from_json(data)


def test_what_is_no_trajectory_is_refused():
    with pytest.raises(ValueError, match=r"not a trajectory: TypeError: .*surprise"):
        Trajectory.from_json(small().to_json() | {"surprise": 1})
    for line in ("{", "", "nothing"):
        with pytest.raises(json.JSONDecodeError):
            Trajectory.loads(line)
    for line in ("[1]", "3", "null"):
        with pytest.raises(ValueError, match="not a trajectory: a JSON"):
            Trajectory.loads(line)


@pytest.mark.parametrize("kind", ["system", "question", "observation", "error", "forced"])
def test_marks_and_observations_must_agree(kind):
    o = small().observations[0]
    with pytest.raises(ValueError, match=f"a {kind} turn has 0 media marks but 1 observations"):
        Turn(kind, "no mark", (o,))
    with pytest.raises(ValueError, match="has 2 media marks but 1 observations"):
        Turn(kind, "<video> <image>", (o,))
    with pytest.raises(ValueError, match="has 1 media marks but 0 observations"):
        Turn(kind, "<video>")


@pytest.mark.parametrize("kind", ["call", "answer", "text"])
def test_an_assistant_may_write_marks(kind):
    assert Turn(kind, "<video> <image>").observations == ()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown turn kind 'tool'; one of"):
        Turn("tool", "")
