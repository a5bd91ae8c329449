"""Keys name what decides the pixels, no more and no less; entries come back bitwise."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil

import ml_dtypes
import numpy as np
import pytest
from loader_world import POLICY, write_video
from PIL import Image

from vo3.data.clip_cache import ClipCache, Entry, clip_key, identity, pack_entry, unpack_entry
from vo3.data.clips import ClipRef
from vo3.video import CropPolicy, VideoCrop


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    return write_video(tmp_path_factory.mktemp("clips") / "a.mp4", seed=3)


@pytest.fixture(scope="module")
def clip(video):
    return VideoCrop(video, POLICY).crop(2.0, 7.0, "fine")


def test_a_clip_comes_back_bitwise(tmp_path, clip):
    cache = ClipCache(tmp_path, limit_bytes=1 << 24)
    assert cache.get("k" * 40) is None
    assert cache.put("k" * 40, clip)
    again = pickle.loads(pickle.dumps(cache)).get("k" * 40)
    for field in dataclasses.fields(clip):
        a, b = getattr(again, field.name), getattr(clip, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b and type(a) is type(b)
    assert again.observation(3, "fine") == clip.observation(3, "fine")


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_entries_of_every_dtype(clip, dtype):
    array = np.arange(24).reshape(4, 6).astype(np.dtype(dtype))
    data = b"".join(bytes(part) for part in pack_entry(Entry(clip.observation(0), array)))
    entry = unpack_entry(memoryview(data))
    assert entry.observation == clip.observation(0)
    assert entry.array.dtype == array.dtype
    np.testing.assert_array_equal(entry.array, array)
    assert ml_dtypes.bfloat16 is not None


REF = {"window": (1.0, 5.0), "sample": "fine"}


def test_a_key_tells_apart_what_gives_other_pixels(video, clip, tmp_path):
    other = write_video(tmp_path / "b.mp4", seed=4)
    shown = clip.observation(1, "fine")
    refs = [
        ClipRef(video),
        ClipRef(video, **REF),
        ClipRef(video, (1.0, 5.5), "fine"),
        ClipRef(video, (1.5, 5.0), "fine"),
        ClipRef(video, (1.0, 5.0), "coarse"),
        ClipRef(video, (1.0, 5.0), None),
        ClipRef(video, (1.0, 5.0), "old_quota", clips=2),
        ClipRef(video, (1.0, 5.0), "old_quota", clips=3),
        ClipRef(video, **REF, frame_fps=4.0),
        ClipRef(other, **REF),
        ClipRef(video, shown=shown),
        ClipRef(video, shown=dataclasses.replace(shown, indices=tuple(i + 1 for i in shown.indices))),
        ClipRef(video, shown=dataclasses.replace(shown, height=shown.height + 28)),
    ]  # fmt: skip
    keys = [clip_key(ref, POLICY) for ref in refs]
    keys.append(clip_key(refs[1], dataclasses.replace(POLICY, fine_quota=13)))
    assert len(set(keys)) == len(keys)


def test_a_key_is_the_same_where_the_pixels_are(video, clip, tmp_path):
    copy = tmp_path / "elsewhere.mp4"
    shutil.copy(video, copy)
    assert clip_key(ClipRef(str(copy), **REF), POLICY) == clip_key(ClipRef(video, **REF), POLICY)
    # How many clips a row has matters to "old_quota" alone, and a policy not at all to frames that are named.
    assert clip_key(ClipRef(video, **REF, clips=2), POLICY) == clip_key(
        ClipRef(video, **REF), POLICY
    )
    shown = ClipRef(video, shown=clip.observation(1, "fine"))
    again = ClipRef(video, shown=clip.observation(7, "coarse"))
    assert clip_key(shown, POLICY) == clip_key(again, CropPolicy())


def test_a_video_that_changed_is_another(tmp_path):
    path = tmp_path / "a.mp4"
    data = bytearray(os.urandom(300_000))
    path.write_bytes(data)
    first = identity(str(path))
    assert identity(f"file://{path}") == first
    for at in (0, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        os.utime(path, ns=(1, at + 10))
        assert identity(str(path)) != first
    path.write_bytes(data[:-1])
    assert identity(str(path)) != first
    path.write_bytes(data)
    assert identity(str(path)) == first


def test_folders_and_lists_of_frames(tmp_path):
    for i in range(12):
        Image.fromarray(np.full((56, 56, 3), i, np.uint8)).save(tmp_path / f"{i:02d}.png")
    files = tuple(str(tmp_path / f"{i:02d}.png") for i in range(12))
    whole = identity(str(tmp_path))
    assert identity(files) == whole
    assert identity(files[:-1]) != whole
    assert identity(files[::-1]) != whole
    Image.fromarray(np.full((56, 56, 3), 99, np.uint8)).save(tmp_path / "00.png")
    assert identity(str(tmp_path)) != whole


def test_a_missing_video_has_no_key(tmp_path):
    with pytest.raises(FileNotFoundError):
        clip_key(ClipRef(str(tmp_path / "none.mp4")), POLICY)
