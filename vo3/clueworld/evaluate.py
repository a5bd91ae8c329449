"""Asks the agent questions on held-out worlds, through real mp4 files.

    python -m vo3.clueworld.evaluate --workdir=out/clueworld-eval [--checkpoint=clueworld] [--worlds=100] [--videos=DIR] [--one-look | --baseline=VIEW] [--first=50000] [--options=0.5]

Every world gives three different questions of each quadrant (see `vo3.clueworld.tasks`), about half of them with options unless `--options` is another share. Every trajectory is written to
WORKDIR/NAME/trajectories.jsonl as it ends, NAME being agent, one-look or the baseline's view; a second run goes on where the first stopped, and is refused where the checkpoint
or what it is shown is another: WORKDIR/NAME/settings.json tells. The figures are printed and written to WORKDIR/NAME/summary.json, with the values behind them in
WORKDIR/NAME/measures.json.gz (`vo3.clueworld.kept`). `--one-look` asks the same model on uniform frames at as many visual tokens as an
agent with one clip sees (100), without any clip: what is in reach of one look. `--baseline` asks a one-turn model that was trained for it (`vo3.clueworld.recipe --view=VIEW`)
on uniform frames of a resolution of `vo3.clueworld.scales`, at the visual tokens of an agent with two clips.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from vo3.agent import VideoAgent
from vo3.clueworld import kept, one_turn, tasks
from vo3.clueworld.figures import Share, measures
from vo3.clueworld.film import write_video
from vo3.clueworld.scales import VIEWS, get_scale
from vo3.clueworld.world import HELD_OUT, World, WorldConfig, WorldError, make_world
from vo3.evals import fingerprint
from vo3.evals.journal import FILE, SETTINGS, Journal, JournalError, check_settings
from vo3.train.config import ConfigError
from vo3.trajectory import Task, Trajectory
from vo3.video import CropPolicy, VideoCrop, VideoError

FIRST_SEED = 50_000  # evaluation's worlds; below are tests and demos, from HELD_OUT on training
PER_QUADRANT = 3  # questions a world
OPTIONS = 0.5  # share of questions with options
_DRAWS = 10_000  # of them, until so many differ


class OneLook:
    """A video that can be looked at once: every call is refused."""

    def __init__(self, video: VideoCrop):
        self.video, self.name, self.duration = video, video.name, video.duration

    def overview(self):
        """The uniform frames."""
        return self.video.overview()

    def crop(self, t0: float, t1: float, strategy: str):
        """Refused."""
        raise VideoError("window", "no more calls.", "answer now.")


def one_look_policy(policy: CropPolicy) -> CropPolicy:
    """Uniform frames at the visual tokens of an overview and one fine clip, at the overview's resolution."""
    tokens = policy.overview_quota + policy.fine_quota
    return dataclasses.replace(policy, max_frames=tokens, overview_quota=tokens)


def questions(
    world: World,
    video: str,
    *,
    options: float = OPTIONS,
    quadrants: Sequence[str] = tuple(tasks.QUADRANTS),
) -> Iterator[Task]:
    """The tasks of `questions_of`."""
    for _, task in questions_of(world, video, options=options, quadrants=quadrants):
        yield task


def questions_of(
    world: World, video: str, *, options: float, quadrants: Sequence[str]
) -> Iterator[tuple[tasks.Question, Task]]:
    """The world's questions with their tasks, different ones in each quadrant; a share of them with options.

    Raises:
      WorldError: the world has too few cards for so many different questions.
    """
    rng = np.random.default_rng([0xE7A1, world.seed])
    for kinds in (tasks.QUADRANTS[name] for name in quadrants):
        asked: dict[str, tuple[str, tasks.Question]] = {}
        for _ in range(_DRAWS):
            kind = str(rng.choice(list(kinds)))
            question = kinds[kind](world, rng)
            asked.setdefault(question.text, (kind, question))
            if len(asked) == PER_QUADRANT:
                break
        else:
            raise WorldError(
                f"world {world.seed} has {len(world.cards)} cards, of which no {PER_QUADRANT} different questions on {', '.join(kinds)} can be asked; raise WorldConfig.fewest"
            )
        for number, (kind, question) in enumerate(asked.values()):
            # The id says what was drawn, which need not be what is asked (`tasks.kind_of`): it is the key of answers that are kept.
            task = tasks.make_task(
                world,
                question,
                video=video,
                task_id=f"{world.seed}-{tasks.source_of(question)}-{number}-{kind}",
                rng=rng,
                options=bool(rng.random() < options),
            )
            yield question, task


