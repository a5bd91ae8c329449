"""How long every trajectory of a source becomes, computed once and kept: no pixels are decoded for it.

The tokens of the text come from encoding the turns with the smallest clips there are; the tokens and patches of the clips from
`vo3.video.plan_clip` on the headers of the videos (each video is opened once, and its first frame decoded for its true size).
Rows, windows and videos that cannot be used are noted here, so that a run knows of them before its first step.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import logging
import multiprocessing
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath
from jaxtyping import Int32

from vo3.chat import encode
from vo3.chat.tokens import Tokenizer
from vo3.data.clips import ClipRef, VideoShape, clip_refs, is_open, settle
from vo3.data.rejects import Reject, Rejects, RowError
from vo3.trajectory import Observation
from vo3.video import ClipPlan, CropPolicy, VideoError

log = logging.getLogger(__name__)

# A window may end this many seconds after its video: times are rounded, and containers differ in what they count.
WINDOW_SLACK = 1.0
# Belongs to the key: raise it when the same inputs give other lengths.
_METHOD = 2
_CHUNK = 256
# What rows are left out for that another copy of a video can mend.
_OF_VIDEOS = ("file", "window")


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Sizes by number in the source.

    Attributes:
      tokens: tokens of the whole encoded trajectory; 0 where it cannot be used.
      patches: vision patches of all its clips.
      rejects: why those with 0 tokens cannot be used.
    """

    tokens: Int32[np.ndarray, "N"]
    patches: Int32[np.ndarray, "N"]
    rejects: tuple[Reject, ...] = ()

    def __len__(self) -> int:
        return self.tokens.size

    def rejected(self, *, max_length: int | None = None) -> Rejects:
        """The rejects with their share, to be saved, logged and checked against a limit.

        Args:
          max_length: when given, trajectories of more tokens are among them.
        """
        rejects = Rejects(len(self), self.rejects)
        if max_length is not None:
            for index in np.flatnonzero(self.tokens > max_length).tolist():
                reason = f"{self.tokens[index]} tokens, more than the {max_length} of a row"
                rejects.add(index, RowError(f"row {index}", "length", reason))
        return rejects

    def save(self, path: epath.PathLike, *, key: str = "") -> None:
        """Writes an npz file; a reader or another writer never sees half of it."""
        path = epath.Path(path)
        buffer = io.BytesIO()
        notes = json.dumps([dataclasses.asdict(r) for r in self.rejects])
        np.savez_compressed(
            buffer, tokens=self.tokens, patches=self.patches, rejects=notes, key=key
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        part.write_bytes(buffer.getvalue())
        part.replace(path)

    @classmethod
    def load(cls, path: epath.PathLike, *, key: str | None = None) -> Lengths:
        """Inverse of `save`.

        Args:
          path: the file.
          key: what the file must have been saved with; None accepts any.

        Raises:
          ValueError: not such a file, a cut one, or one of another key.
        """
        path = epath.Path(path)
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
                tokens, patches = data["tokens"], data["patches"]
                notes, found = str(data["rejects"]), str(data["key"])
            rejects = tuple(Reject(**note) for note in json.loads(notes))
        except FileNotFoundError:
            raise
        except Exception as error:  # zipfile, zlib, numpy and json have errors of their own
            raise ValueError(
                f"{path}: not a file of lengths ({type(error).__name__}: {error}); delete it to measure again"
            ) from error
        if key is not None and found != key:
            raise ValueError(
                f"{path}: lengths of other data, tokenizer or crop policy; delete it to measure again"
            )
        return cls(tokens, patches, rejects)


def lengths_key(source: Any, tokenizer: Tokenizer, policy: CropPolicy) -> str:
    """A hash of all that lengths depend on: the source's contents, the tokenizer, the crop policy."""
    parts = (
        _METHOD,
        source.fingerprint,
        tokenizer.backend_tokenizer.to_str(),
        json.dumps(policy.to_json(), sort_keys=True),
    )
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def stored_lengths(
    source: Any,
    tokenizer: Tokenizer,
    *,
    policy: CropPolicy,
    folder: epath.PathLike,
    workers: int = 0,
    progress: Callable[[str], None] = log.info,
    again: bool = False,
) -> Lengths:
    """The lengths kept in `folder`, or measured now and kept there. Arguments and errors as for `measure`.

    A file that cannot be read is measured anew; with `again`, those rows are too that were left out for their videos, which may be
    there by now, or whole. Not without need: other lengths are another plan, which no run goes on with. Where several hosts train, one
    of them measures before the others ask: a video that one host opens in time and another does not would give them different plans.
    """
    key = lengths_key(source, tokenizer, policy)
    path = epath.Path(folder) / f"lengths-{key[:16]}.npz"
    if path.exists():
        try:
            lengths = Lengths.load(path, key=key)
        except ValueError as error:
            progress(str(error))
        else:
            lost = [r.index for r in lengths.rejects if r.rule in _OF_VIDEOS]
            if lost and again:
                found = measure(
                    _Chosen(source, lost),
                    tokenizer,
                    policy=policy,
                    workers=workers,
                    progress=progress,
                )
                lengths = _replaced(lengths, lost, found)
                lengths.save(path, key=key)
            elif lost:
                progress(
                    f"{path}: {len(lost)} trajectories are left out because a video could not be read, or not to the end, when "
                    "lengths were measured; delete the file to try them again"
                )
            return lengths
    lengths = measure(source, tokenizer, policy=policy, workers=workers, progress=progress)
    lengths.save(path, key=key)
    progress(f"lengths of {len(lengths)} trajectories are kept in {path}")
    return lengths


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Some trajectories of a source."""

    source: Any
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        return self.source[self.numbers[index]]


def _replaced(lengths: Lengths, numbers: Sequence[int], found: Lengths) -> Lengths:
    """The lengths with those of some trajectories as they were found now."""
    tokens, patches = lengths.tokens.copy(), lengths.patches.copy()
    tokens[numbers], patches[numbers] = found.tokens, found.patches
    kept = [r for r in lengths.rejects if r.index not in set(numbers)]
    new = [dataclasses.replace(r, index=numbers[r.index]) for r in found.rejects]
    return Lengths(tokens, patches, tuple(sorted([*kept, *new], key=lambda r: r.index)))


def measure(
    source: Any,
    tokenizer: Tokenizer,
    *,
    policy: CropPolicy,
    workers: int = 0,
    timeout_s: float = 60.0,
    progress: Callable[[str], None] = log.info,
) -> Lengths:
    """Measures every trajectory of a source. The result does not depend on `workers`.

    Args:
      source: the trajectories.
      tokenizer: a fast tokenizer.
      policy: how clips are sampled and resized.
      workers: processes; 0 measures in this one.
      timeout_s: time limit of opening one video.
      progress: told how far it is.

    Raises:
      OSError: the source itself cannot be read any more.
    """
    chunks = [range(i, min(i + _CHUNK, len(source))) for i in range(0, len(source), _CHUNK)]
    tell = _Seldom(progress)
    # A process takes seconds to start: not for one chunk.
    workers = min(workers, len(chunks)) if len(chunks) > 1 else 0
    with _Pool(workers, source, tokenizer, timeout_s) as pool:
        texts: list[_Text | RowError] = []
        for part in pool.map(_texts, chunks):
            texts += part
            tell("rows read", len(texts), len(source))
        videos = list(
            dict.fromkeys(
                (ref.video, ref.frame_fps)
                for text in texts
                if isinstance(text, _Text)
                for ref in text.refs
                if ref.shown is None
            )
        )
        shapes: dict[Any, VideoShape | str] = {}
        parts = [videos[i : i + 16] for i in range(0, len(videos), 16)]
        for names, found in zip(parts, pool.map(_probe, parts), strict=True):
            shapes |= dict(zip(names, found, strict=True))
            tell("videos opened", len(shapes), len(videos))
    rejects = Rejects(len(texts))
    tokens, patches = np.zeros(len(texts), np.int32), np.zeros(len(texts), np.int32)
    for index, text in enumerate(texts):
        try:
            if isinstance(text, RowError):
                raise text
            tokens[index], patches[index] = _size(text, shapes, policy)
        except RowError as error:
            rejects.add(index, error)
    return Lengths(tokens, patches, tuple(rejects))


@dataclasses.dataclass(frozen=True)
class _Text:
    """A trajectory without its clips: tokens of everything else, and what the clips are."""

    id: str
    tokens: int
    refs: tuple[ClipRef, ...]


def _texts(
    source: Any, tokenizer: Tokenizer, timeout_s: float, numbers: Sequence[int]
) -> list[_Text | RowError]:
    found: list[_Text | RowError] = []
    for number in numbers:
        name = f"row {number}"
        try:
            trajectory = source[number]
            name = trajectory.task.id
            refs = clip_refs(trajectory)
            least = settle(trajectory, [_smallest(o) for o in trajectory.observations])
            count = len(encode(least.turns, tokenizer)) - len(refs)
            found.append(_Text(name, count, refs))
        except RowError as error:
            found.append(error)
        except ValueError as error:  # what encoding refuses
            found.append(RowError(name, "fields", str(error)))
    return found


def _smallest(observation: Observation) -> Observation:
    """The observation with one token: encoding it costs next to nothing."""
    fps = 1.0 if is_open(observation) else observation.fps
    return dataclasses.replace(observation, grid=(1, 2, 2), tokens=1, fps=fps)


def _probe(
    source: Any, tokenizer: Tokenizer, timeout_s: float, videos: Sequence[tuple[Any, float | None]]
) -> list[VideoShape | str]:
    """The shape of each video, or why it cannot be used."""
    found: list[VideoShape | str] = []
    for video, frame_fps in videos:
        try:
            opened = ClipRef(video, frame_fps=frame_fps).open(timeout_s=timeout_s)
            found.append(VideoShape.of(opened))
        except VideoError as error:
            found.append(str(error))
    return found


def _size(text: _Text, shapes: dict[Any, VideoShape | str], policy: CropPolicy) -> tuple[int, int]:
    """(tokens, patches) of a trajectory.

    Raises:
      RowError: a video that cannot be read, or a window that does not lie in it.
    """
    tokens, patches = text.tokens, 0
    for i, ref in enumerate(text.refs):
        if ref.shown is not None:
            tokens += ref.shown.tokens
            patches += int(np.prod(ref.shown.grid))
            continue
        shape = shapes[ref.video, ref.frame_fps]
        if isinstance(shape, str):
            raise RowError(text.id, "file", f"video {i}: {shape}")
        plan = planned(text.id, i, ref, shape, policy)
        tokens += plan.tokens
        patches += 4 * plan.tokens  # 2 x 2 patches are one token
    return tokens, patches


def planned(id_: str, i: int, ref: ClipRef, shape: VideoShape, policy: CropPolicy) -> ClipPlan:
    """What training shows of a clip that was not read yet; `vo3 doctor` asks the same.

    Args:
      id_: of the row.
      i: number of the clip in it.
      ref: the clip.
      shape: of its video.
      policy: how clips are sampled and resized.

    Raises:
      RowError: rule "window": it does not lie in the video, is too short, or holds no two frames; "file": the video cannot be
        shown like this.
    """
    if ref.window is not None or ref.sample is not None:
        start, end = ref.window or (0.0, shape.duration)
        inside = min(end, shape.duration) - start
        over = end > shape.duration + WINDOW_SLACK
        if over or inside < policy.min_seconds - 1e-6:
            why = (
                f"reaches outside of its video, which lasts {shape.duration:.2f} s"
                if over or start >= shape.duration
                else f"covers {inside:.2f} s of its video; the least is {policy.min_seconds:g} s"
            )
            raise RowError(id_, "window", f"video {i}: the window [{start:g}, {end:g}] {why}")
    try:
        return ref.plan(shape, policy)
    except VideoError as error:
        rule = "window" if error.kind == "window" else "file"
        raise RowError(id_, rule, f"video {i}: {error}") from error


class _Seldom:
    """Progress, at most one line in ten seconds and one at the end."""

    def __init__(self, progress: Callable[[str], None]):
        self._progress, self._last = progress, time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            self._progress(f"{what}: {done} of {total}")


# ---- processes

_Part = TypeVar("_Part")
_Found = TypeVar("_Found")
_work: tuple[Any, Tokenizer, float] | None = None


def _begin(*work: Any) -> None:
    global _work
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


def _run(function: Callable[..., Any], part: Any) -> Any:
    return function(*_work, part)


class _Pool:
    """Maps a function of (source, tokenizer, time limit, part) over parts, here or in processes that hold the first three."""

    def __init__(self, workers: int, *work: Any):
        self._work = work
        self._pool = (
            concurrent.futures.ProcessPoolExecutor(
                workers,
                # Not fork: this process may already run threads of JAX.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=work,
            )
            if workers
            else None
        )

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[..., _Found], parts: Sequence[_Part]) -> Any:
        """Results in order."""
        if self._pool is None:
            return (function(*self._work, part) for part in parts)
        return self._pool.map(_run, [function] * len(parts), parts)
