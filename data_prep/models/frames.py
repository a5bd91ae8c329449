"""A video as frames with their times, for endpoints that take pictures only."""

from __future__ import annotations

import base64
import dataclasses
import io
import os

import numpy as np
from PIL import Image

from data_prep.jsonish import clock_text
from data_prep.models.base import Media, ModelError
from vo3.video import CropPolicy, VideoCrop, VideoError
from vo3.video.errors import STORAGE

# Videos decoded at once. FFmpeg has threads of its own; more at once only makes each slower, up to VideoCrop's time limit.
AT_ONCE = max(2, (os.cpu_count() or 1) // 2)


@dataclasses.dataclass(frozen=True)
class FrameSettings:
    """How much of a video is sent.

    Attributes:
      whole: frames of a whole video, at most.
      clip: frames of one window, at most.
      side: longest side of a frame, pixels.
      quality: of the JPEG.
    """

    whole: int = 128
    clip: int = 48
    side: int = 512
    quality: int = 80


@dataclasses.dataclass(frozen=True)
class Shown:
    """A frame: its time in seconds and its JPEG file, base64."""

    seconds: float
    jpeg: str


def read(media: Media, settings: FrameSettings) -> list[Shown]:
    """The frames of a request, in order of time.

    Raises:
      ModelError: kind `media`: the video, or a window of it, cannot be decoded; `storage`: it cannot be read now.
    """
    patches = (settings.side // 28) ** 2
    policy = CropPolicy(
        max_frames=settings.whole,
        max_crop_frames=settings.clip,
        overview_quota=patches * settings.whole // 2,
        fine_quota=patches * settings.clip // 2,
    )
    try:
        video = VideoCrop(media.path, policy, frame_fps=media.frame_fps)
        windows = media.windows
        clips = [video.crop(*w, "fine") for w in windows] if windows else [video.overview()]
    except VideoError as error:
        raise ModelError("storage" if error.kind in STORAGE else "media", str(error)) from error
    return [
        Shown(float(t), _jpeg(frame, settings.quality))
        for clip in clips
        for t, frame in zip(clip.times, clip.frames, strict=True)
    ]


def label(shown: Shown) -> str:
    """The words before a frame."""
    return f"[{clock_text(shown.seconds)}]"


def _jpeg(frame: np.ndarray, quality: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(buffer, "JPEG", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
