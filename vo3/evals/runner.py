"""Evaluates a checkpoint on benchmarks and writes a result card for each.

    python -m vo3.evals.runner --config=configs/eval.py --config.benchmarks=mlvu,videomme --config.checkpoint=DIR --workdir=OUT

1. every benchmark's annotations are read and checked before a model is loaded;
2. the questions are grouped by video, so that each video is opened once; several processes (`config.shards`) share the videos;
3. every finished question is one line of WORKDIR/<benchmark>/<mode>/trajectories.jsonl; a run that was killed goes on where it stopped;
4. a question that cannot be asked is a line too: it counts as wrong and is listed;
5. when all questions of a benchmark are there, its card is written, and the table over all of them.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from vo3 import extras
from vo3.evals import cards, fingerprint, report
from vo3.evals import config as config_lib
from vo3.evals.asking import Asked, Asker, EngineAsker, GroupAsker
from vo3.evals.benchmarks import BENCHMARKS, Benchmark, Read
from vo3.evals.journal import (
    Journal,
    JournalError,
    check_settings,
    may_be_asked,
    part_name,
    read_parts,
)
from vo3.evals.judge import JudgeError
from vo3.evals.modes import Mode, one_turn, prepare
from vo3.evals.progress import Progress
from vo3.evals.questions import AnnotationError, Question
from vo3.evals.scoring import grade
from vo3.models.qwen2_5_vl.int8 import QwixMissing
from vo3.models.safetensors_io import CheckpointError
from vo3.rollout.setting import own_crop, own_dialect, own_pack
from vo3.train.config import ConfigError, flatten, parse_flags
from vo3.trajectory import Trajectory
from vo3.video.source import plain_path


@dataclasses.dataclass(frozen=True)
class Job:
    """One benchmark in one mode."""

    benchmark: Benchmark
    read: Read
    mode: Mode

    @property
    def questions(self) -> tuple[Question, ...]:
        """All questions, of every process."""
        return self.read.questions

    def folder(self, workdir: epath.Path) -> epath.Path:
        """Where its results go."""
        return workdir / self.benchmark.name / self.mode.key


# ---------------------------------------------------------------- what is asked


def read_benchmarks(config: ml_collections.ConfigDict) -> list[tuple[Benchmark, Read]]:
    """The questions of every benchmark, cut to `config.limit`.

    Raises:
      AnnotationError: see `Benchmark.load`.
    """
    found = []
    for name in config_lib.names(config.benchmarks):
        root = config.roots[name] or epath.Path(config.data_root) / name
        read = BENCHMARKS[name].load(root, config_lib.options_of(config), partial=config.partial)
        if 0 < config.limit < len(read.questions):
            read = dataclasses.replace(read, questions=read.questions[: config.limit], cut=True)
        found.append((BENCHMARKS[name], read))
    return found


def by_video(questions: Sequence[Question]) -> list[list[Question]]:
    """The questions on each video, videos in order of first appearance."""
    groups: dict[Any, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.task.video, []).append(question)
    return list(groups.values())


def modes_of(config: ml_collections.ConfigDict, model: Any, pack: Any) -> list[Mode]:
    """Every mode at every quota, for a model."""
    limits = config_lib.rollout_policy(config, dialect=own_dialect(model))
    own = own_crop(model, limits.dialect)
    crop = config_lib.crop_policy(config, own, model.config.vision.token_size)
    return [
        prepare(
            name,
            crop=crop,
            rollout=limits,
            pack=pack,
            quota=quota,
            direct_quota=config.direct_quota,
        )
        for quota in config_lib.quotas(config)
        for name in config_lib.names(config.modes)
    ]


def settings_of(
    config: ml_collections.ConfigDict, job: Job, model: Any, checkpoint_hash: str
) -> dict[str, Any]:
    """Everything that decides the answers; a run goes on only under the same."""
    chosen = flatten(config)
    kept = ("temperature", "top_p", "top_k", "seed", "subtitles", "open_questions", "batch")
    settings = {
        "benchmark": job.benchmark.name,
        "annotations": {file.name: file.sha256 for file in job.read.files},
        "checkpoint": {"name": config.checkpoint, "hash": checkpoint_hash},
        "prompt_pack": {"name": job.mode.pack.name, "hash": fingerprint.of_pack(job.mode.pack)},
        "mode": job.mode.name,
        "crop_policy": job.mode.crop.to_json(),
        "rollout": dataclasses.asdict(job.mode.rollout),
        "sampling": {key: chosen[key] for key in kept},
        "mrope_time": model.config.mrope_time,
        "dtype": str(model.embed.table[...].dtype),
    }
    if config.quantize:
        settings["quantize"] = config.quantize
    return json.loads(json.dumps(settings))  # as it is read again: lists for tuples


# ---------------------------------------------------------------- asking


def run_job(
    job: Job,
    asker: Asker,
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    progress: Progress,
    *,
    judge: Any = None,
    made_by: str = "",
) -> None:
    """Asks what this process has to ask and has not asked yet; `made_by` is kept with every answer."""
    folder = job.folder(workdir)
    hashes: dict[Any, str | None] = {}
    mine = by_video(job.questions)[config.shard :: config.shards]
    by_id = {q.id: q for group in mine for q in group}
    with Journal(folder / part_name(config.shard, config.shards), again=True) as journal:
        progress.start(job.benchmark.title, job.mode.key, len(by_id))
        # Of other processes too: the number of parts may have been another when a line was written.
        known = {t.task.id: t for t in read_parts(folder) if not may_be_asked(t)}
        tell = _Graded(job, judge, progress)
        for name in known.keys() & by_id.keys():
            tell(by_id[name], known[name])
        todo = [
            Asked(group[0].task.video, tasks)
            for group in mine
            if (tasks := tuple(q.task for q in group if q.id not in known))
        ]
        for trajectory in asker.ask(todo):
            source = trajectory.task.video
            if source not in hashes:
                hashes[source] = _hash(source)
            meta = trajectory.meta | {"video_hash": hashes[source], "made_by": made_by}
            journal.append(dataclasses.replace(trajectory, meta=meta))
            tell(by_id[trajectory.task.id], trajectory)
        progress.stop()


class _Graded:
    """Tells the progress of what is right so far. A judge that is lost on the way costs no answer: the card, made last, needs it."""

    def __init__(self, job: Job, judge: Any, progress: Progress):
        self._job, self._judge, self._progress = job, judge, progress

    def __call__(self, question: Question, trajectory: Trajectory) -> None:
        scorer = self._job.benchmark.scorer
        try:
            verdict = grade(question, trajectory, scorer, self._judge)
        except JudgeError as error:
            self._progress.say(f"{error}. Asking goes on; the score shown is the rule's")
            self._judge = None
            verdict = grade(question, trajectory, scorer)
        self._progress.add(verdict)


def _hash(source: Any) -> str | None:
    """The video's hash; None for frames, and for what cannot be read: its answers say why."""
    if not isinstance(source, str):
        return None
    try:
        return fingerprint.of_file(plain_path(source))
    except Exception:  # object stores have errors of their own, and no answer may be lost to them
        return None


