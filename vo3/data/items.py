"""One trajectory, ready to be packed: clips read, observations settled, turns encoded. What fails is a `Failure`, not an exception."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped, UInt8

from vo3.chat import Encoded, encode
from vo3.chat.positions import MropeTime
from vo3.chat.tdam import Policy
from vo3.chat.tokens import Tokenizer
from vo3.data.clip_cache import ClipCache, clip_key
from vo3.data.clips import ClipRef, clip_refs, settle
from vo3.data.failures import Failure, StopReading
from vo3.data.feature_cache import FeatureCache
from vo3.data.source import TrajectorySource
from vo3.trajectory import Observation
from vo3.video import Clip, CropPolicy, VideoCrop, VideoError
from vo3.video.deadline import Deadline, within
from vo3.video.patches import MERGE, TEMPORAL

# A time limit that has just run out must still be a positive one.
_INSTANT = 1e-3


@dataclasses.dataclass(frozen=True)
class Shot:
    """One clip as the model takes it: patches, or the features that were kept of it.

    Attributes:
      key: of the caches; None when the video's identity was not needed.
      observation: what is shown.
      patches: grey levels in the order of `vo3.video.patchify`; None when `features` are given.
      features: what the feature cache kept.
    """

    key: str | None
    observation: Observation
    patches: UInt8[np.ndarray, "P C"] | None
    features: Shaped[np.ndarray, "M W"] | None = None


@dataclasses.dataclass(frozen=True)
class Item:
    """A trajectory that was read and encoded.

    Attributes:
      number: of the trajectory in its source.
      id: the row's own id.
      encoded: its tokens.
      shots: its clips, in order of appearance.
    """

    number: int
    id: str
    encoded: Encoded
    shots: tuple[Shot, ...]

    @property
    def patches(self) -> int:
        """Vision patches of all clips."""
        return sum(int(np.prod(shot.observation.grid)) for shot in self.shots)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How trajectories become tokens.

    Attributes:
      mrope_time: see `vo3.chat.positions`.
      policy: of task-decoupled attention masking; the masks stand in the rows, the trainer draws whether a step uses them.
    """

    mrope_time: MropeTime = "constant"
    policy: Policy = "off"


