"""Makes tool trajectories of (video, question, answer) triplets: the launch commands stand in `configs/data_prep.py`.

WORKDIR holds `rows.sqlite` (every record), `replies.sqlite` (every reply that was paid for), and after a run
`trajectories.jsonl` (rows for SFT), `rl.jsonl` (rows for RL), `rejected.jsonl` and `report.html`. Killed anywhere and started
again, it goes on where it was: stored replies are not asked for again, finished records are not made again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence

import ml_collections
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from data_prep import admission, engine, estimate, pipeline
from data_prep import config as configs
from data_prep.models.base import ModelError
from data_prep.models.calling import Tally
from data_prep.patience import EndpointFailed
from data_prep.schema import Triplet
from data_prep.stages import material
from data_prep.store import Store


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
      progress: rows.
      tally: calls of this process.
      files: lines by file name.
    """

    progress: engine.Progress
    tally: Tally
    files: dict[str, int]


def synthesize(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, *, bar: bool = False
) -> Outcome:
    """Runs the whole pipeline; see the module's text.

    Raises:
      ConfigError: a config that cannot be run.
      ModelError: no API key.
      EndpointFailed: the endpoint refuses or answers nothing any more, or no video can be read. What is done is stored.
    """
    workdir = epath.Path(workdir)
    store = Store(workdir)
    try:
        return asyncio.run(_synthesize(config, workdir, store, bar))
    finally:
        store.close()


async def _synthesize(
    config: ml_collections.ConfigDict, workdir: epath.Path, store: Store, bar: bool
) -> Outcome:
    # Before anything is paid for.
    if config.engine not in ("local", "beam"):
        raise configs.ConfigError(f"config.engine is {config.engine!r}; local or beam")
    if config.engine == "beam":
        configs.exchange(config, workdir)
    context = configs.context(config, workdir)
    try:
        run = pipeline.fingerprint(context)
        made = await material.triplets(configs.read_source(config), context, store)
        _admit(store, made.triplets, config, run)
        if config.engine == "beam":
            from data_prep import beam_engine

            # Workers of the direct runner may share this process, and have event loops of their own: another thread.
            progress = await asyncio.to_thread(beam_engine.run, config, workdir, fingerprint=run)
        else:
            with _bar(bar) as report:
                progress = await engine.run(
                    store, context, fingerprint=run, under_way=config.under_way, report=report
                )
    finally:
        await context.caller.client.close()
        context.caller.cache.close()
    if made.failed:
        progress.failed += made.failed
        progress.failure = progress.failure or made.failure
    files = store.export()
    (workdir / "config.json").write_text(config.to_json_best_effort(indent=1) + "\n")
    from data_prep import report as reports

    reports.write(store)
    return Outcome(progress, context.caller.tally, files)


def _admit(
    store: Store, triplets: Iterator[Triplet], config: ml_collections.ConfigDict, run: str
) -> None:
    settings = configs.admission(config)
    checked = admission.admit(triplets, settings=settings, root=config.videos)
    store.admit(
        (pipeline.begin(triplet, run).key, triplet, reason, detail)
        for triplet, reason, detail in checked
    )


class _bar:
    """A progress bar on standard error, or nothing."""

    def __init__(self, show: bool):
        self._show = show

    def __enter__(self):
        if not self._show:
            return lambda progress: None
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._rich = Progress(
            TextColumn("synthesis"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"), console=Console(stderr=True),
        )  # fmt: skip
        self._rich.start()
        task = self._rich.add_task("rows", total=None, note="")

        def report(progress: engine.Progress) -> None:
            note = f"{progress.accepted} accepted"
            if progress.failed:
                note += f", {progress.failed} without a verdict"
            self._rich.update(task, total=progress.total, completed=progress.done, note=note)

        return report

    def __exit__(self, *error) -> None:
        if self._show:
            self._rich.stop()


def _dry_run(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    store = Store(workdir / "dry-run")
    try:
        context = configs.context(config, workdir)
        run = pipeline.fingerprint(context)
        _admit(store, material.expected(configs.read_source(config), context), config, run)
        videos, bare = material.count(configs.read_source(config))
        lines = estimate.estimate(store, context, config, videos=videos, without_captions=bare)
        print(estimate.table(lines))
    finally:
        store.close()
        (workdir / "dry-run").rmtree()


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    workdir = epath.Path(flags.FLAGS.workdir)
    try:
        if flags.FLAGS.dry_run:
            _dry_run(flags.FLAGS.config, workdir)
            return
        outcome = synthesize(flags.FLAGS.config, workdir, bar=sys.stderr.isatty())
    except (configs.ConfigError, ModelError, EndpointFailed, ValueError, OSError) as error:
        print(f"synthesize: {error}", file=sys.stderr)
        sys.exit(2)
    tally, progress = outcome.tally, outcome.progress
    print(json.dumps({"workdir": str(workdir), **outcome.files, "calls": tally.calls,
                      "cached": tally.cached, "retries": tally.retries, "repairs": tally.repairs,
                      "cost": round(tally.cost, 4), "without_verdict": progress.failed}))  # fmt: skip
    if progress.failed:
        print(f"synthesize: {progress.failed} rows or videos have no verdict, and are tried again by the next run; the last: {progress.failure}", file=sys.stderr)  # fmt: skip
        sys.exit(1)


def run() -> None:
    """Console entry. The flags are defined here, so that modules of several commands can be imported together."""
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "folder of the run")
    flags.DEFINE_bool("dry_run", False, "count and price the calls, make none")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)


if __name__ == "__main__":
    run()
