"""The frames on screen at given times, decoding as little as the key frames allow."""

from __future__ import annotations

import dataclasses

import av
import numpy as np

from vo3.video.container import Probe, video_stream
from vo3.video.deadline import Deadline
from vo3.video.errors import VideoError
from vo3.video.pages import frame_pages
from vo3.video.reader import FrameReader, Shown, packets
from vo3.video.resize import resize
from vo3.video.source import Source

# Decoding on is cheaper than a seek that would save fewer frames than this.
_WORTH_A_SEEK = 16
# Where key frames are unknown, a seek is tried over gaps of this many frames; each vain one doubles it.
_BLIND_GAP = 50
# A tail that is missing is filled with the last frame, as a player does, up to this long.
_TAIL_S, _TAIL_SHARE = 1.0, 0.02


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Frames and what they cost.

    Attributes:
      frames: uint8 [T, height, width, 3].
      times: float64 [T], true presentation times, seconds from the video's first frame.
      decoded: frames that came out of the decoder.
      seeks: jumps in the file.
    """

    frames: np.ndarray
    times: np.ndarray
    decoded: int
    seeks: int


def read_frames(
    source: Source, probe: Probe, wanted: np.ndarray, *, height: int, width: int, deadline: Deadline
) -> Decoded:
    """Decodes and resizes the frames on screen at `wanted`.

    Args:
      source: the video.
      probe: what `container.probe` said of it.
      wanted: float64 [T], T > 0, seconds from the first frame, not decreasing.
      height, width: pixels of the result, as displayed.
      deadline: the time limit of the call.

    Raises:
      VideoError: kind "truncated", "corrupt", "timeout", or what opening raises.
    """
    with source.open(deadline) as container:
        stream = video_stream(container, source.name)
        reader = FrameReader(
            container,
            stream,
            clock=probe.clock,
            fps=probe.fps,
            deadline=deadline,
            hints=probe.hints,
        )
        return _Reading(source, probe, container, stream, reader, deadline).run(
            wanted, height, width
        )


class _KeyFrames:
    """The container's index of key frames, as far as it is complete."""

    def __init__(self, stream: av.video.stream.VideoStream, probe: Probe):
        self._entries = stream.index_entries
        self._base = float(stream.time_base)
        self._lead = probe.lead
        self.last = float("-inf")
        count = len(self._entries)
        if count:
            self.last = self._entries[count - 1].timestamp * self._base
        # Some demuxers index only what they have read so far.
        self.known = self.last >= probe.origin + probe.duration / 2

    def before(self, second: float) -> float | None:
        """When the last key frame at or before `second` is shown; None where that is not known."""
        if not self.known:
            return None
        at = self._entries.search_timestamp(int((second - self._lead) // self._base), backward=True)
        return self._entries[at].timestamp * self._base + self._lead if at >= 0 else None


class _Reading:
    def __init__(
        self,
        source: Source,
        probe: Probe,
        container,
        stream,
        reader: FrameReader,
        deadline: Deadline,
    ):
        self._source = source
        self._probe = probe
        self._container = container
        self._stream = stream
        self._reader = reader
        self._deadline = deadline
        self._keys = _KeyFrames(stream, probe)
        self._blind_gap = _BLIND_GAP
        self._seeks = 0
        # Stamps are rounded to the stream's ticks: a frame that comes a tick late is still on time.
        self._slack = min(max(1.01 * float(stream.time_base), 1e-6), 0.25 / probe.fps)
        self._current: Shown | None = None  # on screen
        self._ahead: Shown | None = None  # the one after it
        self._ended = False
        self._landed = self._at_start = True
        self._widest = 0.0  # seconds between neighbouring frames

    def run(self, wanted: np.ndarray, height: int, width: int) -> Decoded:
        targets = wanted + self._probe.origin
        self._reader.threads(frames_per_run=self._frames_per_run(targets))
        self._reader.only(targets.tolist(), self._slack)
        frames = frame_pages(len(targets), height, width)
        times = np.empty(len(targets), np.float64)
        convert = _Converter(self._probe, height, width)
        kept: Shown | None = None
        for i, target in enumerate(targets.tolist()):
            shown = self._at(target)
            if shown is kept:
                frames[i] = frames[i - 1]
            else:
                frames[i] = convert(shown.frame)
            kept = shown
            times[i] = shown.time - self._probe.origin
        return Decoded(frames, times, self._reader.decoded, self._seeks)

    def _frames_per_run(self, targets: np.ndarray) -> float:
        """How many frames are decoded between two seeks, roughly."""
        runs, total, position = 1, 0.0, self._probe.origin
        for target in targets.tolist():
            if self._saves(position, target):
                runs += 1
                position = self._keys.before(target) or position
            total += max(0.0, target - position) * self._probe.fps
            position = max(position, target)
        return total / runs

    def _saves(self, position: float, target: float) -> bool:
        """Whether a seek from the frame at `position` to `target` is worth its price."""
        if self._probe.clock == "none":
            return False
        gap = (target - position) * self._probe.fps
        if gap <= _WORTH_A_SEEK:
            return False
        if not self._keys.known:
            return gap > self._blind_gap
        key = self._keys.before(target)
        return key is not None and (key - position) * self._probe.fps > _WORTH_A_SEEK

    def _at(self, target: float) -> Shown:
        """The frame on screen at `target`."""
        latest = self._ahead or self._current
        position = latest.time if latest else self._probe.origin
        if not self._ended and self._saves(position, target):
            self._jump(target, target)
            if latest and self._landed and self._reader.key_time <= position:
                self._blind_gap *= 2  # no further than where the reader already stood
        back = float(self._stream.time_base)
        while not (self._landed and self._advance(target)):
            # The key frame there is shown later, or there is none: go further back.
            if self._at_start:
                self._current, self._ahead = (
                    self._ahead,
                    None,
                )  # nothing is shown before the first frame
                break
            self._jump(min(self._reader.first_dts, target) - back, target)
            back = max(8 * back, 0.5)
        if self._current is None:
            raise self._lost(target)
        if self._ended:
            self._check_tail(target)
        elif self._reader.errors and target - self._current.time > self._tail():
            raise self._lost(target)
        return self._current

    def _advance(self, target: float) -> bool:
        """Decodes up to the frame on screen at `target`; False when the first frame out is already later."""
        while True:
            if self._ahead is not None:
                if self._ahead.time > target + self._slack:
                    return self._current is not None
                self._current, self._ahead = self._ahead, None
            if self._ended:
                return self._current is not None
            if self._current is not None and abs(self._current.time - target) <= self._slack:
                return True  # exactly on time: no need to see the next one
            self._ahead = self._reader.next()
            if self._ahead is None:
                self._ended = True
            elif self._current is not None:
                self._widest = max(self._widest, self._ahead.time - self._current.time)

    def _jump(self, second: float, target: float) -> None:
        """Seeks to `second`, in the hope of a key frame at or before `target`."""
        self._at_start = second <= self._probe.start
        self._reader.seek(max(second, self._probe.start))
        # At the very start everything is decoded: some streams have no key frames at all.
        self._landed = self._at_start or self._reader.find_key(target + self._slack)
        self._current = self._ahead = None
        self._ended = False
        self._seeks += 1

    def _tail(self) -> float:
        return max(_TAIL_S, _TAIL_SHARE * self._probe.duration)

    def _check_tail(self, target: float) -> None:
        """The stream is over; is it because the file is?"""
        assert self._current is not None
        gap = target - self._current.time
        if gap <= self._tail():
            return
        if self._reader.errors:
            raise self._lost(target)
        if self._keys.known and len(self._stream.index_entries) > 1:
            short = self._keys.last - self._reader.last_dts > self._tail()
        else:
            # No list of samples to compare with: only a hole wider than any before it counts, and only if nothing
            # else (sound that goes on) reaches the declared end.
            short = gap > 2 * self._widest and not self._goes_on(target)
        if short:
            raise self._lost(target)

    def _goes_on(self, target: float) -> bool:
        """Whether any stream of the file has something near the end of the video."""
        if len(self._container.streams) < 2:
            return False
        self._container.seek(int((target - self._tail()) * av.time_base), backward=True)
        try:
            for packet in packets(self._container):
                self._deadline.check()
                stamp = packet.dts if packet.dts is not None else packet.pts
                if stamp is not None and stamp * packet.time_base > target - self._tail():
                    return True
        except (av.error.InvalidDataError, av.error.EOFError):
            pass  # it ends in the middle of something
        return False

    def _lost(self, target: float) -> VideoError:
        at = target - self._probe.origin
        name, seconds = self._source.name, self._probe.duration
        remedy = "fetch the file again, or repair it: ffmpeg -i IN -c copy OUT"
        if self._current is None:
            return VideoError(
                "corrupt", f"{name}: nothing decodes at {at:.1f} s of {seconds:.1f} s", remedy
            )
        reached = self._current.time - self._probe.origin
        if self._ended:
            return VideoError(
                "truncated",
                f"{name} ends at {reached:.1f} s, but declares {seconds:.1f} s",
                f"{remedy}; windows before {reached:.0f} s can be read",
            )
        return VideoError(
            "corrupt",
            f"{name}: nothing decodes between {reached:.1f} s and {at:.1f} s ({self._reader.errors} packets failed)",
            remedy,
        )


class _Converter:
    """Decoded frames to resized, upright RGB, with one conversion context for all."""

    def __init__(self, probe: Probe, height: int, width: int):
        self._orientation = probe.orientation
        self._size = (width, height) if self._orientation.transpose else (height, width)
        self._to_rgb = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        rgb = self._to_rgb.reformat(frame, format="rgb24").to_ndarray()
        return self._orientation.apply(resize(rgb, *self._size))
