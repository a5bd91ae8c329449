"""What RL changed on held-out worlds: evaluations of one checkpoint before it and of others after it, question by question.

    python -m vo3.clueworld.evaluate --workdir=out/rl-eval/before --videos=out/videos --worlds=84
    python -m vo3.clueworld.evaluate --workdir=out/rl-eval/seed-0 --videos=out/videos --worlds=84 --checkpoint=out/clueworld-rl/0/export
    python -m vo3.clueworld.gains --before=out/rl-eval/before/agent out/rl-eval/seed-0/agent [out/rl-eval/seed-1/agent ...]

Folders hold the `trajectories.jsonl` of `vo3.clueworld.evaluate`; questions that one of them lacks are left out of all. For every quadrant: right answers (mean IoU in grounding), calls per question, and IoU of a
question's calls with its clues, before and after. After is the mean over the runs, with the lowest and the highest; the difference has a 95 % interval over
worlds and runs at once (bootstrap, `vo3.clueworld.resample`), and each run an exact two-sided McNemar test against before.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from vo3.clueworld import tasks
from vo3.clueworld.figures import is_right
from vo3.clueworld.resample import interval, world_of
from vo3.evals.journal import FILE, read_parts
from vo3.evals.statistics import mcnemar
from vo3.rewards import score
from vo3.rewards.grounding import Interval, overlap
from vo3.trajectory import Trajectory

Answers = Mapping[str, Trajectory]  # by id of the question


def read(folder: epath.PathLike) -> dict[str, Trajectory]:
    """The trajectories of an evaluation.

    Raises:
      FileNotFoundError: the folder has none.
      JournalError: one cannot be read.
    """
    file = epath.Path(folder) / FILE
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; make it with vo3.clueworld.evaluate")
    return {row.task.id: row for row in read_parts(epath.Path(folder))}


def right(trajectory: Trajectory) -> float:
    """1 for the right answer, else 0; in grounding the IoU of the answered segment."""
    if trajectory.task.target.data_source == tasks.GROUNDING:
        return score(trajectory, trajectory.task.target).accuracy
    return float(is_right(trajectory))


def calls(trajectory: Trajectory) -> float:
    """How many calls were made."""
    return float(len(trajectory.calls))


def iou(trajectory: Trajectory) -> float | None:
    """Of all calls with the clues; 0 where clues were not looked for, None where there are none to look for."""
    source = trajectory.task.target.data_source
    if source not in (tasks.SINGLE_TOOL, tasks.MULTI_TOOL):
        return None
    clues = [Interval(c.start, c.end) for c in trajectory.task.target.clues]
    met = overlap([Interval(c.start, c.end) for c in trajectory.calls], clues)
    return 0.0 if met is None else met.iou


@dataclasses.dataclass(frozen=True)
class Change:
    """A measure of some questions before and after.

    Attributes:
      before: its mean.
      after: its mean in each run.
      questions: behind each of them.
      interval: 95 % of the difference of the means, over worlds and runs.
    """

    before: float
    after: tuple[float, ...]
    questions: int
    interval: tuple[float, float]


def change(
    measure: Callable[[Trajectory], float | None], before: Answers, after: Sequence[Answers]
) -> Change | None:
    """A measure of the questions that all evaluations have and that it says something of; None where there are none."""
    shared = set(before).intersection(*after)
    names = sorted(name for name in shared if measure(before[name]) is not None)
    if not names:
        return None
    old, *new = (np.array([measure(run[name]) for name in names]) for run in (before, *after))
    gains = np.stack(new) - old
    return Change(
        float(old.mean()),
        tuple(float(run.mean()) for run in new),
        len(names),
        interval(gains, [world_of(name) for name in names]),
    )


def p_value(before: Answers, after: Answers) -> float:
    """McNemar's, of right answers to the questions that both have."""
    pairs = [(right(before[n]) == 1.0, right(after[n]) == 1.0) for n in set(before) & set(after)]
    return mcnemar(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))


def table(before: Answers, after: Sequence[Answers]) -> str:
    """The comparison as a Markdown table, of the questions that all have.

    Raises:
      ValueError: there are none.
    """
    shared = set(before).intersection(*after)
    if not shared:
        raise ValueError("the evaluations have no question in common; ask all on the same worlds")
    before, *after = ({name: run[name] for name in shared} for run in (before, *after))
    lines = [
        "| | questions | before | after | difference | McNemar p |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[str, Callable[[str], bool]] = {
        "with tool": lambda source: source in (tasks.SINGLE_TOOL, tasks.MULTI_TOOL),
        **{name: lambda source, n=name: source == n for name in tasks.QUADRANTS},
    }
    of = lambda run, wanted: {
        k: t for k, t in run.items() if wanted(t.task.target.data_source)
    }  # fmt: skip
    for name, wanted in groups.items():
        old, new = of(before, wanted), [of(run, wanted) for run in after]
        grounding = name == tasks.GROUNDING
        measures = {"mean IoU" if grounding else "right": (right, not grounding)}
        measures |= {} if grounding else {"calls": (calls, False), "IoU of calls": (iou, False)}
        for label, (measure, share) in measures.items():
            if (found := change(measure, old, new)) is None:
                continue
            p = ", ".join(f"{p_value(old, run):.2g}" for run in new) if share else ""
            cells = (f"{name}: {label}", str(found.questions), *_cells(found, share), p)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(found: Change, share: bool) -> tuple[str, str, str]:
    form = (lambda x: f"{100 * x:.1f} %") if share else (lambda x: f"{x:.2f}")
    signed = (lambda x: f"{100 * x:+.1f}") if share else (lambda x: f"{x:+.2f}")
    middle = float(np.mean(found.after))
    spread = "" if len(found.after) < 2 else f" ({form(min(found.after))} to {form(max(found.after))})"  # fmt: skip
    low, high = found.interval
    gain = f"{signed(middle - found.before)} [{signed(low)}, {signed(high)}]"
    return form(found.before), f"{form(middle)}{spread}", gain


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", required=True, metavar="DIR")
    parser.add_argument("after", nargs="+", metavar="DIR", help="one a run")
    args = parser.parse_args(argv)
    try:
        print(table(read(args.before), [read(folder) for folder in args.after]))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"gains: {error}") from error


if __name__ == "__main__":
    main()
