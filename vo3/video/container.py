"""What a video stream says of itself: rate, length, size, rotation, clock."""

from __future__ import annotations

import dataclasses

import av
import numpy as np

from vo3.video.deadline import Deadline
from vo3.video.errors import VideoError
from vo3.video.reader import FrameReader
from vo3.video.source import Source
from vo3.video.walk import BARE, STAMPED, Walk, walk


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
      measured: whether length and rate were found by walking through all packets, as no header tells them.
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

    Where no header tells the length (MPEG-TS, MPEG-PS, bare streams, live recordings) the whole file is read once, without
    decoding: from an object store, too, within the same deadline. A copy in MP4 or MKV is spared that.

    Raises:
      VideoError: the source is not a video, or not a readable one; "corrupt" too where its time stamps start again.
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
        kind = container.format.name
    measured = fps is None or seconds is None or kind in BARE
    if measured:
        walked = _walk(source, deadline, fps, clock)
        fps, declared, seconds = walked.fps, walked.frames, walked.seconds
    elif kind in STAMPED:
        # The walk is for the joints. FFmpeg's own length misses the last frames of a program stream; a damaged stamp may lead
        # the walk far beyond the end, and its packets not.
        walked = _walk(source, deadline, fps, clock)
        seconds = max(seconds, min(walked.seconds, walked.frames / fps))
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


def _walk(source: Source, deadline: Deadline, fps: float | None, clock: str) -> Walk:
    with source.open(deadline) as container:
        stream = video_stream(container, source.name)
        return walk(container, stream, deadline, fps=fps, clock=clock, name=source.name)


def clock_of(container: av.container.InputContainer) -> str:
    """Which time stamps to trust before the first frame is seen."""
    if container.format.name == "mpegvideo":
        return "none"  # FFmpeg makes its stamps up, and seeks by them to other frames
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
