"""What a trajectory's observations are made from, before any video is opened.

A row of training data names videos and windows, not frame times and sizes: those follow from the video and the crop
policy. A trajectory read from such a row has *open* observations (`is_open`): index, window and strategy are known, the
rest is not. `clip_refs` says what to read for each, `settle` puts the observations in that reading gave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from vo3.trajectory import STRATEGIES, Observation, Trajectory
from vo3.video import Clip, ClipPlan, CropPolicy, VideoCrop, plan_clip
from vo3.video.sampling import OLD_QUOTA

Sample = Literal["coarse", "medium", "fine", "old_quota"] | None
SAMPLES: tuple[Sample, ...] = (*STRATEGIES, OLD_QUOTA, None)


@dataclasses.dataclass(frozen=True)
class ClipRef:
    """One clip of a trajectory, as its row describes it.

    Attributes:
      video: a path, a folder of frames, or a tuple of frame files.
      window: seconds of the video, or None for all of it.
      sample: a strategy; "old_quota" and None are explained at `vo3.video.plan_clip`.
      frame_fps: the rate of extraction, for frames.
      clips: clips of the row that share the overview's quota under "old_quota".
      shown: the observation to repeat exactly, where the trajectory already knows it.
    """

    video: str | tuple[str, ...]
    window: tuple[float, float] | None = None
    sample: Sample = None
    frame_fps: float | None = None
    clips: int = 1
    shown: Observation | None = None

    def open(self, policy: CropPolicy | None = None, *, timeout_s: float = 120.0) -> VideoCrop:
        """The video.

        Raises:
          VideoError: it cannot be used.
        """
        video = list(self.video) if isinstance(self.video, tuple) else self.video
        return VideoCrop(video, policy, frame_fps=self.frame_fps, timeout_s=timeout_s)

    def read(self, video: VideoCrop) -> Clip:
        """The clip of an opened video.

        Raises:
          VideoError: it cannot be read.
        """
        if self.shown is not None:
            return video.show(self.shown)
        if self.window is None and self.sample is None:
            return video.overview()
        start, end = self.window or (0.0, video.duration)
        return video.crop(start, end, self.sample, clips=self.clips)

    def plan(self, shape: VideoShape, policy: CropPolicy) -> ClipPlan:
        """What `read` will show of a video of this shape, without opening it.

        Raises:
          VideoError: kind "window", "strategy" or "aspect".
        """
        window, clips = self.window, self.clips
        if window is None and self.sample is not None:
            window = (0.0, shape.duration)
        elif window is not None:
            window = max(window[0], 0.0), min(window[1], shape.duration)
        return plan_clip(
            fps=shape.fps,
            frames=shape.frames,
            height=shape.height,
            width=shape.width,
            window=window,
            strategy=self.sample if window is not None else None,
            policy=policy,
            clips=clips,
        )


@dataclasses.dataclass(frozen=True)
class VideoShape:
    """What planning needs of a video: frames per second, frames on that grid, pixels as displayed."""

    fps: float
    frames: int
    height: int
    width: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.fps

    @classmethod
    def of(cls, video: VideoCrop) -> VideoShape:
        """The shape of an opened video."""
        return cls(video.fps, video.frames, video.height, video.width)


def open_observation(index: int, ref: ClipRef) -> Observation:
    """The observation of a clip that was not read yet: no times, no size, no tokens. Encoding it fails."""
    start, end = ref.window or (0.0, 0.0)
    strategy = ref.sample if ref.sample in STRATEGIES else None
    return Observation(
        index=index,
        start=start,
        end=end,
        fps=0.0,
        times=(),
        indices=(),
        height=0,
        width=0,
        grid=(0, 0, 0),
        tokens=0,
        strategy=strategy,
    )


def is_open(observation: Observation) -> bool:
    """Whether the observation still waits for its clip."""
    return not observation.indices and observation.tokens == 0


def clip_refs(trajectory: Trajectory) -> tuple[ClipRef, ...]:
    """What to read for each observation, in order of appearance.

    Raises:
      ValueError: an image, or an open observation that no entry of `meta["clips"]` describes.
    """
    observations = trajectory.observations
    if any(o.media != "video" for o in observations):
        raise ValueError(
            f"trajectory {trajectory.task.id}: it shows images, and training data is made of videos"
        )
    entries: Sequence[Any] = trajectory.meta.get("clips", ())
    if entries and len(entries) != len(observations):
        raise ValueError(
            f"trajectory {trajectory.task.id}: meta['clips'] has {len(entries)} entries for {len(observations)} observations"
        )
    try:
        return tuple(_refs(trajectory, observations, entries))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"trajectory {trajectory.task.id}: meta['clips'] is none that this package wrote: {type(error).__name__}: {error}"
        ) from error


def _refs(
    trajectory: Trajectory, observations: Sequence[Observation], entries: Sequence[Any]
) -> Iterator[ClipRef]:
    for i, observation in enumerate(observations):
        if not is_open(observation):
            entry = entries[i] if entries else {"video": trajectory.task.video}
            video, fps = entry["video"], entry.get("frame_fps", trajectory.task.frame_fps)
            yield ClipRef(_video(video), frame_fps=fps, shown=observation)
        elif entries:
            entry = dict(entries[i])
            window = entry.pop("window", None)
            video = _video(entry.pop("video"))
            yield ClipRef(video, tuple(window) if window else None, **entry)
        else:
            raise ValueError(
                f"trajectory {trajectory.task.id}: observation {observation.index} was never read and "
                "meta['clips'] does not say from where"
            )


def with_refs(trajectory: Trajectory, refs: Sequence[ClipRef]) -> Trajectory:
    """The trajectory with `refs` in its meta data, as plain JSON; inverse of `clip_refs`."""
    entries = []
    for ref in refs:
        entry = {f.name: getattr(ref, f.name) for f in dataclasses.fields(ref) if f.name != "shown"}
        entry["window"] = list(ref.window) if ref.window else None
        entry["video"] = list(ref.video) if isinstance(ref.video, tuple) else ref.video
        entries.append(entry)
    return dataclasses.replace(trajectory, meta={**trajectory.meta, "clips": entries})


def settle(trajectory: Trajectory, observations: Sequence[Observation]) -> Trajectory:
    """The trajectory with these observations at its marks, in order of appearance.

    Raises:
      ValueError: not as many as it has marks.
    """
    have = len(trajectory.observations)
    if len(observations) != have:
        raise ValueError(
            f"trajectory {trajectory.task.id} shows {have} clips, {len(observations)} were given"
        )
    rest = iter(observations)
    turns = tuple(
        dataclasses.replace(turn, observations=tuple(next(rest) for _ in turn.observations))
        if turn.observations
        else turn
        for turn in trajectory.turns
    )
    return dataclasses.replace(trajectory, turns=turns)


def _video(video: Any) -> str | tuple[str, ...]:
    return tuple(video) if isinstance(video, (list, tuple)) else video
