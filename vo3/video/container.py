"""What a video stream says of itself, and how frames come out of it: packets, seeks, times, rotation."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
from collections.abc import Iterator

import av
import numpy as np

from vo3.video.deadline import Deadline
from vo3.video.errors import VideoError
from vo3.video.source import Source

# More packets than this without one frame is no video; it bounds the search for the first frame.
_MAX_PACKETS_TO_FIRST_FRAME = 600
_FALLBACK_FPS = 25.0  # for streams that carry no times at all and name no rate


@dataclasses.dataclass(frozen=True)
class Orientation:
    """A display matrix, reduced to what cameras write: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """Reads the frame's display matrix; upright where there is none."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
        # The pixel at (x, y) is shown at (a x + c y, b x + d y).
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transpose=True, mirror_x=c < 0, mirror_y=b < 0)
        return cls(mirror_x=a < 0, mirror_y=d < 0)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The image [h, w, 3] as it is to be shown (a view)."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


@dataclasses.dataclass(frozen=True)
class Probe:
    """What is known of a video before any clip is cut.

    Attributes:
      fps: average frames per second: the pitch of the nominal grid.
      frames: length of the nominal grid.
      height, width: pixels as displayed.
      origin: seconds on the stream's own clock at which the first frame is shown; times count from there.
      start: seconds on that clock of the first packet, in decoding order.
      orientation: how decoded frames are turned for display.
      clock: which time stamp of a frame tells when it is shown: "pts"; "dts" (AVI keeps no others); "none" (a bare
        elementary stream: frames are counted).
      lead: seconds by which the index runs ahead of presentation (the reorder delay of MP4).
      measured: whether length and rate were found by walking through all packets.
      hints: H.264 SEI units of the first packet, b"" if none. x264 names its version there, once per file, and the
        decoder needs it to decode the 4:4:4 streams of versions before 151; whoever seeks past it gets noise.
    """

    fps: float
    frames: int
    height: int
    width: int
    origin: float
    start: float
    orientation: Orientation
    clock: str
    lead: float
    measured: bool
    hints: bytes = b""

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.fps


def probe(source: Source, deadline: Deadline) -> Probe:
    """Opens the source, decodes its first frame, and works out rate and length.

    Raises:
      VideoError: the source is not a video, or not a readable one.
    """
    with source.open(deadline) as container:
        stream = video_stream(container, source.name)
        reader = FrameReader(
            container, stream, clock=clock_of(container), fps=1.0, deadline=deadline
        )
        reader.threads(frames_per_run=1)
        first = reader.first(source.name)
        clock = reader.clock
        origin = first.time if clock != "none" else 0.0
        lead = max(0.0, origin - reader.first_dts) if clock == "pts" and _is_mov(container) else 0.0
        hints = _sei(reader.first_packet, stream.codec_context)
        orientation = Orientation.of(first.frame)
        height, width = first.frame.height, first.frame.width
        if orientation.transpose:
            height, width = width, height
        fps, seconds, declared = _declared(container, stream, origin)
    measured = fps is None or seconds is None
    if measured:
        fps, declared, seconds = _measure(source, deadline, fps)
    frames = max(1, round(seconds * fps))
    # The count in the header is the truer one, unless an edit list shows only a part of the samples.
    if declared and abs(declared - seconds * fps) <= max(1.5, 1e-3 * declared):
        frames = declared
    return Probe(
        fps=fps,
        frames=frames,
        height=height,
        width=width,
        origin=origin,
        start=min(reader.first_dts, origin),
        orientation=orientation,
        clock=clock,
        lead=lead,
        measured=measured,
        hints=hints,
    )


def video_stream(container: av.container.InputContainer, name: str) -> av.video.stream.VideoStream:
    """The first stream of moving pictures.

    Raises:
      VideoError: kind "no_video" or "codec".
    """
    streams = [
        s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        kinds = (
            ", ".join(sorted({s.type for s in container.streams if s.type != "video"})) or "nothing"
        )
        raise VideoError(
            "no_video", f"{name} has no video stream, only {kinds}", "give a file that has pictures"
        )
    if streams[0].codec_context is None:
        raise VideoError(
            "codec", f"{name}: no decoder for its video codec", "convert it to H.264 with ffmpeg"
        )
    return streams[0]


def clock_of(container: av.container.InputContainer) -> str:
    """Which time stamps to trust before the first frame is seen."""
    # AVI stores decoding order only; the presentation times that FFmpeg makes up for it are out of order.
    return "dts" if container.format.name == "avi" else "pts"


def _is_mov(container: av.container.InputContainer) -> bool:
    return container.format.name.startswith("mov")


def _declared(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, origin: float
) -> tuple[float | None, float | None, int]:
    """Average fps, seconds and number of frames as the header has them; None or 0 where it does not tell."""
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate and rate > 0 else None
    seconds = None
    if stream.duration and stream.duration > 0:
        seconds = float(stream.duration * stream.time_base)
    elif (tag := _clock_text(stream.metadata.get("DURATION", ""))) is not None:
        seconds = tag - origin  # Matroska's tag holds the end of the track
    elif container.duration and container.duration > 0:
        start = (container.start_time or 0) / av.time_base
        seconds = container.duration / av.time_base - (origin - start)
    if seconds is not None and seconds <= 0:
        seconds = None
    return fps, seconds, stream.frames


def _clock_text(text: str) -> float | None:
    """Seconds of "00:01:02.345000000", or None."""
    try:
        hours, minutes, seconds = text.split(":")
        value = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None
    return value if value > 0 else None


def _sei(packet: bytes, codec: av.codec.context.CodecContext) -> bytes:
    """The SEI units (type 6) of an H.264 packet, framed as they came."""
    if codec.name != "h264":
        return b""
    header = codec.extradata or b""
    if header[:1] == b"\x01":  # MP4 and Matroska: every unit is preceded by its length
        width, at, units = (header[4] & 3) + 1, 0, []
        while at + width < len(packet):
            end = at + width + int.from_bytes(packet[at : at + width], "big")
            units.append(packet[at:end])
            at = end
        return b"".join(unit for unit in units if unit[width : width + 1] and unit[width] & 31 == 6)
    units = packet.split(b"\x00\x00\x01")[1:]  # a bare stream and MPEG-TS: start codes
    return b"".join(b"\x00\x00\x01" + unit for unit in units if unit and unit[0] & 31 == 6)


def _measure(source: Source, deadline: Deadline, fps: float | None) -> tuple[float, int, float]:
    """Average fps, number of frames and seconds by walking through all packets without decoding."""
    low, high, count, last = float("inf"), float("-inf"), 0, 0.0
    with source.open(deadline) as container:
        stream = video_stream(container, source.name)
        base = float(stream.time_base)
        try:
            for packet in container.demux(stream):
                deadline.check()
                if not packet.size or packet.is_discard:
                    continue
                count += 1
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is None:
                    continue
                low = min(low, stamp * base)
                if stamp * base > high:
                    high, last = stamp * base, (packet.duration or 0) * base
        except (av.error.InvalidDataError, av.error.EOFError):
            pass  # a cut tail: the length is what is there
    if high <= low:
        fps = fps or _FALLBACK_FPS
        return fps, count, count / fps
    seconds = high - low + (last or (high - low) / (count - 1))
    return count / seconds, count, seconds


@dataclasses.dataclass(frozen=True)
class Shown:
    """A decoded frame and the second, on the stream's clock, at which it is shown."""

    frame: av.VideoFrame
    time: float


