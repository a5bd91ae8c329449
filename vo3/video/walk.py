"""A walk through all packets of a stream, without decoding: how long it truly is, and whether its time stamps go on to the end."""

from __future__ import annotations

import collections
import dataclasses

import av

from vo3.video.deadline import Deadline
from vo3.video.errors import VideoError
from vo3.video.reader import packets

# Neither knows its length: FFmpeg compares the first and the last time stamp, and where recordings were joined the stamps
# of the second start again.
STAMPED = frozenset(("mpegts", "mpeg"))
# Bare streams without a header. FFmpeg guesses their length from the bit rate, or not at all.
BARE = frozenset(
    ("mpegvideo", "m4v", "h261", "h263", "h264", "hevc", "vvc", "evc", "obu", "vc1", "cavsvideo", "avs2", "avs3", "dirac", "mjpeg")
)  # fmt: skip

_FALLBACK_FPS = 25.0  # for streams that carry no times at all and name no rate
_STEP_BACK_S = 1.0
_WRAP = 1 << 33  # ticks at which the clock of MPEG-TS and -PS starts again, after 26.5 hours


@dataclasses.dataclass(frozen=True)
class Walk:
    """What the packets say.

    Attributes:
      fps: on average; where they carry no times, what the header says.
      frames: packets.
      seconds: from the first frame to the end of the last one.
    """

    fps: float
    frames: int
    seconds: float


def walk(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    deadline: Deadline,
    *,
    fps: float | None,
    clock: str,
    name: str,
) -> Walk:
    """Reads the whole file once, from storage too, and decodes nothing; the deadline is checked at every packet.

    Args:
      container, stream: newly opened.
      deadline: of the call.
      fps: what the header says, for streams that carry no times.
      clock: as in `container.Probe`; where it is "none", packets are counted.
      name: of the video, for errors.

    Raises:
      VideoError: kind "corrupt" where the time stamps step back, "timeout".
    """
    low, high, count, last = float("inf"), float("-inf"), 0, 0.0
    base = float(stream.time_base)
    order = _Order(base, wraps=container.format.name in STAMPED)
    try:
        for packet in packets(container, stream):
            deadline.check()
            if not packet.size or packet.is_discard:
                continue
            count += 1
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None or clock == "none":
                continue
            if back := order.step_back(packet.dts if packet.dts is not None else stamp):
                raise _joined(name, back * base, count - 2)
            low = min(low, stamp * base)
            if stamp * base > high:
                high, last = stamp * base, (packet.duration or 0) * base
    except (av.error.InvalidDataError, av.error.EOFError):
        pass  # a cut tail: the length is what is there
    if high <= low:
        fps = fps or _FALLBACK_FPS
        return Walk(fps, count, count / fps)
    seconds = high - low + (last or (high - low) / (count - 1))
    return Walk(count / seconds, count, seconds)


class _Order:
    """Looks for where the stamps start again.

    It is shown the stamps of decoding: those of presentation step back at every B-frame. Two packets must stand behind the
    two before them: one damaged stamp is no joint.
    """

    def __init__(self, base: float, *, wraps: bool):
        self._least = _STEP_BACK_S / base
        self._wraps = wraps
        self._stamps: collections.deque[int] = collections.deque(maxlen=4)

    def step_back(self, stamp: int) -> int:
        """Ticks by which the last two stamps stand behind the two before them; 0 where they do not."""
        self._stamps.append(stamp)
        if len(self._stamps) < 4:
            return 0
        first, second, *after = self._stamps
        back = min(self._behind(s, a) for s in (first, second) for a in after)
        return back if back > self._least else 0

    def _behind(self, stamp: int, after: int) -> int:
        behind = stamp - after
        if self._wraps:
            # A step back to more than a minute before the file's start looks like a wrap to FFmpeg, which adds 26.5 hours.
            behind = (behind + _WRAP // 2) % _WRAP - _WRAP // 2
        return behind


def _joined(name: str, back: float, frames: int) -> VideoError:
    return VideoError(
        "corrupt",
        f"{name}: after {frames} frames its time stamps step back by {back:.1f} s, as where recordings were joined",
        "give it one clock: ffmpeg -fflags +genpts -i IN -c copy OUT.mkv",
    )
