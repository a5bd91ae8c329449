"""Everything that can be wrong with a video or a window: a clear error that names it and says what to do, never a hang."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import pickle
import time

import numpy as np
import pytest
import video_makers
import video_reference

from vo3.video import CropPolicy, VideoCrop, VideoError, walk
from vo3.video.errors import KINDS


def refused(source, kind, *says, action=lambda crop: crop.overview(), **kwargs):
    """Reading fails with this kind, quickly, naming the file and offering a remedy."""
    began = time.monotonic()
    with pytest.raises(VideoError) as caught:
        action(VideoCrop(source, **kwargs))
    error = caught.value
    assert time.monotonic() - began < 30
    assert error.kind == kind, error
    assert error.remedy and error.remedy in str(error)
    name = os.fspath(source) if isinstance(source, (str, pathlib.Path)) else ""
    for text in (name, *says):
        assert text in str(error), (text, str(error))
    return error


def test_missing(tmp_path):
    refused(tmp_path / "nowhere.mp4", "missing", "does not exist")
    refused(tmp_path / "nowhere" / "a:b.mp4", "missing", "does not exist")


def test_directory(tmp_path):
    refused(tmp_path, "directory", "frame_fps")


def test_text_renamed(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("This is no video.\n" * 50)
    refused(path, "format", "not a video")


def test_text_is_not_drawn_as_a_video(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("FFmpeg would render this text as pictures of a terminal.\n" * 50)
    refused(path, "format", "not a video")


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_playlists_open_nothing_else(tmp_path, video, name, as_bytes):
    """A playlist that names a good video is not followed."""
    target = video("gop12.mp4")
    path = tmp_path / name
    if name.endswith("ffconcat"):
        path.write_text(f"ffconcat version 1.0\nfile '{target}'\n")
    else:
        path.write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-VERSION:3\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n"
        )
    with pytest.raises(VideoError) as caught:
        VideoCrop(path.read_bytes() if as_bytes else path).overview()
    assert caught.value.kind == "format"


def test_zero_bytes(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    refused(path, "empty", "no bytes")
    refused(b"", "empty")


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes(seed):
    refused(np.random.default_rng(seed).bytes(5000), "format")


def test_pipe(tmp_path):
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    refused(path, "source", "not a regular file")


def test_permission(tmp_path, video):
    path = tmp_path / "locked.mp4"
    path.write_bytes(video("two_frames.mp4").read_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    refused(path, "missing", "permission")


def test_audio_only(tmp_path):
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        for i in range(30):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.rate, frame.pts = 16000, 1024 * i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    refused(path, "no_video", "only audio")


def test_cover_art_is_no_video(tmp_path, video):
    path = tmp_path / "song.mp3"
    cover = tmp_path / "cover.png"
    cover.write_bytes(video("still.png").read_bytes())
    made = video_makers.ffmpeg(
        "-f", "lavfi", "-i", "sine=d=2", "-i", str(cover), "-map", "0", "-map", "1",
        "-c:v", "copy", "-disposition:v", "attached_pic", str(path),
    )  # fmt: skip
    if not made:
        pytest.skip("ffmpeg is not installed (apt install ffmpeg)")
    refused(path, "no_video", "no video stream")


def test_aspect_ratio(tmp_path):
    path = tmp_path / "wide.mkv"
    video_makers.write(path, codec="ffv1", frames=30, height=4, width=1004, pix_fmt="bgr0")
    refused(path, "aspect", "1004 x 4")
    path = tmp_path / "just.mkv"
    video_makers.write(path, codec="ffv1", frames=30, height=4, width=800, pix_fmt="bgr0")
    assert VideoCrop(path).overview().width >= 28 * 28


def test_one_frame(video):
    crop = VideoCrop(video("one_frame.mp4"))
    clip = crop.overview()
    assert clip.indices.tolist() == [0, 0] and (clip.frames[0] == clip.frames[1]).all()
    assert crop.duration == pytest.approx(0.04, abs=0.001)
    refused(video("one_frame.mp4"), "window", action=lambda crop: crop.crop(0, 1, "fine"))


def test_one_pixel(video):
    clip = VideoCrop(video("one_pixel.mkv")).overview()
    assert clip.frames.shape[1] == clip.frames.shape[2] >= 28
    assert (clip.frames == clip.frames[:, :1, :1]).all()


@pytest.mark.parametrize(
    ("window", "says"),
    [((9, 3), "before it starts"), ((3, 3), "before it starts"), ((-9, -3), "outside"), ((100, 120), "outside"),
     ((28, 40), "outside"), ((float("nan"), 9), "finite"), ((3, float("inf")), "finite"), ((3, 3.5), "less than 1 s"),
     ((27.5, 90), "less than 1 s"), ((-5, 0.5), "less than 1 s"), (("one", 5), "not two numbers"), ((None, None), "not two numbers")],
)  # fmt: skip
def test_windows(video, window, says):
    with pytest.raises(VideoError, match=says) as caught:
        VideoCrop(video("gop12.mp4")).crop(*window, "fine")
    assert caught.value.kind == "window" and caught.value.remedy


def test_a_window_that_hangs_over_is_clipped(video):
    crop = VideoCrop(video("gop12.mp4"))
    clip = crop.crop(-3, 2, "fine")
    assert (clip.start, clip.end, clip.times[0]) == (0, 2, 0)
    clip = crop.crop(26, 99, "fine")
    assert (clip.start, clip.end) == (26, crop.duration)
    assert clip.times[-1] == pytest.approx(crop.duration - 0.04)
    assert len(crop.crop(4.2, 5.2, "fine").frames) == 4


def test_unknown_strategy(video):
    with pytest.raises(VideoError, match="'finest'") as caught:
        VideoCrop(video("gop12.mp4")).crop(1, 5, "finest")
    assert caught.value.kind == "strategy"


@pytest.mark.parametrize("source", [3, None, {"path": "x"}, np.zeros(3)])
def test_what_is_no_source(source):
    refused(source, "source", type(source).__name__)


@pytest.mark.parametrize("path", ["https://example.com/a.mp4", "", "a\0b.mp4"])
def test_what_is_no_path(path):
    with pytest.raises(VideoError) as caught:
        VideoCrop(path)
    assert caught.value.kind == "source"


def test_a_text_file_object(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("x")
    with path.open() as file, pytest.raises(VideoError, match="binary") as caught:
        VideoCrop(file)
    assert caught.value.kind == "source"


def outcome(action) -> str:
    """The kind of error, or "read"."""
    try:
        action()
    except VideoError as error:
        return error.kind
    return "read"


# ---- cut files

CUTS = [0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 0.97]


@pytest.fixture(scope="session")
def to_cut(video_folder):
    """A video in every container, most bytes in its frames. The index of "faststart" stands first, that of "mp4" last."""

    def noisy(i, height, width):
        return np.random.default_rng(i).integers(0, 256, (height, width, 3)).astype(np.uint8)

    paths = {}
    for name, muxer in (
        ("mp4", {}),
        ("faststart.mp4", {"movflags": "faststart"}),
        ("mkv", {}),
        ("ts", {}),
        ("avi", {}),
    ):
        path = video_folder / f"to_cut.{name}"
        if not path.exists():
            video_makers.write(path, frames=500, gop=50, muxer=muxer, image=noisy)
        paths[name] = path
    return paths


@pytest.mark.parametrize("share", CUTS)
@pytest.mark.parametrize("kind", ["mp4", "faststart.mp4", "mkv", "ts", "avi"])
def test_truncated(tmp_path, to_cut, kind, share):
    """Cut anywhere: an error that names the file, or, where the container allows, the frames that are there."""
    data = to_cut[kind].read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data[: int(len(data) * share)])
    if kind == "mp4":  # the index was at the end
        refused(path, "format", "not a video")
        return
    if kind in (
        "ts",
        "avi",
    ):  # no declared length, or one that FFmpeg corrects: what is there is all there is
        crop = VideoCrop(path)
        assert crop.duration == pytest.approx(20 * share, abs=1.5)
        if share < 0.1:
            return
        clip = crop.overview()
        # Threads conceal the half frame at the cut differently.
        whole = clip.times < video_reference.times_of(path)[-1] - 0.2
        kept = {name: getattr(clip, name)[whole] for name in ("frames", "times", "indices")}
        video_reference.check(path, crop, [dataclasses.replace(clip, **kept)])
        return
    if share < 0.97:
        error = refused(path, "truncated", "20.0 s")
        assert "windows before" in error.remedy
    if share < 0.2:
        return
    # Before the cut all is well.
    crop, whole = VideoCrop(path), VideoCrop(to_cut[kind])
    assert crop.duration == whole.duration
    end = 20 * share - 1.5
    ours, theirs = crop.crop(end / 2, end, "coarse"), whole.crop(end / 2, end, "coarse")
    assert (ours.frames == theirs.frames).all() and (ours.times == theirs.times).all()


def test_a_short_missing_tail_is_held(tmp_path, to_cut):
    data = to_cut["faststart.mp4"].read_bytes()
    path = tmp_path / "tail.mp4"
    path.write_bytes(data[: int(len(data) * 0.97)])
    clip = VideoCrop(path).overview()
    assert clip.indices[-1] == 499 and 19.0 < clip.times[-1] < 19.9


def test_sound_that_goes_on_after_the_pictures(tmp_path, video):
    """The container is as long as its sound; the last picture stays, and nothing is called truncated."""
    path = tmp_path / "long_sound.mkv"
    made = video_makers.ffmpeg(
        "-i", str(video("plain.mkv")), "-f", "lavfi", "-i", "sine=d=40", "-map", "0:v", "-map", "1:a",
        "-c:v", "copy", "-c:a", "aac", str(path),
    )  # fmt: skip
    if not made:
        pytest.skip("ffmpeg is not installed (apt install ffmpeg)")
    import vo3.video.container as container

    crop = VideoCrop(path)
    assert crop.duration == pytest.approx(12, abs=0.1)  # the track's own tag
    crop._probe = container.dataclasses.replace(crop._probe, frames=1000)  # as without that tag
    crop.frames = 1000
    assert crop.crop(20, 38, "coarse").times.max() == pytest.approx(11.96, abs=0.01)


@pytest.mark.parametrize("kind", ["faststart.mp4", "mkv", "ts"])
def test_damage_in_the_middle(tmp_path, to_cut, kind):
    """A few overwritten kilobytes cost at most the frames around them, never the call's time limit."""
    data = bytearray(to_cut[kind].read_bytes())
    middle = len(data) // 2
    data[middle : middle + 6000] = bytes(6000)
    path = tmp_path / f"hole.{kind}"
    path.write_bytes(data)
    crop = VideoCrop(path, timeout_s=30)
    whole = VideoCrop(to_cut[kind])
    assert outcome(crop.overview) in ("read", "corrupt", "truncated")
    ours, theirs = crop.crop(1, 6, "coarse"), whole.crop(1, 6, "coarse")
    assert (ours.frames == theirs.frames).all()