class FrameReader:
    """Frames in display order from wherever the last seek landed. Skips and counts what does not decode."""

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
        self.first_dts = 0.0  # seconds, of the first packet since the last seek
        self.last_dts = float("-inf")
        self.key_time = float("-inf")  # seconds, of the key frame that `find_key` found
        self._container = container
        self._stream = stream
        self._pitch = 1 / fps  # seconds between the last two frames
        self._deadline = deadline
        self._hints = hints
        self._base = float(stream.time_base)
        # FFmpeg's made-up presentation times would hide that there are none.
        container.flags &= ~av.container.Flags.gen_pts.value
        self._restart()

    def threads(self, *, frames_per_run: float) -> None:
        """Chooses how to decode in parallel: frame threads fill a pipeline that every seek throws away."""
        count = self._stream.codec_context.thread_count or 4
        frame_threads = self.clock == "pts" and frames_per_run >= 3 * min(count, 16)
        self._stream.thread_type = "AUTO" if frame_threads else "SLICE"

    def _restart(self) -> None:
        self._packets: Iterator[av.Packet] = self._container.demux(self._stream)
        self._waiting: av.Packet | None = None
        self._queue: collections.deque[Shown] = collections.deque()
        self._ended = False
        self._fresh = True
        self._time: float | None = None

    def seek(self, second: float) -> None:
        """Goes to the key frame at or before `second` of the stream's clock (as far as the container knows)."""
        if self._hints:
            with contextlib.suppress(
                av.error.InvalidDataError
            ):  # read and kept, though no picture follows
                self._stream.codec_context.decode(av.Packet(self._hints))
            self._hints = b""
        self._container.seek(
            math.floor(second / self._base + 1e-6), stream=self._stream, backward=True
        )
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
                self._waiting = packet
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
        if not self._queue and not self._ended:
            self._deadline.check()
            for frame in self._decode():
                self.decoded += 1
                self._queue.append(Shown(frame, self._when(frame)))
        return self._queue.popleft() if self._queue else None

    def _read(self) -> av.Packet | None:
        """The next packet, the empty ones that flush the decoder included; None at the end."""
        if self._waiting is not None:
            packet, self._waiting = self._waiting, None
            return packet
        try:
            packet = next(self._packets)
        except StopIteration:
            return None
        except (av.error.InvalidDataError, av.error.EOFError):  # the file ends inside a packet
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

    def _decode(self) -> list[av.VideoFrame]:
        packet = self._read()
        if packet is None:
            self._ended = True
            return []
        try:
            return self._stream.codec_context.decode(packet if packet.size else None)
        except (av.error.InvalidDataError, av.error.EOFError, ValueError):
            self.errors += 1
            return []

    def _when(self, frame: av.VideoFrame) -> float:
        stamp = frame.dts if self.clock == "dts" else frame.pts
        if stamp is None and self.clock == "pts":
            stamp = frame.dts
        if stamp is None and self._time is None and self.clock == "pts":
            self.clock = "none"
        if (
            stamp is None or self.clock == "none"
        ):  # AVI's last frames come out without; a bare stream has none at all
            time = 0.0 if self._time is None else self._time + self._pitch
        else:
            time = stamp * self._base
        # Stamps that run backwards cannot be shown in their order; the order of decoding stands.
        if self._time is not None:
            time = max(time, self._time)
            if self.clock != "none":
                self._pitch = time - self._time
        self._time = time
        return self._time
