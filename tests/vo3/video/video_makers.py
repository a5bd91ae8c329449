"""Small real video files of every kind that has bitten, made with PyAV (and ffmpeg where only it can)."""

from __future__ import annotations

import fractions
import io
import pathlib
import shutil
import subprocess

import av
import numpy as np

HEIGHT, WIDTH = 64, 96


def picture(i: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """An RGB image that no other number gives: a drifting texture, a moving bar, the number as 12 black or white blocks."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([(x * 2 + 3 * i) % 256, (y * 3 + 5 * i) % 256, (x + y + 7 * i) % 256], -1)
    image = image.astype(np.uint8)
    image[:, (i * 3) % width] = 255
    block = max(1, width // 12)
    for bit in range(12):
        image[: max(1, height // 6), bit * block : (bit + 1) * block] = 255 * (i >> bit & 1)
    return image


def large_picture(i: int, height: int, width: int) -> np.ndarray:
    """A picture of 1/16 the size, enlarged: cheap at 8K."""
    return picture(i, height // 16, width // 16).repeat(16, 0).repeat(16, 1)


def write(
    file: str | pathlib.Path | io.RawIOBase,
    *,
    frames: int = 100,
    codec: str = "libx264",
    fps: int = 25,
    height: int = HEIGHT,
    width: int = WIDTH,
    pix_fmt: str = "yuv420p",
    gop: int = 250,
    x264: str = "bframes=3:scenecut=0",
    times_ms: list[int] | None = None,
    orientation: tuple[int, bool, bool] | None = None,
    format: str | None = None,
    muxer: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    image=picture,
) -> None:
    """Encodes `frames` pictures; at `times_ms` where given."""
    options = dict(options or {})
    if codec == "libx264":
        options |= {"preset": "veryfast", "x264-params": f"keyint={gop}:min-keyint=1:{x264}"}
    if codec == "libx265":
        options |= {"preset": "ultrafast", "x265-params": f"keyint={gop}:log-level=none:{x264}"}
    if isinstance(file, pathlib.Path):
        file = str(file)
    with av.open(file, "w", format=format, options=muxer or {}) as out:
        stream = out.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.codec_context.gop_size = gop
        if times_ms is not None:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        if orientation is not None:
            degrees, mirror, flip = orientation
            stream.set_display_rotation(degrees, hflip=mirror, vflip=flip)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(image(i, height, width), format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[i], fractions.Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


class Pipe(io.RawIOBase):
    """A file that cannot seek: a muxer cannot go back to write counts, durations or an index."""

    def __init__(self):
        self.data = bytearray()

    def write(self, data) -> int:
        self.data += bytes(data)
        return len(data)

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def irregular(count: int, seed: int = 0) -> list[int]:
    """Milliseconds with steps from 10 ms to 2 s."""
    steps = np.random.default_rng(seed).choice(
        [10, 20, 40, 120, 700, 2000], count, p=[0.2, 0.2, 0.3, 0.15, 0.1, 0.05]
    )
    return np.cumsum(steps).tolist()


def ffmpeg(*arguments: str) -> bool:
    """Runs ffmpeg; False where it is not installed."""
    if shutil.which("ffmpeg") is None:
        return False
    subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments], check=True, timeout=120)
    return True


def _write_live_webm(path: pathlib.Path, **kwargs) -> None:
    pipe = Pipe()
    write(
        pipe,
        codec="libvpx",
        format="webm",
        options={"deadline": "realtime", "cpu-used": "8"},
        **kwargs,
    )
    path.write_bytes(bytes(pipe.data))


def _remux(
    source: pathlib.Path, path: pathlib.Path, *before: str, after: tuple[str, ...] = ()
) -> None:
    ffmpeg(*before, "-i", str(source), "-c", "copy", *after, str(path))


# Name of a file -> how it is made in a folder. Those that ffmpeg makes from another are left out without it.
MAKERS = {
    "gop250.mp4": lambda d: write(d / "gop250.mp4", frames=700),
    "gop12.mp4": lambda d: write(d / "gop12.mp4", frames=700, gop=12),
    "open_gop.mp4": lambda d: write(d / "open_gop.mp4", frames=300, gop=30, x264="bframes=3:b-adapt=0:open-gop=1:scenecut=0"),
    "intra_refresh.mp4": lambda d: write(d / "intra_refresh.mp4", frames=200, gop=40, x264="intra-refresh=1:bframes=0"),
    "444.mp4": lambda d: write(d / "444.mp4", frames=150, gop=40, pix_fmt="yuv444p"),
    "hevc.mp4": lambda d: write(d / "hevc.mp4", codec="libx265", frames=150, gop=30, x264="bframes=3"),
    "vfr.mp4": lambda d: write(d / "vfr.mp4", frames=200, gop=30, times_ms=irregular(200)),
    "vfr.mkv": lambda d: write(d / "vfr.mkv", frames=200, gop=30, times_ms=irregular(200, 1)),
    "fragmented.mp4": lambda d: write(d / "fragmented.mp4", frames=200, gop=50, muxer={"movflags": "frag_keyframe+empty_moov"}),
    "plain.mkv": lambda d: write(d / "plain.mkv", frames=300, gop=50),
    "vp8.webm": lambda d: write(d / "vp8.webm", codec="libvpx", frames=150, gop=50, options={"deadline": "realtime", "cpu-used": "8"}),
    "live.webm": lambda d: _write_live_webm(d / "live.webm", frames=150, gop=50),
    "live_vfr.webm": lambda d: _write_live_webm(d / "live_vfr.webm", frames=120, gop=30, times_ms=irregular(120, 2)),
    "mpeg4_b.avi": lambda d: write(d / "mpeg4_b.avi", codec="mpeg4", frames=300, gop=30, options={"bf": "2"}),
    "mjpeg.avi": lambda d: write(d / "mjpeg.avi", codec="mjpeg", frames=100, pix_fmt="yuvj420p"),
    "h264.avi": lambda d: write(d / "h264.avi", frames=300, gop=60),
    "plain.ts": lambda d: write(d / "plain.ts", frames=300, gop=60),
    "mpeg2.ts": lambda d: write(d / "mpeg2.ts", codec="mpeg2video", frames=200, gop=15, options={"bf": "2"}),
    "hours.ts": lambda d: write(d / "hours.ts", frames=100, gop=25, muxer={"output_ts_offset": "36000"}),
    "wraps.ts": lambda d: write(d / "wraps.ts", frames=300, gop=25, muxer={"output_ts_offset": "95437"}),
    "camera.m2ts": lambda d: write(d / "camera.m2ts", frames=100, gop=25, format="mpegts", muxer={"mpegts_m2ts_mode": "1"}),
    "plain.flv": lambda d: write(d / "plain.flv", frames=200, gop=50),
    "bare.h264": lambda d: write(d / "bare.h264", frames=100, gop=25, format="h264"),
    "bare.m2v": lambda d: write(d / "bare.m2v", codec="mpeg2video", frames=100, gop=15, options={"bf": "2"}, format="mpeg2video"),
    "bare.m4v": lambda d: write(d / "bare.m4v", codec="mpeg4", frames=100, gop=15, options={"bf": "2"}, format="m4v"),
    "anim.gif": lambda d: write(d / "anim.gif", codec="gif", frames=60, fps=10, pix_fmt="rgb8"),
    "one_frame.mp4": lambda d: write(d / "one_frame.mp4", frames=1),
    "two_frames.mp4": lambda d: write(d / "two_frames.mp4", frames=2),
    "one_pixel.mkv": lambda d: write(d / "one_pixel.mkv", codec="ffv1", frames=60, height=1, width=1, pix_fmt="bgr0"),
    "8k.mp4": lambda d: write(d / "8k.mp4", codec="mjpeg", frames=3, fps=2, height=4320, width=7680, pix_fmt="yuvj420p", image=large_picture),
    "still.png": lambda d: write(d / "still.png", codec="png", frames=1, pix_fmt="rgb24", format="image2"),
}  # fmt: skip
FROM_OTHERS = {
    # Starting between two key frames, a copy keeps the frames from the key frame on and hides the first ones in an edit list.
    "edit_list.mp4": lambda d: _remux(d / "gop12.mp4", d / "edit_list.mp4", "-ss", "3.3"),
    "delayed.mp4": lambda d: _remux(d / "gop12.mp4", d / "delayed.mp4", "-itsoffset", "2.5"),
    "delayed.mkv": lambda d: _remux(d / "plain.mkv", d / "delayed.mkv", "-itsoffset", "1.7"),
}  # fmt: skip


def make(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file with this name, made if it is not there."""
    path = folder / name
    if not path.exists():
        (MAKERS | FROM_OTHERS)[name](folder)
    return path
