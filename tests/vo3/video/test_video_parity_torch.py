"""Against torch, torchvision, transformers and qwen-vl-utils: linspace, resize, patches, sizes, whole clips."""

from __future__ import annotations

import importlib
import itertools
import math
import platform
import random
import sys

import numpy as np
import pytest
import torch

from vo3.video import CropPolicy, VideoCrop, VideoError, patchify, patchify_image, plan_clip
from vo3.video.resize import resize
from vo3.video.sampling import fit, linspace32


@pytest.fixture(scope="module")
def vision_process():
    """No `importorskip`: the dev extra brings it, so where it is missing the environment is stale and that should be seen."""
    return importlib.import_module("qwen_vl_utils.vision_process")


def test_linspace_is_bitwise_that_of_torch():
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("torch does not use fused multiply-add on this processor")
    rng = random.Random(0)
    for _ in range(4000):
        first = rng.randrange(0, 200_000)
        last = first + rng.randrange(1, 40_000)
        n = 2 * rng.randrange(1, 385)
        ours = linspace32(first, last, n)
        theirs = torch.linspace(first, last, n)
        assert (ours == theirs.numpy()).all(), (first, last, n)
        assert (np.rint(ours).astype(np.int64) == theirs.round().long().numpy()).all()


def test_frame_ranges_are_those_of_qwen_vl_utils(vision_process):
    rng = random.Random(1)
    for _ in range(2000):
        fps = rng.choice([1.0, 10.0, 23.976, 25.0, 30000 / 1001, 60.0])
        frames = rng.randrange(2, 200_000)
        start = rng.uniform(-2, frames / fps)
        element = {"video_start": start, "video_end": start + rng.uniform(-1, 100)}
        window = (element["video_start"], element["video_end"])
        if rng.random() < 0.2:
            element, window = {}, None
        try:
            first, last, count = vision_process.calculate_video_frame_range(element, frames, fps)
        except ValueError:
            with pytest.raises(VideoError):
                plan_clip(fps=fps, frames=frames, height=99, width=99, window=window)
            continue
        n = vision_process.smart_nframes({}, total_frames=count, video_fps=fps)
        wanted = torch.linspace(first, last, n).round().long().tolist()
        plan = plan_clip(fps=fps, frames=frames, height=99, width=99, window=window)
        assert plan.indices.tolist() == wanted
        assert plan.fps == n / count * fps


def test_sizes_are_those_of_qwen_vl_utils(vision_process):
    rng = random.Random(2)
    departures = 0
    for _ in range(5000):
        height, width = rng.randrange(1, 2500), rng.randrange(1, 4000)
        upper = rng.uniform(4, 768)
        lower = rng.uniform(0, upper / 3)
        arguments = {"min_pixels": lower * 784, "max_pixels": upper * 784}
        try:
            wanted = vision_process.smart_resize(height, width, factor=28, **arguments)
        except ValueError:
            with pytest.raises(VideoError):
                fit(height, width, lower=lower, upper=upper)
            continue
        ours = fit(height, width, lower=lower, upper=upper)
        if min(wanted) > 0 and wanted[0] * wanted[1] <= upper * 784:
            assert ours == wanted
        else:  # it forgets the least side, or it exceeds the quota
            departures += 1
            assert min(wanted) <= 28 == min(ours)
            assert ours[0] * ours[1] <= upper * 784
    assert departures > 0