@pytest.fixture(scope="session")
def recordings(video_folder):
    """Files whose clock starts at zero; "late.ts" starts hours into it."""
    mpeg2 = {"codec": "mpeg2video", "gop": 15, "options": {"bf": "2"}}
    late = {"muxer": {"output_ts_offset": "36000"}}
    makers = {
        "one.ts": {},
        "late.ts": late,
        "one.m2ts": {"format": "mpegts", "muxer": {"mpegts_m2ts_mode": "1"}},
        "one.mpg": mpeg2 | {"format": "mpeg"},
        "one.vob": mpeg2 | {"format": "vob"},
    }
    for name, options in makers.items():
        video_makers.write(video_folder / name, frames=125, **options)
    return {name: (video_folder / name).read_bytes() for name in makers}


@pytest.mark.parametrize(
    "parts",
    [("one.ts", "one.ts"), ("late.ts", "one.ts"), ("one.m2ts", "one.m2ts"), ("one.mpg", "one.mpg"), ("one.vob", "one.vob")],
    ids="+".join,
)  # fmt: skip
def test_joined_recordings_are_refused_and_the_remedy_helps(tmp_path, recordings, parts):
    """The clock starts again, and what is behind the joint cannot be asked for: never the first half alone."""
    path = tmp_path / f"joined.{parts[0].rpartition('.')[2]}"
    path.write_bytes(b"".join(recordings[part] for part in parts))
    error = refused(path, "corrupt", "after 125 frames", "step back")
    command = error.remedy.partition("ffmpeg ")[2].split()
    mended = tmp_path / "mended.mkv"
    names = {"IN": str(path), "OUT.mkv": str(mended)}
    if not video_makers.ffmpeg(*(names.get(word, word) for word in command)):
        pytest.skip("ffmpeg is not installed (apt install ffmpeg)")
    crop = VideoCrop(mended)
    assert crop.frames == 250 and crop.duration == pytest.approx(10, abs=0.05)
    second = crop.crop(6, 9, "coarse").frames.astype(int)
    first = VideoCrop(recordings["one.ts"]).crop(1, 4, "coarse").frames
    assert np.abs(second - first).mean() < 25


