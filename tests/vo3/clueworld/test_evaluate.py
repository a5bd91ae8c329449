"""The evaluation: its figures by hand, and one world end to end with the embedded model."""

import dataclasses
import functools
import json
import types

import numpy as np
import pytest

from vo3.clueworld import evaluate, kept, tables, tasks
from vo3.clueworld.evaluate import questions
from vo3.clueworld.figures import Share, measures
from vo3.clueworld.tasks import GROUNDING, MULTI_SEEN, MULTI_TOOL, SINGLE_TOOL
from vo3.clueworld.views import crop_policy
from vo3.clueworld.world import HELD_OUT, WorldConfig, WorldError, make_world
from vo3.evals.journal import Journal
from vo3.rollout import RolloutPolicy
from vo3.train.config import ConfigError
from vo3.trajectory import Call, Observation, Trajectory, Turn
from vo3.video import plan_clip


def answered(task, answer, *calls):
    shown = Observation(0, 0.0, 900.0, 1.0, (0.0, 1.0), (0, 4), 28, 56, (1, 2, 4), 2)
    turns = [Turn("question", "<video>", observations=(shown,))]
    turns += [Turn("call", "-", call=call) for call in calls]
    if answer is not None:
        turns.append(Turn("answer", f"<think>-</think>\n<answer>{answer}</answer>", answer=answer))
    return Trajectory(task, tuple(turns), outcome="answered", answer=answer)


def figures_of(rows):
    return {name: measure.figure for name, measure in measures(rows).items()}


def test_figures_by_hand():
    asked = {}
    for task in questions(make_world(3), "w.mp4"):
        asked.setdefault(task.target.data_source, []).append(task)
    digit, both = asked[SINGLE_TOOL], asked[MULTI_TOOL][0]
    plain, when = asked[MULTI_SEEN], asked[GROUNDING]
    clue = digit[0].target.clues[0]
    inside = Call(clue.start, (clue.start + clue.end) / 2, "fine")
    two = [Call(c.start, c.end, "fine") for c in both.target.clues]
    moment = when[0].target.clues[0]
    half = tasks.segment(moment.start, (moment.start + moment.end) / 2)
    rows = [
        answered(digit[0], digit[0].target.answer, inside),
        answered(digit[1], "nothing", Call(0.0, 1.0, "fine")),
        answered(digit[2], None),
        answered(both, both.target.answer, *two),
        *(answered(task, task.target.answer) for task in plain[:2]),
        answered(plain[2], "nothing", Call(0.0, 1.0, "fine")),
        answered(when[0], when[0].target.answer),
        answered(when[1], "nothing"),
        answered(dataclasses.replace(when[0], id="other-when"), half),
    ]
    figures = figures_of(rows)
    assert figures["clue_single_w_tool: right"] == Share(1, 3)
    assert figures["clue_single_w_tool: made as many calls as clues"] == Share(2, 3)
    assert figures["clue_multi_w_tool: right"] == Share(1, 1)
    assert figures["clue_multi_w_tool: made as many calls as clues"] == Share(1, 1)
    assert figures["clue_multi_wo_tool: right"] == Share(2, 3)
    assert figures["clue_multi_wo_tool: made no call"] == Share(2, 3)
    assert figures["temporal_grounding: IoU >= 0.5"].right in (1, 2)  # half, but for rounding
    assert figures["temporal_grounding: mean IoU"] == pytest.approx(0.5, abs=0.02)
    assert figures["calls: window hits a clue (IoU > 0)"] == Share(3, 4)
    assert figures["calls: mean IoU with the nearest clue"] == pytest.approx(2.5 / 4)
    assert figures["with tool, video of 10 to 30 minutes: right"] == Share(2, 4)


def test_a_slip_is_a_wrong_letter_for_what_was_said_rightly():
    task = next(t for t in questions(make_world(3), "w.mp4", options=1.0) if t.target.clues)
    right, truth = task.target.answer, task.options[task.target.answer]
    given, other = next((k, v) for k, v in task.options.items() if k != right)

    def said(text, letter, name):
        turn = Turn("answer", f"<think>{text}</think>\n<answer>{letter}</answer>", answer=letter)
        begun = answered(dataclasses.replace(task, id=name), None)
        return dataclasses.replace(begun, turns=(*begun.turns, turn), answer=letter)

    rows = [
        said(f"the red card shows {truth}, {right}.", right, "3-a"),
        said(f"the red card shows {truth}, {given}.", given, "3-b"),
        said(f"the red card shows {other}, {given}.", given, "3-c"),
        answered(dataclasses.replace(task, id="3-d"), None),
    ]
    name = f"{task.target.data_source}: wrong, with options: but for the letter"
    assert measures(rows)[name].values == {"3-b": True, "3-c": False, "3-d": False}


def test_rows_by_kind_are_of_what_was_asked():
    worlds = (make_world(seed) for seed in range(evaluate.FIRST_SEED, evaluate.FIRST_SEED + 20))
    asked = [t for world in worlds for t in questions(world, "w.mp4")]
    figures = figures_of([answered(task, task.target.answer) for task in asked])
    for kind, text in (("ends", "the first and the last"), ("higher", "the higher digit")):
        number = sum(text in task.question for task in asked)
        assert figures[f"clue_multi_w_tool: right, {kind}"] == Share(number, number)
    # Of those drawn as a sum of the ends, many are comparisons, as the sum is one digit.
    drawn = sum(task.id.endswith("-ends") for task in asked)
    assert figures["clue_multi_w_tool: right, ends"].total < drawn


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # Newcombe 1998, table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)],
)
def test_wilson_intervals_of_the_literature(right, total, low, high):
    np.testing.assert_allclose(Share(right, total).interval, (low, high), atol=6e-5)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--worlds", "0"], "--worlds 0 from --first 50000 on: at least one"),
        (["--worlds", "50001"], "seeds of worlds that are held out lie from 0 to 99999"),
        (["--first", "99999", "--worlds", "2"], "--worlds 2 from --first 99999 on"),
        (["--first", "-1"], "--first -1"),
        (["--options", "1.5"], "--options 1.5: a share lies between 0 and 1"),
    ],
)
def test_worlds_that_are_not_held_out_are_refused(tmp_path, wrong, told):
    with pytest.raises(SystemExit, match=told):
        evaluate.main(["--workdir", str(tmp_path / "run"), *wrong])
    assert not (tmp_path / "run").exists()


