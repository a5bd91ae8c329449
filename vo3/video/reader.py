"""Frames in display order out of an opened container: packets, seeks, time stamps, and what need not be decoded."""

from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence

import av

from vo3.video.deadline import Deadline
from vo3.video.errors import VideoError

# More packets than this without one frame is no video; it bounds the search for the first frame.
_MAX_PACKETS_TO_FIRST_FRAME = 600
# A packet's neighbours in time stand at most this far from it in decoding order (16 reordered frames are the most that
# H.264 allows).
_LOOK_AHEAD = 20
# Codecs whose frames that no other refers to may be left out. Not HEVC: there they may serve a higher temporal layer.
_SKIPPABLE = frozenset({"h264", "mpeg4", "mpeg2video", "mpeg1video", "vp8"})


@dataclasses.dataclass(frozen=True)
class Shown:
    """A decoded frame and the second, on the stream's clock, at which it is shown."""

    frame: av.VideoFrame
    time: float


def packets(
    container: av.container.InputContainer, *streams: av.video.stream.VideoStream
) -> Iterator[av.Packet]:
    """The packets of the streams, or of all; at the end one empty packet for each, which flushes its decoder."""
    while True:
        try:
            yield from container.demux(*streams)
            return
        # PyAV stumbles over a stream that begins late (MPEG-TS); it knows it from then on.
        except IndexError:
            continue