def test_a_small_step_back_is_no_joint(tmp_path, recordings):
    """A clock that is put right by less than a second."""
    path = tmp_path / "next.ts"
    video_makers.write(path, frames=125, muxer={"output_ts_offset": "4.5"})
    assert VideoCrop(recordings["one.ts"] + path.read_bytes()).duration > 9


def test_a_step_back_is_looked_for_in_two_packets_and_across_the_wrap():
    def steps(*stamps, wraps=True):
        order = walk._Order(1 / 90000, wraps=wraps)
        return [order.step_back(stamp) for stamp in stamps]

    wrap = 1 << 33
    assert not any(steps(*range(0, 10**6, 3600)))
    assert not any(steps(wrap - 7200, wrap - 3600, 0, 3600, 7200))
    assert not any(steps(0, 3600, 10**9, 10800, 14400, 18000))  # one damaged stamp
    assert not any(steps(10**9, 10**9 + 3600, 0, 10**9 + 10800, 10**9 + 14400))
    assert steps(900000, 903600, 0, 3600)[-1] == 896400
    assert steps(900000, 903600, wrap, wrap + 3600)[-1] == 896400
    assert not any(steps(900000, 903600, wrap, wrap + 3600, wraps=False))


def test_a_recording_is_walked_through_within_the_time_limit(recordings, monkeypatch):
    def slow(*streams):
        for _ in range(1000):
            time.sleep(0.01)
            yield from ()
        yield from real(*streams)

    real = walk.packets
    monkeypatch.setattr(walk, "packets", slow)
    began = time.monotonic()
    with pytest.raises(VideoError) as caught:
        VideoCrop(recordings["one.ts"], timeout_s=1)
    assert caught.value.kind == "timeout" and time.monotonic() - began < 5