def test_a_world_of_two_cards_has_too_few_questions():
    config = dataclasses.replace(WorldConfig(), fewest=2, most=2)
    with pytest.raises(WorldError, match=r"world 3 has 2 cards, .* raise WorldConfig\.fewest"):
        list(questions(make_world(3, config=config), "w.mp4"))


def test_questions_are_fixed_by_the_seed_and_held_out():
    assert evaluate.FIRST_SEED < HELD_OUT
    one, two = (list(questions(make_world(50_000), "w.mp4")) for _ in range(2))
    assert one == two and len({t.id for t in one}) == len({t.question for t in one}) == 15
    sources = [t.target.data_source for t in one]
    assert sources == [quadrant for quadrant in tasks.QUADRANTS for _ in range(3)]


def test_one_look_sees_as_many_tokens_as_an_agent_with_a_clip():
    policy = evaluate.one_look_policy(crop_policy())
    plan = plan_clip(fps=4.0, frames=7200, height=168, width=336, policy=policy)
    assert (plan.tokens, len(plan.indices)) == (100, 100)


def test_evaluation_end_to_end_and_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        evaluate,
        "make_world",
        lambda seed, config=None: make_world(seed, duration=120 + seed % 7, config=config),
    )
    arguments = ["--workdir", str(tmp_path), "--worlds", "1"]
    evaluate.main(arguments)
    rows = (tmp_path / "agent" / "trajectories.jsonl").read_text().splitlines()
    assert len(rows) == 15
    first = capsys.readouterr().out
    assert "clue_single_w_tool: right" in first
    evaluate.main(arguments)  # nothing is left to do
    assert (tmp_path / "agent" / "trajectories.jsonl").read_text().splitlines() == rows
    assert capsys.readouterr().out == first
    summary = json.loads((tmp_path / "agent" / "summary.json").read_text())
    found = kept.load(tmp_path / "agent" / kept.FILE)
    assert list(found) == list(summary) and summary["clue_single_w_tool: right"]["total"] == 3
    assert found.keys() == tables.run_of(tmp_path / "agent").keys()
    evaluate.main([*arguments, "--one-look"])
    looks = (tmp_path / "one-look" / "trajectories.jsonl").read_text().splitlines()
    assert len(looks) == 15
    assert all(len(Trajectory.loads(line).observations) == 1 for line in looks)
    with pytest.raises(SystemExit, match=r"evaluate: .*made with other settings \(checkpoint was"):
        evaluate.main([*arguments, "--checkpoint", "clueworld-sft"])
    with pytest.raises(
        SystemExit, match=r"evaluate: .*made with other settings \(options was None"
    ):
        evaluate.main([*arguments, "--options", "1"])
    with (
        Journal(tmp_path / "agent" / "trajectories.jsonl"),
        pytest.raises(SystemExit, match=r"evaluate: .*being written to by another run"),
    ):
        evaluate.main(arguments)


class Engine:
    """Answers everything with a text that another reader of lines would split."""

    policy = RolloutPolicy()

    def __init__(self):
        self.asked = []

    def rollout(self, task, video, *, policy):
        self.asked.append(task.id)
        return types.SimpleNamespace(trajectory=answered(task, "one\u2028two"))


def test_answers_are_kept_for_what_is_asked_and_for_who_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "write_video", lambda world, path: path)
    monkeypatch.setattr(evaluate, "VideoCrop", lambda path, policy: path)
    agent = types.SimpleNamespace(engine=Engine(), crop_policy=None)
    ask = functools.partial(evaluate.evaluate, agent, tmp_path / "a", one_look=False)
    first = ask(2, settings={"checkpoint": "x"})
    assert len(first) == len(agent.engine.asked) == 30
    assert ask(2, settings={"checkpoint": "x"}) == first  # read again, and nothing is asked
    assert ask(1, settings={"checkpoint": "x"}) == first[:15] and len(agent.engine.asked) == 30
    with pytest.raises(ConfigError, match=r"checkpoint was 'x', is 'y'.*choose another --workdir"):
        ask(1, settings={"checkpoint": "y"})
    # A torn line is of a kill: its question is asked again.
    rows = tmp_path / "a" / "trajectories.jsonl"
    rows.write_bytes(rows.read_bytes()[:-9])
    assert ask(2, settings={"checkpoint": "x"}) == first and len(agent.engine.asked) == 31
    (tmp_path / "a" / "settings.json").unlink()
    with pytest.raises(ConfigError, match=r"answers without settings.json.*remove the folder"):
        ask(1, settings={"checkpoint": "x"})


def test_trained_seeds_and_checkpoints_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="held out"):
        evaluate.main(["--workdir", str(tmp_path), "--worlds", "60000"])
    with pytest.raises(SystemExit, match=r"evaluate: .*none does not exist; give the directory"):
        evaluate.main(["--workdir", str(tmp_path), "--checkpoint", str(tmp_path / "none")])