class FrameReader:
    """Frames in display order from wherever the last seek landed. Skips and counts what does not decode.

    Attributes:
      clock: which time stamps count (see `container.Probe`); becomes "none" when the first frame has none.
      decoded: frames that came out of the decoder.
      errors: packets that did not decode.
      first_packet: the first packet read.
      first_dts, last_dts: seconds, of the first packet since the last seek and of the last one.
      key_time: seconds, of the key frame that `find_key` found.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.video.stream.VideoStream,
        *,
        clock: str,
        fps: float,
        deadline: Deadline,
        hints: bytes = b"",
    ):
        self.clock = clock
        self.decoded = 0
        self.errors = 0
        self.first_packet = b""
        self.first_dts = 0.0
        self.last_dts = float("-inf")
        self.key_time = float("-inf")
        self._container = container
        self._stream = stream
        self._codec = stream.codec_context
        self._pitch = 1 / fps  # seconds between the last two frames
        self._deadline = deadline
        self._hints = hints
        self._base = float(stream.time_base)
        self._wanted: Sequence[float] = ()
        self._slack = 0.0
        self._sparing = False
        # FFmpeg's made-up presentation times would hide that there are none.
        container.flags &= ~av.container.Flags.gen_pts.value
        self._restart()

    def threads(self, *, frames_per_run: float) -> None:
        """Chooses how to decode in parallel: frame threads fill a pipeline that every seek throws away."""
        count = self._codec.thread_count or 4
        frame_threads = self.clock == "pts" and frames_per_run >= 3 * min(count, 16)
        self._stream.thread_type = "AUTO" if frame_threads else "SLICE"

    def only(self, wanted: Sequence[float], slack: float) -> None:
        """Lets the reader leave out frames that are on screen at none of `wanted`, where nothing depends on them.

        Args:
          wanted: seconds of the stream's clock, not decreasing.
          slack: how much later than asked a frame may come and still be on time.
        """
        self._wanted, self._slack = wanted, slack
        self._sparing = self.clock == "pts" and self._codec.name in _SKIPPABLE

    def _restart(self) -> None:
        self._packets: Iterator[av.Packet] = packets(self._container, self._stream)
        self._buffer: collections.deque[av.Packet] = collections.deque()
        self._stamps: list[int] = []  # sorted: of the packets in the buffer and a few before them
        self._frames: collections.deque[Shown] = collections.deque()
        self._ended = False
        self._fresh = True
        self._time: float | None = None

    def seek(self, second: float) -> None:
        """Goes to the key frame at or before `second` of the stream's clock (as far as the container knows)."""
        if self._hints:
            # The decoder keeps what it reads there, though it finds no picture.
            with contextlib.suppress(av.error.InvalidDataError):
                self._codec.decode(av.Packet(self._hints))
            self._hints = b""
        ticks = math.floor(second / self._base + 1e-6)
        self._container.seek(ticks, stream=self._stream, backward=True)
        self._restart()

    def find_key(self, limit: float) -> bool:
        """Skips to the first key packet after a seek; False where there is none up to `limit`.

        Some containers (MPEG-TS) seek to any packet, and nothing before a key frame decodes rightly.
        """
        while (packet := self._read()) is not None:
            self._deadline.check()
            stamp = packet.dts if packet.dts is not None else packet.pts
            if packet.is_keyframe:
                stamp = packet.pts if packet.pts is not None and self.clock == "pts" else stamp
                self.key_time = limit if stamp is None else stamp * self._base
                self._hold(packet)
                return self.key_time <= limit
            if stamp is not None and stamp * self._base > limit:
                return False
        return False

    def first(self, name: str) -> Shown:
        """The first frame.

        Raises:
          VideoError: kind "corrupt".
        """
        for _ in range(_MAX_PACKETS_TO_FIRST_FRAME):
            if (shown := self._step()) is not None:
                return shown
            if self._ended:
                break
        raise VideoError(
            "corrupt",
            f"{name}: no frame of its video stream decodes ({self.errors} packets failed)",
            "check the file with ffprobe, or fetch it again",
        )

    def next(self) -> Shown | None:
        """The next frame, or None at the end."""
        while True:
            if (shown := self._step()) is not None:
                return shown
            if self._ended:
                return None

    def _step(self) -> Shown | None:
        """One packet further; a frame if there is one."""
        if not self._frames and not self._ended:
            self._deadline.check()
            for frame in self._decode():
                self.decoded += 1
                self._frames.append(Shown(frame, self._when(frame)))
        return self._frames.popleft() if self._frames else None

    def _read(self) -> av.Packet | None:
        """The next packet of the file, the empty ones that flush the decoder included; None at the end."""
        try:
            packet = next(self._packets)
        except StopIteration:
            return None
        except av.error.ExitError:  # the time limit
            raise
        except av.error.FFmpegError:  # the file ends inside a packet
            self.errors += 1
            self._packets = iter(())
            return av.Packet()
        if not self.first_packet:
            self.first_packet = bytes(packet)
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is not None:
            self.last_dts = stamp * self._base
            if self._fresh:
                self.first_dts, self._fresh = self.last_dts, False
        return packet

    def _hold(self, packet: av.Packet) -> None:
        self._buffer.append(packet)
        if packet.pts is not None:
            bisect.insort(self._stamps, packet.pts)

    def _decode(self) -> list[av.VideoFrame]:
        while len(self._buffer) <= (_LOOK_AHEAD if self._sparing else 0):
            if (packet := self._read()) is None:
                break
            self._hold(packet)
        if not self._buffer:
            self._ended = True
            return []
        packet = self._buffer.popleft()
        if self._sparing:
            self._codec.skip_frame = "DEFAULT" if self._needed(packet) else "NONREF"
        try:
            return self._codec.decode(packet if packet.size else None)
        except av.error.ExitError:
            raise
        except (av.error.FFmpegError, ValueError):
            self.errors += 1
            return []

    def _needed(self, packet: av.Packet) -> bool:
        """Whether the packet's frame is on screen at a wanted time."""
        if packet.pts is None:
            return True
        del self._stamps[: max(0, bisect.bisect_left(self._stamps, packet.pts) - 2 * _LOOK_AHEAD)]
        at = bisect.bisect_right(self._stamps, packet.pts)
        end = self._stamps[at] * self._base if at < len(self._stamps) else float("inf")
        i = bisect.bisect_left(self._wanted, packet.pts * self._base - self._slack)
        return i < len(self._wanted) and self._wanted[i] + self._slack < end

    def _when(self, frame: av.VideoFrame) -> float:
        stamp = frame.dts if self.clock == "dts" else frame.pts
        if stamp is None and self.clock == "pts":
            stamp = frame.dts
            if stamp is None and self._time is None:
                self.clock = "none"
        if stamp is not None and self.clock != "none":
            time = stamp * self._base
        else:  # AVI's last frames come out without a stamp; a bare stream has none at all
            time = 0.0 if self._time is None else self._time + self._pitch
        if self._time is not None:
            # Stamps that run backwards cannot be shown in their order; the order of decoding stands.
            time = max(time, self._time)
            if self.clock != "none":
                self._pitch = time - self._time
        self._time = time
        return time
