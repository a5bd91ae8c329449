"""Open videos: those of files are kept for a while, with their overviews, since people ask more than once about the same video."""

from __future__ import annotations

import collections
import os
import threading

from vo3.evals.asking import OverviewOnce
from vo3.serve.errors import ApiError
from vo3.serve.media import Media
from vo3.video import Clip, CropPolicy, VideoCrop, VideoError
from vo3.viewer.pictures import clock

_Key = tuple[str, int, int, int]


class Named:
    """A video whose errors speak of it as its client does."""

    def __init__(self, video: OverviewOnce, media: Media):
        self._video, self._media = video, media

    @property
    def duration(self) -> float:
        """Seconds."""
        return self._video.duration

    def overview(self) -> Clip:
        """See `VideoCrop.overview`."""
        try:
            return self._video.overview()
        except VideoError as error:
            raise self._media.told(error) from error

    def crop(
        self, t0: float, t1: float, strategy: str | None, *, rate: float | None = None
    ) -> Clip:
        """See `VideoCrop.crop`."""
        try:
            return self._video.crop(t0, t1, strategy, rate=rate)
        except VideoError as error:
            raise self._media.told(error) from error


class Shelf:
    """Opens videos; the last few files stay open."""

    def __init__(self, crop: CropPolicy, *, timeout_s: float, duration: float, keep: int = 8):
        """A shelf.

        Args:
          crop: what videos are shown as.
          timeout_s: of every read.
          duration: most seconds of a video.
          keep: how many stay.
        """
        self._crop, self._timeout_s, self._duration, self._keep = crop, timeout_s, duration, keep
        self._lock = threading.Lock()
        self._videos: collections.OrderedDict[_Key, OverviewOnce] = collections.OrderedDict()

    def open(self, media: Media) -> Named:
        """The video of a request.

        Raises:
          VideoError: it cannot be used.
          ApiError: it is too long, or cannot be fetched.
        """
        try:
            return Named(self._find(media), media)
        except VideoError as error:
            raise media.told(error) from error

    def _find(self, media: Media) -> OverviewOnce:
        key = _stamp(media.path)
        with self._lock:
            if key in self._videos:
                self._videos.move_to_end(key)
                return self._videos[key]
        video = media.open(self._crop, self._timeout_s)
        self._check(video)
        found = OverviewOnce(video)
        if key is not None:
            with self._lock:
                self._videos[key] = found
                while len(self._videos) > self._keep:
                    self._videos.popitem(last=False)
        return found

    def _check(self, video: VideoCrop) -> None:
        if video.duration > self._duration:
            raise ApiError(413, "video_too_long", f"the video lasts {clock(video.duration)}, and this server takes {clock(self._duration)} at most; send a part of it")  # fmt: skip


def _stamp(path: str | None) -> _Key | None:
    """What tells a file from an earlier one at its path."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:  # opening it says what is wrong
        return None
    return path, found.st_ino, found.st_size, found.st_mtime_ns