def evaluate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Runs everything that `config` asks for.

    Args:
      config: see `vo3.evals.config.defaults`.
      workdir: results go here; a second call goes on where the first stopped.

    Returns:
      The cards that are complete; with several shards those of the process that finished last.

    Raises:
      ConfigError, AnnotationError, CheckpointError: before anything is asked.
      JournalError: answers that were kept cannot be read.
      JudgeError: the judge cannot be reached, when all is asked.
    """
    config_lib.validate(config)
    workdir = epath.Path(workdir)
    benchmarks = read_benchmarks(config)
    model, pack = load(config)
    judge = _judge(config, workdir)
    checkpoint_hash = fingerprint.of_checkpoint(model.source)
    environment = fingerprint.environment()
    jobs = [
        Job(benchmark, read, one_turn(mode) if benchmark.kind == "grounding" else mode)
        for mode in modes_of(config, model, pack)
        for benchmark, read in benchmarks
    ]
    settings = [settings_of(config, job, model, checkpoint_hash) for job in jobs]
    for job, one in zip(jobs, settings, strict=True):
        check_settings(job.folder(workdir), one)
    done = []
    with Progress() as progress:
        modes = [job.mode for job in jobs]
        for job, one, asker in zip(jobs, settings, askers(modes, model, config), strict=True):
            began = time.perf_counter()
            made_by = fingerprint.made_by(environment)
            run_job(job, asker, config, workdir, progress, judge=judge, made_by=made_by)
            card = _finish(job, one, environment, config, workdir, judge)
            if card is None:
                progress.say(
                    f"{job.benchmark.title} {job.mode.key}: this part is done after {time.perf_counter() - began:.0f} s; "
                    "the card is written by the process that finishes last"
                )
                continue
            done.append(card)
    for problem in report.write(workdir):
        logging.warning("%s", problem)
    return done


def load(config: ml_collections.ConfigDict) -> tuple[Any, Any]:
    """The config's model, spread over the mesh if there is one, and the prompt pack."""
    import vo3.models

    options: dict[str, Any] = {"mrope_time": config.mrope_time} if config.mrope_time else {}
    if config_lib.sharded(config):
        from vo3.train.sharding import make_mesh, row_ways

        mesh = options["mesh"] = make_mesh(config)
        ways = max(1, row_ways(mesh) // jax.process_count())
        if config.batch % ways:
            raise ConfigError(
                f"batch={config.batch} conversations at a time cannot be dealt out to the {ways} row shards of the mesh; set batch to a multiple of {ways}"
            )
    if config.quantize:
        options["quantize"] = config.quantize
    model = vo3.models.load(config.checkpoint, dtype=config.dtype or None, **options)
    try:
        pack = own_pack(model, config.prompt_pack or None, config.dialect or None)
    except ValueError as error:
        raise ConfigError(f"prompt_pack: {error}") from error
    return model, pack


def _judge(config: ml_collections.ConfigDict, workdir: epath.Path) -> Any:
    if not config.judge.url:
        return None
    from vo3.evals.judge import Judge

    return Judge.from_config(config.judge, cache=workdir / "judged.jsonl")


def askers(modes: Sequence[Mode], model: Any, config: ml_collections.ConfigDict) -> Iterator[Asker]:
    """An asker for each mode; engines share what they have compiled."""
    from vo3.rollout.buckets import GroupBuckets
    from vo3.rollout.engine import Engine
    from vo3.rollout.groups import GroupEngine

    batched = config.batch > 1 or config_lib.sharded(config)
    programs: Any = None
    for mode in modes:
        given = {"pack": mode.pack, "policy": mode.rollout, "programs": programs}
        asker = {
            "mode": mode,
            "sampling": config_lib.sampling(config),
            "timeout_s": config.time_limit,
        }
        if batched:
            groups = GroupEngine(
                model,
                buckets=GroupBuckets().showing(mode.crop),
                slots=config.batch,
                rollouts=1,
                timeout_s=config.time_limit,
                **given,
            )
            programs = groups.programs
            yield GroupAsker(groups, **asker)
        else:
            engine = Engine(model, **given)
            programs = engine.programs
            yield EngineAsker(engine, **asker)


def _finish(
    job: Job,
    settings: dict[str, Any],
    environment: dict[str, Any],
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    judge: Any,
) -> dict[str, Any] | None:
    """Writes the card once all processes are through; None before."""
    folder = job.folder(workdir)
    found = {t.task.id: t for t in read_parts(folder)}
    if any(q.id not in found for q in job.questions):
        return None
    asked = [found[q.id] for q in job.questions]
    makers = collections.Counter(t.meta.get("made_by") or "not recorded" for t in asked)
    card = cards.make(
        job.benchmark,
        job.read,
        asked,
        mode=job.mode,
        settings=settings,
        environment=environment | {"answers": dict(makers.most_common())},
        partial=config.partial or job.read.cut,
        judge=judge,
    )
    cards.write(card, folder)
    return card


# ---------------------------------------------------------------- the command

ERRORS = (
    *(ConfigError, AnnotationError, CheckpointError, QwixMissing, JudgeError),
    *(JournalError, cards.CardError, OSError),
)


def define_flags() -> None:
    """The command's flags; defined by the program alone."""
    config_flags.DEFINE_config_file("config", None, "Evaluation configuration.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Results go here.")
    flags.mark_flags_as_required(["config", "workdir"])


def main(_: Sequence[str]) -> None:
    """Entry point: exit code 0 when the cards are written, 1 with one line on a known error."""
    try:
        made = evaluate(flags.FLAGS.config, flags.FLAGS.workdir)
    except ImportError as error:
        told = extras.remedy(error)
        if told is None:
            raise
        raise SystemExit(f"vo3.evals.runner: {told}") from error
    except ERRORS as error:
        raise SystemExit(f"vo3.evals.runner: {error}") from error
    print(report.table(made), file=sys.stdout)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
