"""Which rows can be trained on with the videos at hand, why others cannot, and what to fetch.

Every row is read as training reads it (`vo3.data.seeker`), every video is opened once. A row is trainable when it breaks no
rule, its videos are there, below the root and readable, last as long as the row says, and hold its windows as training
asks it of them (`vo3.data.lengths.planned`).
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vo3 import json_line
from vo3.data.clips import ClipRef, VideoShape, clip_refs
from vo3.data.files import RowFiles
from vo3.data.lengths import planned
from vo3.data.rejects import RowError
from vo3.data.seeker import rl_task, sft_trajectory
from vo3.trajectory import Observation
from vo3.video import CropPolicy, VideoCrop, VideoError
from vo3.video.folder import is_folder
from vo3.video.source import plain_path

# Containers round durations, and the last frame lasts as long as any: less than that is no difference.
LENGTH_SLACK = 1.0  # seconds
LENGTH_SHARE = 0.01  # of the duration
# What is decoded of a video's end.
_END_S, _END_FRAMES = 2.0, 4

# Where the videos of known sources are published.
HOMES = {
    "charades": "Charades_v1_480, https://prior.allenai.org/projects/charades",
    "next": "NExT-QA (VidOR videos), https://github.com/doc-doc/NExT-QA",
    "cg": "CG-Bench, https://huggingface.co/datasets/CG-Bench/CG-Bench",
    "llava": "LLaVA-Video-178K, https://huggingface.co/datasets/lmms-lab/LLaVA-Video-178K",
    "longvideo-reason": "LongVideo-Reason, https://huggingface.co/datasets/LongVideo-Reason/longvideo-reason",
    "longvila": "LongVideo-Reason, https://huggingface.co/datasets/LongVideo-Reason/longvideo-reason",
    "longvideodb": "LongVideoDB (Shot2Story and others), as the data set's card says",
    "longvt": "LongVT, https://huggingface.co/datasets/longvideotool/LongVT-Source",
}

Video = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Finding:
    """Why a row cannot be trained on.

    Attributes:
      index: number of the row, from 0.
      id: the row's own.
      source: see `Diagnosis`.
      reason: `row_<rule>`, `outside` (the path leaves the root), `missing`, `corrupt`, `timeout`, `length`, `window`.
      detail: in words.
    """

    index: int
    id: str
    source: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
      rows: looked at.
      trainable: numbers of the rows that can be trained on.
      findings: one for each other row: the first thing that is wrong with it.
      videos: named by the rows.
      lost: video -> (reason, detail) of those that cannot be read.
      fetch: source -> missing videos, as the rows name them. A source is the first folder of a video's path, or the row's
        `data_source` when there is none.
      sources: source -> (trainable, all) rows.
    """

    rows: int
    trainable: tuple[int, ...]
    findings: tuple[Finding, ...]
    videos: int
    lost: Mapping[str, tuple[str, str]]
    fetch: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, tuple[int, int]]

    @property
    def reasons(self) -> collections.Counter:
        """Reason -> rows."""
        return collections.Counter(f.reason for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "rows": self.rows,
            "trainable": len(self.trainable),
            "videos": self.videos,
            "reasons": dict(self.reasons),
            "sources": {name: list(pair) for name, pair in self.sources.items()},
            "fetch": {
                name: {"from": home(name), "missing": list(paths)} for name, paths in self.fetch.items()
            },
            "findings": [dataclasses.asdict(f) for f in self.findings],
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Need:
    """What a row wants of one video.

    Attributes:
      video, frame_fps: the video.
      windows: seconds of it that the row speaks of, or repeats from a trajectory.
      seconds: how long the row takes the video to be.
      frames: that the row indexes.
      ref: the clip that is still to be cut.
    """

    video: Video
    frame_fps: float | None
    windows: tuple[tuple[float, float], ...]
    seconds: float | None = None
    frames: int = 0
    ref: ClipRef | None = None


@dataclasses.dataclass(frozen=True)
class _Row:
    index: int
    id: str
    source: str
    needs: tuple[_Need, ...]


def diagnose(
    rows: RowFiles,
    *,
    videos: epath.PathLike | None = None,
    workers: int = 8,
    timeout_s: float = 60.0,
    decode: bool = False,
    policy: CropPolicy | None = None,
) -> Diagnosis:
    """Checks every row and every video.

    Args:
      rows: of any format that `vo3.data.seeker` reads, SFT or RL, told apart row by row.
      videos: root that the rows' paths start from and may not leave.
      workers: videos opened at once.
      timeout_s: for one video.
      decode: whether the end of every video is decoded too, which finds files that are cut off.
      policy: what training will show of the videos; the SFT recipe's when None.
    """
    policy = policy or CropPolicy(recipe="sft")
    findings: list[Finding] = []
    found: list[_Row] = []
    for index in range(len(rows)):
        try:
            found.append(_read(rows[index], index, rows.describe(index), videos))
        except RowError as error:
            findings.append(Finding(index, error.id, "", f"row_{error.rule}", error.reason))
    wanted = {(n.video, n.frame_fps): None for row in found for n in row.needs}
    states: dict[tuple[Video, float | None], VideoShape | tuple[str, str]] = {}
    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        look = lambda key: _open(key[0], key[1], videos, timeout_s, decode)
        states.update(zip(wanted, pool.map(look, wanted), strict=True))
    trainable, totals, good = [], collections.Counter(), collections.Counter()
    fetch: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for row in found:
        totals[row.source] += 1
        wrong = _judge(row, states, policy)
        for need in row.needs:
            state = states[need.video, need.frame_fps]
            if isinstance(state, tuple) and state[0] == "missing":
                fetch[row.source][_shown(need.video, videos)] = None
        if wrong is None:
            trainable.append(row.index)
            good[row.source] += 1
        else:
            findings.append(Finding(row.index, row.id, row.source, *wrong))
    lost = {_shown(k[0], videos): s for k, s in states.items() if isinstance(s, tuple)}
    return Diagnosis(
        rows=len(rows),
        trainable=tuple(trainable),
        findings=tuple(sorted(findings, key=lambda f: f.index)),
        videos=len(states),
        lost=lost,
        fetch={name: tuple(paths) for name, paths in sorted(fetch.items())},
        sources={name: (good[name], n) for name, n in sorted(totals.items())},
    )


def write_trainable(rows: RowFiles, diagnosis: Diagnosis, path: epath.PathLike) -> int:
    """Writes the trainable rows as they are, one JSON object a line; the file appears whole. Returns their number."""
    path = epath.Path(path)
    part = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    with part.open("w") as out:
        for index in diagnosis.trainable:
            out.write(json_line.dumps(_plain(rows[index])) + "\n")
    part.replace(path)
    return len(diagnosis.trainable)


def home(source: str) -> str:
    """Where the videos of a source are published, as far as it is known."""
    name = source.casefold().replace("_", "-")
    return next((where for key, where in HOMES.items() if key in name), "")


def _read(row: Mapping[str, Any], index: int, name: str, videos: epath.PathLike | None) -> _Row:
    """What a row needs.

    Raises:
      RowError: it breaks a rule.
    """
    if any(key in row for key in ("schema_version", "messages", "conversations")):
        trajectory = sft_trajectory(row, name, videos=videos)
        try:
            refs = clip_refs(trajectory)
        except ValueError as error:
            raise RowError(trajectory.task.id, "videos", str(error)) from error
        target = trajectory.task.target
        clues = tuple((c.start, c.end) for c in target.clues) if target else ()
        needs = tuple(_need(ref, clues) for ref in refs)
        return _Row(index, trajectory.task.id, _source(needs, target, videos), needs)
    task = rl_task(row, name, videos=videos)
    clues = tuple((c.start, c.end) for c in task.target.clues if c.start < c.end)
    # A row for RL may name a folder of frames or the video that they are of.
    need = _Need(task.video, task.frame_fps if _is_folder(task.video) else None, clues)
    return _Row(index, task.id, _source((need,), task.target, videos), (need,))


def _need(ref: ClipRef, clues: tuple[tuple[float, float], ...]) -> _Need:
    shown = ref.shown
    if shown is None:
        return _Need(ref.video, ref.frame_fps, clues, ref=ref)
    whole = shown.index == 0
    return _Need(
        ref.video,
        ref.frame_fps,
        clues if whole else ((shown.start, shown.end),),
        shown.end if whole else None,
        max(shown.indices, default=-1) + 1,
    )


def _source(needs: Sequence[_Need], target: Any, videos: epath.PathLike | None) -> str:
    shown = _shown(needs[0].video, videos) if needs else ""
    folder = shown.lstrip("/").split("/")[0] if "/" in shown.lstrip("/") else ""
    return folder or (target.data_source if target is not None else "") or "(no folder)"


def _shown(video: Video, videos: epath.PathLike | None) -> str:
    """A video as its row names it: below the root."""
    first = video if isinstance(video, str) else video[0]
    if videos is None or "://" in first:
        return first
    return os.path.relpath(first, os.fspath(videos)).replace(os.sep, "/")


def _is_folder(video: Video) -> bool:
    if not isinstance(video, str):
        return True
    try:
        return is_folder(plain_path(video))
    except VideoError:  # opening it says what is wrong
        return False


def _open(
    video: Video,
    frame_fps: float | None,
    root: epath.PathLike | None,
    timeout_s: float,
    decode: bool,
) -> VideoShape | tuple[str, str]:
    """The video's shape, or (reason, detail)."""
    paths = (video,) if isinstance(video, str) else video
    if root is not None and (bad := next((p for p in paths if _leaves(p, root)), None)):
        return "outside", f"{bad} lies outside of {os.fspath(root)}"
    try:
        opened = ClipRef(video, frame_fps=frame_fps).open(timeout_s=timeout_s)
        if decode:
            _decode_end(opened)
    except VideoError as error:
        reason = error.kind if error.kind in ("missing", "timeout") else "corrupt"
        return reason, str(error)
    return VideoShape.of(opened)


def _decode_end(video: VideoCrop) -> None:
    """Decodes the last frames, by number: a window of time need not hold two.

    Raises:
      VideoError: they cannot be decoded.
    """
    last = video.frames - 1
    first = max(0, min(last - 1, math.ceil((video.duration - _END_S) * video.fps)))
    indices = tuple(int(i) for i in np.linspace(first, last, _END_FRAMES))
    side, pairs = CropPolicy().token_size, _END_FRAMES // 2  # one token a patch: nobody looks at it
    video.show(Observation(0, first / video.fps, video.duration, video.fps, (), indices, side, side, (pairs, 2, 2), pairs))  # fmt: skip


def _leaves(path: str, root: epath.PathLike) -> bool:
    base = os.fspath(root)
    if "://" in base:
        return not path.startswith(base.rstrip("/") + "/") or "/../" in f"{path}/"
    base = os.path.realpath(base)
    return not os.path.realpath(path).startswith(base.rstrip(os.sep) + os.sep)


def _judge(
    row: _Row,
    states: Mapping[tuple[Video, float | None], VideoShape | tuple[str, str]],
    policy: CropPolicy,
) -> tuple[str, str] | None:
    """(reason, detail) of the first thing that is wrong with a row, or None."""
    for i, need in enumerate(row.needs):
        state = states[need.video, need.frame_fps]
        if isinstance(state, tuple):
            return state
        slack = max(LENGTH_SLACK, LENGTH_SHARE * state.duration)
        name = os.path.basename(need.video if isinstance(need.video, str) else need.video[0])
        if need.seconds is not None and abs(need.seconds - state.duration) > slack:
            return (
                "length",
                f"{name} lasts {state.duration:.1f} s, the row says {need.seconds:.1f} s",
            )
        if need.frames > state.frames:
            return (
                "length",
                f"{name} has {state.frames} frames, the row shows number {need.frames - 1}",
            )
        for start, end in need.windows:
            if start < 0 or start >= state.duration or end > state.duration + slack:
                return (
                    "window",
                    f"[{start:g}, {end:g}] lies outside of {name} ({state.duration:.1f} s)",
                )
        if need.ref is not None:
            try:
                planned(row.id, i, need.ref, state, policy)
            except RowError as error:
                return "window" if error.rule == "window" else "corrupt", error.reason
    return None


def _plain(value: Any) -> Any:
    """JSON of what Parquet gives."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def table(diagnosis: Diagnosis, *, most: int = 12) -> str:
    """The diagnosis as text: shares, reasons with examples, and what to fetch from where."""
    d = diagnosis
    share = 100 * len(d.trainable) / d.rows if d.rows else 0.0
    lines = [f"{len(d.trainable):,} of {d.rows:,} rows are trainable ({share:.1f} %); {d.videos:,} videos, {len(d.lost):,} of them not usable"]  # fmt: skip
    for name, (good, total) in d.sources.items():
        lines.append(f"  {name:32s} {good:>9,} of {total:,}")
    if d.findings:
        lines.append("Rows that are not:")
    for reason, count in d.reasons.most_common():
        first = next(f for f in d.findings if f.reason == reason)
        lines.append(f"  {reason:14s} {count:>9,}   e.g. row {first.index}, {first.id}: {first.detail[:140]}")  # fmt: skip
    if d.fetch:
        lines.append("To fetch:")
    for name, paths in d.fetch.items():
        where = f", from {home(name)}" if home(name) else ""
        lines.append(f"  {name}: {len(paths):,} videos{where}")
        lines += [f"    {path}" for path in paths[:most]]
        if len(paths) > most:
            lines.append(f"    ... and {len(paths) - most:,} more (--fetch-plan FILE lists all)")
    return "\n".join(lines)
