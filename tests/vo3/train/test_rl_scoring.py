"""From rollouts to what is trained on; figures of a step; alarms."""

import dataclasses
import json

import fake_groups
import pytest

from vo3.rollout import GroupRollout, Sampling
from vo3.train import rl_metrics, scoring
from vo3.train.collect import GroupRoller
from vo3.train.config import override
from vo3.train.policy_loss import advantages
from vo3.train.rl_config import defaults
from vo3.trajectory import Trajectory


def scorer(**changes):
    return scoring.Scorer(override(defaults(), **changes))


def test_exceeded_rollouts_count_and_carry_no_loss():
    group = scorer().group(7, fake_groups.group())
    totals = [r.total for r in group.rollouts]
    # Right and well-formed with the clue's own window: 1 + 1 + 1. Cut by length, the text is whole: its reward is paid.
    assert totals == [3.0, 1.0, pytest.approx(2 + (1 + (2 * 4 / 6 + 1 + 4 / 6) / 4) / 2), 0.0, 0.0]
    assert [r.trained for r in group.rollouts] == [True, True, True, False, True]
    assert [r.advantage for r in group.rollouts] == pytest.approx(advantages(totals))
    assert group.dropped is None and group.number == 7


def test_equal_groups_are_dropped():
    group = scorer().group(0, fake_groups.group(kinds=(1, 1, 1)))
    assert group.dropped == "equal" and group.spread == 0
    assert scorer(**{"rl.min_std": 0.0}).group(0, fake_groups.group(kinds=(1, 1))).dropped is None
    assert scoring.kept([group]) == []


def test_a_group_that_could_not_begin_is_named(caplog):
    group = scorer().group(3, GroupRollout(fake_groups.task("x"), (), "VideoError: gone"))
    assert (group.dropped, group.rollouts) == ("unreadable", ())


def spoilt(rollout, **meta):
    return dataclasses.replace(
        rollout, trajectory=dataclasses.replace(rollout.trajectory, meta=meta, outcome="void")
    )


def test_lost_rollouts_are_in_neither_statistics_nor_loss():
    whole = fake_groups.group(kinds=(0, 1, 4))
    error = {"kind": "decode", "message": "gone"}
    lost = dataclasses.replace(
        whole, rollouts=(*whole.rollouts, spoilt(whole.rollouts[0], video_error=error))
    )
    group = scorer().group(0, lost)
    assert "gone" in group.rollouts[3].lost and not group.rollouts[3].trained
    want = scorer().group(0, whole)
    assert [r.advantage for r in group.rollouts[:3]] == [r.advantage for r in want.rollouts]
    assert rl_metrics.rollout_figures([group])["lost"] == 0.25
    one = dataclasses.replace(lost, rollouts=lost.rollouts[2:])
    assert scorer().group(0, one).dropped == "lost"


def test_a_reward_that_raises_costs_its_rollout_alone():
    whole = fake_groups.group(kinds=(0, 1, 4))
    bad = whole.rollouts[1].trajectory
    task = dataclasses.replace(
        bad.task, target=dataclasses.replace(bad.task.target, data_source="?")
    )
    broken = dataclasses.replace(whole.rollouts[1], trajectory=dataclasses.replace(bad, task=task))
    group = scorer().group(
        0, dataclasses.replace(whole, rollouts=(whole.rollouts[0], broken, whole.rollouts[2]))
    )
    assert [r.lost is None for r in group.rollouts] == [True, False, True]
    assert "no reward for data_source" in group.rollouts[1].lost and group.dropped is None


def test_options():
    plain = scorer().group(0, fake_groups.group())
    no_std = scorer(**{"rl.options": ("no_std",)}).group(0, fake_groups.group())
    totals = [r.total for r in plain.rollouts]
    mean = sum(totals) / 5
    assert [r.advantage for r in no_std.rollouts] == pytest.approx([t - mean for t in totals])
    long = scorer(
        **{"rl.options": ("overlong",), "rl.overlong_limit": 100, "rl.overlong_buffer": 90}
    )
    got = long.group(0, fake_groups.group()).rollouts
    for one, two in zip(got, plain.rollouts, strict=True):
        assert one.total == two.total - min(max((one.sampled - 10) / 90, 0), 1)
    assert [scoring.overlong_penalty(n, 100, 50) for n in (0, 50, 75, 100, 999)] == [
        0,
        0,
        0.5,
        1,
        1,
    ]