def evaluate(
    agent: VideoAgent,
    workdir: epath.Path,
    worlds: int,
    *,
    one_look: bool,
    config: WorldConfig | None = None,
    ask: Callable[[World, str], Iterator[Task]] = questions,
    first: int = FIRST_SEED,
    videos: epath.Path | None = None,
    settings: dict[str, Any] | None = None,
) -> list[Trajectory]:
    """Runs what is not in `trajectories.jsonl` yet; returns what these worlds were asked, in order.

    Args:
      agent: to ask.
      workdir: of the trajectories.
      worlds: how many, from the seed `first` on.
      one_look: no clip is given.
      config: of the worlds; None: the embedded model's.
      ask: (world, path of its video) -> questions.
      videos: where videos are kept, written where they are missing; None: beside `workdir`.
      settings: what decides the answers, kept beside them; None: the name of `workdir` tells it.

    Raises:
      ConfigError: `workdir` holds answers that were made with other settings, or with ones that nobody wrote down.
    """
    videos, rows = videos or workdir.parent / "videos", workdir / FILE
    if settings is not None:
        if rows.exists() and not (workdir / SETTINGS).exists():
            raise ConfigError(
                f"{workdir} holds answers without {SETTINGS}, so whose they are cannot be told; choose another --workdir, or remove the folder"
            )
        check_settings(workdir, settings)
    asked: list[str] = []
    with Journal(rows) as log:
        for seed in range(first, first + worlds):
            world = make_world(seed, config=config)
            path = videos / f"{seed}.mp4"
            questions_here = list(ask(world, str(path)))
            asked += [t.id for t in questions_here]
            todo = [t for t in questions_here if t.id not in log.done]
            if not todo:
                continue
            if not path.exists():
                write_video(world, path)
            video = VideoCrop(str(path), agent.crop_policy)
            shown = OneLook(video) if one_look else video
            for task in todo:
                policy = dataclasses.replace(agent.engine.policy, max_turns=1 if one_look else 8)
                log.append(agent.engine.rollout(task, shown, policy=policy).trajectory)
        known = {t.task.id: t for t in log.trajectories}
    return [known[name] for name in asked]


def main(argv: list[str] | None = None) -> None:
    """Runs, prints the table, writes it and what is behind it."""
    from vo3.models import CheckpointError, load

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--checkpoint", default="clueworld")
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--videos", help="where videos are kept (default: WORKDIR/videos)")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="seed of the first world")
    parser.add_argument(
        "--options", type=float, default=OPTIONS, help="share of questions with options"
    )
    looks = parser.add_mutually_exclusive_group()
    looks.add_argument("--one-look", action="store_true")
    looks.add_argument("--baseline", choices=VIEWS[1:], help="the view that the checkpoint sees")
    args = parser.parse_args(argv)
    if args.worlds < 1 or not 0 <= args.first <= HELD_OUT - args.worlds:
        raise SystemExit(
            f"--worlds {args.worlds} from --first {args.first} on: at least one, and seeds of worlds that are held out lie from 0 to {HELD_OUT - 1}"
        )
    if not 0 <= args.options <= 1:
        raise SystemExit(f"--options {args.options}: a share lies between 0 and 1")
    try:
        model = load(args.checkpoint)
    except CheckpointError as error:
        raise SystemExit(f"evaluate: {error}") from error
    policy = one_look_policy(model.crop_policy) if args.one_look else model.crop_policy
    if args.baseline:
        policy = get_scale("clueworld").view(args.baseline)
        if policy != model.crop_policy:
            raise SystemExit(
                f"--baseline={args.baseline}: {args.checkpoint} was not trained for this view; "
                f"train one with: python -m vo3.clueworld.recipe --view={args.baseline} --workdir=DIR"
            )
    agent = VideoAgent(model, crop_policy=policy, max_new_tokens=160)
    workdir = epath.Path(args.workdir)
    name = args.baseline or ("one-look" if args.one_look else "agent")
    videos = epath.Path(args.videos) if args.videos else None
    settings = {
        "checkpoint": fingerprint.of_checkpoint(model.source),
        "crop_policy": policy.to_json(),
        "one_look": name != "agent",
    }
    if args.options != OPTIONS:
        settings["options"] = args.options
    try:
        rows = evaluate(
            agent,
            workdir / name,
            args.worlds,
            one_look=name != "agent",
            ask=functools.partial(questions, options=args.options),
            first=args.first,
            videos=videos,
            settings=settings,
        )
    except (ConfigError, JournalError, VideoError) as error:
        raise SystemExit(f"evaluate: {error}") from error
    found = measures(rows)
    if args.baseline:
        found |= one_turn.said(rows)
    kept.save(workdir / name / kept.FILE, found)
    figures = {key: measure.figure for key, measure in found.items()}
    for key, value in figures.items():
        print(f"{key:52s} {value if isinstance(value, Share) else round(value, 3)}")
    plain = {
        key: value
        if isinstance(value, float)
        else {"right": value.right, "total": value.total, "interval": value.interval}
        for key, value in figures.items()
    }
    (workdir / name / "summary.json").write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