def test_nothing_decodes(tmp_path, to_cut):
    """An index that promises frames over bytes that hold none."""
    data = bytearray(to_cut["faststart.mp4"].read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path = tmp_path / "hollow.mp4"
    path.write_bytes(data)
    refused(path, "corrupt", "decodes")


@pytest.mark.soak
def test_fuzz(tmp_path, to_cut):
    """Thousands of flipped bytes: an error of ours or a clip, never another exception, a crash or a hang."""
    rng, ends = np.random.default_rng(0), []
    for i in range(600):
        kind = ("faststart.mp4", "mkv", "ts", "avi")[i % 4]
        data = np.frombuffer(to_cut[kind].read_bytes(), np.uint8).copy()
        where = rng.integers(0, len(data) if i % 3 else 3000, 1 + i % 40)
        data[where] = rng.integers(0, 256, len(where))

        def use(data=data):
            crop = VideoCrop(data.tobytes(), CropPolicy(max_frames=16), timeout_s=20)
            crop.overview()
            crop.crop(2, 6, "coarse")

        ends.append(outcome(use))
    assert set(ends) <= {"read", *KINDS} - {"timeout"}
    assert len(set(ends)) >= 4 and ends.count("read") > 50


def test_errors_survive_pickling():
    error = VideoError("window", "the window is odd", "choose another")
    again = pickle.loads(pickle.dumps(error))
    assert (again.kind, again.message, again.remedy, str(again)) == (
        "window",
        "the window is odd",
        "choose another",
        str(error),
    )
    with pytest.raises(ValueError, match="strange"):
        VideoError("strange", "", "")