def test_image_sizes_are_those_of_transformers():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    for height, width in itertools.product(
        (28, 57, 100, 333, 720, 1081), (28, 99, 640, 1280, 3000)
    ):
        wanted = smart_resize(height, width, 28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
        assert fit(height, width, lower=4, upper=1280) == wanted


SIZES = [
    ((168, 336), (28, 56)),
    ((720, 1280), (280, 504)),
    ((64, 96), (252, 392)),
    ((331, 57), (140, 28)),
    ((100, 100), (100, 56)),
]


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("kind", ["smooth", "noise", "edges"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_resize_is_that_of_torchvision(before, after, kind, version):
    """Both implementations: v1 computes in float, v2 in bytes (as Pillow, and as today's processors call it)."""
    import torchvision.transforms.functional as v1
    import torchvision.transforms.v2.functional as v2

    modes = v1.InterpolationMode

    rng = np.random.default_rng(0)
    y, x = np.mgrid[: before[0], : before[1]]
    image = {
        "smooth": np.stack([x * 255 // before[1], y * 255 // before[0], (x + y) % 256], -1),
        "noise": rng.integers(0, 256, (*before, 3)),
        # Not black and white: what shoots over is cut once by v1 and twice by v2, which differ by a level.
        "edges": np.repeat(((x // 9 + y // 7) % 2 * 215 + 20)[..., None], 3, -1),
    }[kind].astype(np.uint8)
    ours = resize(image, *after)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    theirs = {"v1": v1, "v2": v2}[version].resize(
        pixels, list(after), modes.BICUBIC, antialias=True
    )
    difference = np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy().astype(int))
    assert difference.mean() <= 0.4


@pytest.mark.parametrize(
    "shape", [(2, 28, 28), (4, 56, 84), (6, 140, 28), (3, 28, 56), (1, 56, 56), (10, 84, 168)]
)
def test_patches_are_those_of_the_video_processor(shape):
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    frames = np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3)).astype(np.uint8)
    processor = Qwen2VLVideoProcessor(do_resize=False, do_sample_frames=False)
    theirs = processor(torch.from_numpy(frames).permute(0, 3, 1, 2), return_tensors="pt")
    patches, grid = patchify(frames)
    assert patches.dtype == np.float32
    assert [list(grid)] == theirs["video_grid_thw"].tolist()
    assert np.abs(patches - theirs["pixel_values_videos"].numpy()).max() <= 1e-5


@pytest.mark.parametrize("size", [(28, 28), (56, 140), (252, 84)])
def test_image_patches_are_those_of_the_image_processor(size):
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    theirs = Qwen2VLImageProcessorPil(do_resize=False)(Image.fromarray(image), return_tensors="np")
    patches, grid = patchify_image(image)
    assert [list(grid)] == theirs["image_grid_thw"].tolist()
    assert np.abs(patches - theirs["pixel_values"]).max() <= 1e-5


def test_qwen3_patches_are_16_pixels():
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3)).astype(np.uint8)
    patches, grid = patchify(frames, patch_size=16)
    assert patches.shape == (2 * 4 * 6, 3 * 2 * 16 * 16) and grid == (2, 4, 6)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 30, 28, 3), np.uint8), np.zeros((2, 28, 28, 3), np.float32), np.zeros((2, 28, 28), np.uint8), np.zeros((0, 28, 28, 3), np.uint8)],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked_shapes")
def test_patchify_refuses(frames):
    with pytest.raises(ValueError, match="frames"):
        patchify(frames)


def test_whole_clips_are_those_of_qwen_vl_utils_with_decord(vision_process, video, monkeypatch):
    """The original's reader on the same file and window: the same frames, size and sample fps, nearly the same pixels."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        importlib.import_module("decord")
    else:
        pytest.skip("decord has no build for this machine")
    monkeypatch.setenv("FORCE_QWENVL_VIDEO_READER", "decord")
    monkeypatch.setattr(vision_process, "FORCE_QWENVL_VIDEO_READER", "decord")
    vision_process.get_video_reader_backend.cache_clear()
    path = str(video("gop12.mp4"))
    crop = VideoCrop(path, CropPolicy(recipe="eval", crop_min=0, patch_min=20))
    for start, end, strategy in (
        (2.0, 9.5, "coarse"),
        (13.3, 27.9, "medium"),
        (20.0, 21.5, "fine"),
    ):
        quota = crop.policy.quota(strategy)
        element = {
            "video": path,
            "video_start": start,
            "video_end": end,
            "total_pixels": quota * 784,
            "min_pixels": 20 * 784,
        }
        theirs, fps = vision_process.fetch_video(element, return_video_sample_fps=True)
        ours = crop.crop(start, end, strategy)
        assert ours.fps == pytest.approx(fps)
        theirs = theirs.permute(0, 2, 3, 1).numpy()
        assert ours.frames.shape == theirs.shape
        for i in range(len(theirs)):
            differences = np.abs(ours.frames.astype(float) - theirs[i]).mean((1, 2, 3))
            assert math.isclose(differences[i], differences.min()) and differences[i] < 3