def test_figures_of_a_step():
    group = scorer().group(0, fake_groups.group())
    equal = scorer().group(1, fake_groups.group(kinds=(1, 1)))
    figures = rl_metrics.rollout_figures([group, equal])
    assert figures["accuracy"] == pytest.approx(2 / 7) and figures["dropped"] == 0.5
    assert figures["exceeded"] == pytest.approx(1 / 7) and figures["void"] == pytest.approx(2 / 7)
    # Rollouts 0, 2 and 3 call, once, once and twice: windows of 6, 4, 1 and 2 seconds of 40; the two of rollout 3 miss [3, 9], one of them.
    assert figures["calls"] == pytest.approx(4 / 7)
    assert figures["window"] == pytest.approx(13 / 4)
    assert figures["window_share"] == pytest.approx(13 / 160)
    assert figures["calls_missed"] == pytest.approx(1 / 4) and figures["calls_repeated"] == 0
    # All calls of a rollout together: [3, 9], [5, 9], and [1, 4] out of two that touch.
    assert figures["iou"] == pytest.approx((1 + 4 / 6 + 1 / 8) / 3)
    assert figures["accuracy_with_call"] == pytest.approx(2 / 3)
    assert figures["accuracy_without_call"] == 0
    assert figures["accuracy/clue_single_w_tool"] == figures["accuracy"]
    assert "grounding" in figures and rl_metrics.rollout_figures([]) == {}


def test_trajectories_carry_their_reward():
    group = scorer().group(4, fake_groups.group())
    text = scoring.with_reward(group.rollouts[3], step=9, number=4, index=3).dumps()
    notes = Trajectory.loads(text).meta["rl"]
    assert (notes["step"], notes["prompt"], notes["rollout"], notes["trained"]) == (9, 4, 3, False)
    assert set(notes["reward"]) == {"accuracy", "format", "bonus", "grounding", "total"}


BASE = {
    "window_share": 0.05, "calls": 1.0, "accuracy": 0.5, "calls_missed": 0.2, "calls_repeated": 0.0, "format": 0.9,
}  # fmt: skip


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ({}, None),
        ({"window_share": 0.6}, "windows grow"),
        ({"calls": 2.0}, "calls without use"),
        ({"calls": 2.0, "accuracy": 0.7}, None),
        ({"calls_missed": 0.8}, "touch no clue"),
        ({"calls_repeated": 0.5}, "repeat an earlier one"),
        ({"format": 0.99, "accuracy": 0.4}, "format rises"),
        ({"format": 0.99}, None),
    ],
)
def test_alarms(tmp_path, later, told):
    alarms = rl_metrics.Alarms()
    for _ in range(rl_metrics.WINDOW):
        assert alarms.add(BASE) == []
    rows = [alarms.add({**BASE, **later}) for _ in range(rl_metrics.WINDOW)]
    assert all(r == [] for r in rows[:-1])
    assert [x for x in rows[-1] if told and told in x] or (told is None and rows[-1] == [])
    # A run that goes on reads what came before from its log.
    lines = [json.dumps({"step": i + 1, **BASE}) for i in range(rl_metrics.WINDOW)]
    lines += [json.dumps({"step": rl_metrics.WINDOW + 1, **BASE, "calls": 99.0}), '{"st']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    again = rl_metrics.Alarms(tmp_path, start=rl_metrics.WINDOW)
    assert [again.add({**BASE, **later}) for _ in range(rl_metrics.WINDOW)][-1] == rows[-1]


@pytest.mark.parametrize("warm", [True, False])
def test_programs_are_compiled_before_the_first_rollout_if_asked_for(warm):
    said = []

    class Engine:
        def __init__(self, model):
            said.append(f"made {model}")

        def warm_up(self, sampling):
            said.append(f"compiled at {sampling.temperature}")
            return 3

        def update(self, model):
            said.append(f"given {model}")

    roller = GroupRoller(Engine, None, Sampling(temperature=0.7), warm_up=warm)
    roller.update("a")
    roller.update("b")
    assert said == ["made a", *["compiled at 0.7"] * warm, "given b"]