class ItemReader:
    """Reads trajectories by number. Picklable: worker processes each have one."""

    def __init__(
        self,
        source: TrajectorySource,
        tokenizer: Tokenizer,
        *,
        crop_policy: CropPolicy,
        encoding: Encoding,
        clip_cache: ClipCache | None = None,
        feature_cache: FeatureCache | None = None,
        time_limit: float = 120.0,
    ):
        """`time_limit`: seconds that a trajectory and its clips may take."""
        if not time_limit > 0:
            raise ValueError(f"time_limit must be positive seconds, not {time_limit!r}")
        self.source, self.tokenizer = source, tokenizer
        self.crop_policy, self.encoding = crop_policy, encoding
        self.clip_cache, self.feature_cache = clip_cache, feature_cache
        self.time_limit = time_limit

    def read(
        self, number: int, *, step: int, note: Callable[[str, str], None] = lambda id_, video: None
    ) -> Item | Failure:
        """The trajectory with this number, or why it cannot be used.

        Args:
          number: in the source.
          step: for the failure's record.
          note: called with the row's id and a video's name before that is read; the row comes first, with neither.

        Raises:
          StopReading: from `note`.
        """
        at = _At()
        deadline = Deadline(self.time_limit, f"trajectory {number}")
        try:
            # Off this thread: on a dead mount even asking for a file's size may never return.
            return within(deadline, lambda: self._read(number, at, deadline, note))
        except StopReading:
            raise
        except VideoError as error:
            kind, message = error.kind, str(error)
        except Exception as error:  # one trajectory never ends the run; the share of failures may
            kind, message = at.kind, f"{type(error).__name__}: {error}"
        return Failure(step, number, at.id, at.video, kind, message)

    def _read(
        self, number: int, at: _At, deadline: Deadline, note: Callable[[str, str], None]
    ) -> Item:
        note("", "")
        trajectory = self.source[number]
        at.id = trajectory.task.id
        refs = clip_refs(trajectory)
        at.kind = "error"
        videos: dict[tuple, VideoCrop] = {}
        shots = []
        for ref, open_ in zip(refs, trajectory.observations, strict=True):
            deadline.check()
            at.video = _name(ref)
            note(at.id, at.video)
            shot = self._shot(ref, videos, deadline)
            observation = dataclasses.replace(
                shot.observation, index=open_.index, strategy=open_.strategy
            )
            shots.append(dataclasses.replace(shot, observation=observation))
        at.kind, at.video = "encode", ""
        settled = settle(trajectory, [shot.observation for shot in shots])
        encoded = encode(
            settled.turns,
            self.tokenizer,
            mrope_time=self.encoding.mrope_time,
            policy=self.encoding.policy,
        )
        return Item(number, at.id, encoded, tuple(shots))

    def _shot(self, ref: ClipRef, videos: dict[tuple, VideoCrop], deadline: Deadline) -> Shot:
        key = None
        if self.clip_cache is not None or self.feature_cache is not None:
            try:
                key = clip_key(ref, self.crop_policy)
            except OSError:
                key = None  # reading the video below says what is wrong with it
        if key is not None and self.feature_cache is not None:
            kept = self.feature_cache.get(key)
            if kept is not None:
                return Shot(key, kept.observation, None, kept.array)
        clip = self.clip_cache.get(key) if key is not None and self.clip_cache is not None else None
        if clip is None:
            clip = self._decode(ref, videos, deadline)
            if key is not None and self.clip_cache is not None:
                self.clip_cache.put(key, clip)
        patch = self.crop_policy.token_size // MERGE
        patches = patchify_levels(clip.frames, patch_size=patch)
        if len(patches) != math.prod(clip.grid):
            raise ValueError(
                f"observation {ref.shown.index if ref.shown else 0} says a grid of {clip.grid} patches, and its frames of "
                f"{clip.frames.shape[2]} x {clip.frames.shape[1]} pixels make {len(patches)}"
            )
        return Shot(key, clip.observation(0), patches)

    def _decode(self, ref: ClipRef, videos: dict[tuple, VideoCrop], deadline: Deadline) -> Clip:
        deadline.check()
        name = (ref.video, ref.frame_fps)
        if name not in videos:
            videos[name] = ref.open(self.crop_policy, timeout_s=max(deadline.left(), _INSTANT))
        video = videos[name]
        video.timeout_s = max(deadline.left(), _INSTANT)
        return ref.read(video)


@dataclasses.dataclass
class _At:
    """Where the reading of a trajectory stands, for whoever has to report it.

    Attributes:
      id: the row's own id, once it is known.
      video: what is being read.
      kind: of a failure here, see `Failure`.
    """

    id: str = ""
    video: str = ""
    kind: str = "row"


def patchify_levels(
    frames: UInt8[np.ndarray, "T height width 3"], *, patch_size: int = 14
) -> UInt8[np.ndarray, "P C"]:
    """`vo3.video.patchify` without the normalisation: the same rows as grey levels, a quarter of the bytes.

    Raises:
      ValueError: an odd number of frames, or sides that do not divide into tokens.
    """
    unit = patch_size * MERGE
    t, height, width, _ = frames.shape
    if t % TEMPORAL or height % unit or width % unit:
        raise ValueError(
            f"{t} frames of {width} x {height} pixels do not divide into pairs of frames and tokens of {unit}"
        )
    cut = frames.reshape(
        t // TEMPORAL, TEMPORAL, height // unit, MERGE, patch_size, width // unit, MERGE, patch_size, 3
    )  # fmt: skip
    return cut.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(
        t // TEMPORAL * (height // patch_size) * (width // patch_size), -1
    )


def _name(ref: ClipRef) -> str:
    return ref.video if isinstance(ref.video, str) else f"{ref.video[0]} ... ({len(ref.video)})"
