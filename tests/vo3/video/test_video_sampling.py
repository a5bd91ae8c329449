"""Which frames, at what size: against formulas written down a second time, worked cases and random ones."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vo3.video import ClipPlan, CropPolicy, VideoError, plan_clip
from vo3.video.policy import RECIPES
from vo3.video.sampling import check_window, fit, linspace32

pytestmark = pytest.mark.quick

FPS = (
    1.0,
    2.0,
    4.0,
    10.0,
    14.999925,
    23.976,
    24000 / 1001,
    25.0,
    29.97,
    30000 / 1001,
    50.0,
    59.94,
    120.0,
)
SECONDS = (
    0.04,
    0.5,
    1.0,
    1.9,
    2.0,
    3.3,
    10.0,
    59.9,
    61.7,
    383.9,
    384.0,
    384.6,
    600.0,
    3600.0,
    7201.3,
)
SIZES = (
    (720, 1280),
    (1080, 1920),
    (240, 320),
    (168, 336),
    (1920, 1080),
    (28, 28),
    (2160, 3840),
    (7, 900),
    (1, 1),
)
WINDOWS = (
    (0.0, 1.0),
    (0.0, 0.33),
    (1.25, 7.8),
    (12.0, 22.0),
    (100.1, 400.7),
    (30.0, 4000.0),
    (55.5, 57.25),
)
RL = {"coarse": 2048, "medium": 4096, "fine": 6144}


@functools.cache
def reference_indices(fps, frames, window):
    """The published formula of RL, in exact numbers as far as it is exact, and in float32 where it is."""
    first, last = 0, frames - 1
    if window is not None:
        first = math.ceil(max(0.0, min(window[0], frames / fps)) * fps)
        last = min(math.floor(max(0.0, min(window[1], frames / fps)) * fps), frames - 1)
        if first >= last:
            return None
    count = last - first + 1
    n = count / fps * 2
    n = max(n, 4)
    n = min(n, 768)
    n = min(n, count)
    n = max(2, int(n) - int(n) % 2)
    step = np.float32(np.float32(last - first) / np.float32(n - 1))
    indices = []
    for i in range(n):
        # One rounding to float32, from the nearer end: exact rationals, then numpy's nearest float32.
        if i < n // 2:
            exact = Fraction(first) + Fraction(float(step)) * i
        else:
            exact = Fraction(last) - Fraction(float(step)) * (n - 1 - i)
        value = np.float32(float(exact))
        indices.append(round(float(value)))  # Python rounds halves to even
    return indices, n / count * fps


def reference_size(height, width, low, high):
    """The published resize rule without our departure, 28 pixels per token."""
    low, high = 784 * low, 784 * high
    h, w = max(28, round(height / 28) * 28), max(28, round(width / 28) * 28)
    if h * w > high:
        beta = math.sqrt(height * width / high)
        return max(28, math.floor(height / beta / 28) * 28), max(
            28, math.floor(width / beta / 28) * 28
        )
    if h * w < low:
        beta = math.sqrt(low / (height * width))
        return math.ceil(height * beta / 28) * 28, math.ceil(width * beta / 28) * 28
    return h, w


def grid():
    for fps, seconds, (height, width) in itertools.product(FPS, SECONDS, SIZES):
        yield fps, max(1, round(seconds * fps)), height, width


def test_overview_of_rl():
    for fps, frames, height, width in grid():
        plan = plan_clip(fps=fps, frames=frames, height=height, width=width)
        indices, sample_fps = reference_indices(fps, frames, None)
        assert plan.indices.tolist() == indices and plan.fps == sample_fps
        m = len(indices) // 2
        high = min(16384 // m, 768)
        check_size(plan, height, width, m, min(512 // m, high), high, 16384)


def test_crops_of_rl():
    refused = 0
    for (fps, frames, height, width), window in itertools.product(grid(), WINDOWS):
        wanted = reference_indices(fps, frames, window)
        for strategy, quota in RL.items():
            arguments = {"fps": fps, "frames": frames, "height": height, "width": width}
            if wanted is None:
                with pytest.raises(VideoError) as error:
                    plan_clip(**arguments, window=window, strategy=strategy)
                assert error.value.kind == "window"
                refused += 1
                continue
            plan = plan_clip(**arguments, window=window, strategy=strategy)
            assert plan.indices.tolist() == wanted[0] and plan.fps == wanted[1]
            m = len(wanted[0]) // 2
            high = min(quota // m, 768)
            check_size(plan, height, width, m, min(512 // m, high), high, quota)
    assert refused > 100


def check_size(plan: ClipPlan, height, width, m, low, high, quota):
    h, w = reference_size(height, width, low, high)
    assert plan.tokens == m * (plan.height // 28) * (plan.width // 28) <= quota
    if m * (h // 28) * (w // 28) <= quota and h * w <= high * 784:
        assert (plan.height, plan.width) == (h, w)
    else:  # the one departure: the published rule would exceed the quota
        assert min(h, w) == 28, "a side was raised to one token"
        assert min(plan.height, plan.width) == 28
        assert max(plan.height, plan.width) == max(28, math.floor(high) * 28)


def test_worked_overview():
    """60 s of 720p at 25 fps: 120 frames, 60 patches, 273 tokens each: 12 x 22."""
    plan = plan_clip(fps=25.0, frames=1500, height=720, width=1280)
    assert len(plan.indices) == 120 and plan.indices[[0, 1, -1]].tolist() == [0, 13, 1499]
    assert (plan.height, plan.width, plan.tokens) == (12 * 28, 22 * 28, 60 * 12 * 22)
    assert plan.fps == 2.0


def test_worked_crop():
    """[12, 22] at 25 fps: frames 300 to 550, 251 of them, 20 shown."""
    plan = plan_clip(
        fps=25.0, frames=90000, height=720, width=1280, window=(12, 22), strategy="coarse"
    )
    assert (len(plan.indices), plan.indices[0], plan.indices[-1]) == (20, 300, 550)
    assert plan.fps == pytest.approx(20 / 251 * 25)
    # 2048 // 10 = 204 tokens a patch; sqrt(921600 / (204 * 784)) = 2.4005: 10 x 19
    assert (plan.height, plan.width) == (280, 532) and plan.tokens == 1900


def test_halves_go_to_even():
    assert np.rint(linspace32(0, 5, 3)).tolist() == [0, 2, 5]
    assert np.rint(linspace32(0, 7, 3)).tolist() == [0, 4, 7]
    # Rounding sides: 42 / 28 = 1.5 -> 2, 70 / 28 = 2.5 -> 2.
    assert fit(42, 70, lower=1, upper=100) == (56, 56)


@pytest.mark.parametrize(
    ("frames", "count"), [(1, 2), (2, 2), (3, 2), (4, 4), (5, 4), (30, 4), (75, 6), (100000, 768)]
)
def test_few_and_many_frames(frames, count):
    plan = plan_clip(fps=25.0, frames=frames, height=100, width=100)
    assert len(plan.indices) == count
    assert plan.indices[0] == 0 and plan.indices[-1] == frames - 1


def test_sft():
    policy = CropPolicy(recipe="sft")
    # 3.3 s: floor(6.6) = 6 frames, truncated.
    plan = plan_clip(fps=10.0, frames=33, height=480, width=640, policy=policy)
    assert plan.indices.tolist() == [0, 6, 12, 19, 25, 32] and plan.fps == pytest.approx(
        6 / 33 * 10
    )
    # 3.5 s: 7 frames, the last one doubled; rounding would give 11, 17, 23.
    plan = plan_clip(fps=10.0, frames=35, height=480, width=640, policy=policy)
    assert plan.indices.tolist() == [0, 5, 11, 17, 22, 28, 34, 34]
    # No minimum of four: 1 s gives two frames, 0.4 s one that is doubled.
    assert plan_clip(fps=10.0, frames=10, height=99, width=99, policy=policy).indices.tolist() == [
        0,
        9,
    ]
    assert plan_clip(fps=10.0, frames=4, height=99, width=99, policy=policy).indices.tolist() == [
        0,
        0,
    ]
    # int(t * fps), not ceil.
    plan = plan_clip(
        fps=10.0,
        frames=900,
        height=480,
        width=640,
        window=(1.25, 3.28),
        strategy="fine",
        policy=policy,
    )
    assert (plan.indices[0], plan.indices[-1], len(plan.indices)) == (12, 32, 4)
    # The overview holds at least 1024 tokens, each patch at least 32.
    assert plan_clip(fps=10.0, frames=33, height=56, width=56, policy=policy).tokens >= 1024
    plan = plan_clip(fps=25.0, frames=25 * 384, height=28, width=28, policy=policy)
    assert plan.tokens >= 32 * 384


def test_sft_quotas_of_old_rows():
    policy = CropPolicy(recipe="sft")
    video = {
        "fps": 25.0,
        "frames": 90000,
        "height": 720,
        "width": 1280,
        "window": (10.0, 60.0),
        "policy": policy,
    }
    pairs = 50
    assert plan_clip(**video, strategy=None).tokens > 6144
    assert plan_clip(**video, strategy=None).tokens <= 16384
    for clips in (2, 3, 5):
        tokens = plan_clip(**video, strategy="old_quota", clips=clips).tokens
        assert 0.8 * (16384 // clips) < tokens <= 16384 // clips
        high = 16384 // clips // pairs
        assert (
            reference_size(720, 1280, 32, high)[0]
            * reference_size(720, 1280, 32, high)[1]
            // 784
            * pairs
            == tokens
        )


def test_eval():
    policy = CropPolicy(recipe="eval")
    plan = plan_clip(fps=23.976, frames=round(60 * 23.976), height=720, width=1280, policy=policy)
    assert plan.indices.tolist() == [int(i * 23.976 / 2) for i in range(len(plan.indices))]
    total = 7200 * 25
    plan = plan_clip(fps=25.0, frames=total, height=720, width=1280, policy=policy)
    assert plan.indices.tolist() == [int(i * total / 769) for i in range(1, 769)]
    # 2 * 16384 / 768 = 42.67 tokens a patch: 4 x 9 either way; the floor would show at 43 only.
    assert plan.tokens <= 16384
    # Not floored: 130 frames, 2 * 16384 / 130 = 252.06; a frame of exactly 252 tokens fits, of 252.06 would too.
    plan = plan_clip(fps=2.0, frames=130, height=14 * 28, width=18 * 28, policy=policy)
    assert (plan.height, plan.width) == (14 * 28, 18 * 28)
    # At least 20 tokens a patch, instead of 512 over all patches.
    small = {"fps": 2.0, "frames": 4, "height": 56, "width": 56}
    assert plan_clip(**small, policy=policy).tokens == 2 * 25
    assert plan_clip(**small).tokens == 2 * 16 * 16
    # Crops pick frames as RL does.
    crop = {
        "fps": 25.0,
        "frames": 90000,
        "height": 720,
        "width": 1280,
        "window": (12, 22),
        "strategy": "fine",
    }
    assert (plan_clip(**crop, policy=policy).indices == plan_clip(**crop).indices).all()


@pytest.mark.parametrize(
    ("fps", "seconds", "last"),
    [(1.0, 100, 99), (0.5, 120, 59), (1.0, 600, 599), (1.0, 768, 767), (0.25, 117, 28), (1.9, 101, 191)],
)  # fmt: skip
def test_eval_of_few_frames_a_second(fps, seconds, last):
    """Every frame once (an odd one is left out), from the first to the last, and the rate is theirs."""
    frames = last + 1
    plan = plan_clip(fps=fps, frames=frames, height=99, width=99, policy=CropPolicy(recipe="eval"))
    assert (plan.indices[0], plan.indices[-1]) == (0, last)
    assert len(plan.indices) == len(set(plan.indices)) == frames // 2 * 2
    assert plan.fps == pytest.approx(fps, rel=1 / (frames - 1)) and seconds == pytest.approx(
        frames / fps, abs=1 / fps
    )


@given(st.floats(0.1, 60), st.floats(0.1, 20_000), st.sampled_from(RECIPES))
def test_an_overview_spans_its_video(fps, seconds, recipe):
    """Between the ends of the video and what is shown first and last lie fewer than three frames shown, and one not shown."""
    frames, policy = max(1, round(seconds * fps)), CropPolicy(recipe=recipe)
    plan = plan_clip(fps=fps, frames=frames, height=99, width=99, policy=policy)
    step = 1 / min(policy.sample_fps, plan.fps, fps)
    assert plan.indices[0] / fps <= step
    assert (frames - plan.indices[-1]) / fps <= 3 * step + 1 / fps
    # The rate is that of the frames over the video, a doubled last one aside.
    assert plan.fps * frames / fps == pytest.approx(len(plan.indices), abs=1 + 1e-9)


@given(st.floats(2.0, 240), st.integers(1, 200_000))
def test_eval_from_two_frames_a_second_on_is_as_published(fps, frames):
    plan = plan_clip(fps=fps, frames=frames, height=99, width=99, policy=CropPolicy(recipe="eval"))
    n = max(2, int(min(max(frames / fps * 2, 4), 768, frames)) // 2 * 2)
    indices = [int(i * fps / 2) for i in range(n)]
    if math.floor(frames / fps * 2) > 768:
        indices = [int(i * frames / 769) for i in range(1, 769)]
    assert plan.indices.tolist() == [min(i, frames - 1) for i in indices]


def test_qwen3_vl():
    policy = CropPolicy(recipe="qwen3_vl")
    plan = plan_clip(fps=25.0, frames=90000, height=720, width=1280, policy=policy)
    assert len(plan.indices) == 128 and plan.height % 32 == plan.width % 32 == 0
    assert plan.tokens == 64 * (plan.height // 32) * (plan.width // 32) <= 6144
    assert (
        len(plan_clip(fps=25.0, frames=250, height=720, width=1280, policy=policy).indices) == 128
    )
    for strategy, quota in (("coarse", 1024), ("medium", 2048), ("fine", 3072)):
        plan = plan_clip(
            fps=25.0,
            frames=90000,
            height=720,
            width=1280,
            window=(5, 15),
            strategy=strategy,
            policy=policy,
        )
        assert 0.75 * quota < plan.tokens <= quota and len(plan.indices) == 20


videos = st.fixed_dictionaries(
    {
        "fps": st.floats(0.1, 240),
        "frames": st.integers(1, 2_000_000),
        "height": st.integers(1, 8000),
        "width": st.integers(1, 8000),
        "policy": st.sampled_from([CropPolicy(recipe=name) for name in RECIPES]),
    }
)


@given(videos, st.tuples(st.floats(-10, 5000), st.floats(-10, 5000)) | st.none(), st.sampled_from(["coarse", "medium", "fine", None, "old_quota"]))  # fmt: skip
def test_any_plan_keeps_its_promises(video, window, strategy):
    try:
        plan = plan_clip(**video, window=window, strategy=strategy, clips=3)
    except VideoError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.kind in ("window", "aspect") and refused.remedy
        return
    policy = video["policy"]
    quota = {None: policy.overview_quota, "old_quota": policy.overview_quota // 3}.get(
        strategy
    ) or policy.quota(strategy)
    assert plan.tokens <= quota
    unit = policy.token_size
    assert plan.height % unit == plan.width % unit == 0 < plan.height * plan.width
    patches = len(plan.indices) // policy.frames_per_patch
    assert plan.tokens == patches * (plan.height // unit) * (plan.width // unit)
    assert len(plan.indices) % 2 == 0 and len(plan.indices) <= 768
    assert plan.indices.dtype == np.int64 and (np.diff(plan.indices) >= 0).all()
    assert plan.indices[0] >= 0 and plan.indices[-1] < video["frames"]
    if window is not None:
        slack = 1 if policy.crop_rule == "truncate" else 1e-6
        assert plan.indices[0] / video["fps"] >= window[0] - slack / video["fps"] - 1e-9
        assert plan.indices[-1] / video["fps"] <= window[1] + 1e-9


@given(
    st.integers(1, 9000),
    st.integers(1, 9000),
    st.floats(1, 768),
    st.floats(0, 1),
    st.sampled_from([28, 32]),
)
def test_any_size_fits(height, width, upper, share, unit):
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(VideoError) as error:
            fit(height, width, lower=1, upper=upper, token_size=unit)
        assert error.value.kind == "aspect"
        return
    lower = share * upper
    h, w = fit(height, width, lower=lower, upper=upper, token_size=unit)
    assert h % unit == w % unit == 0 and h >= unit and w >= unit
    tokens = h * w / unit**2
    assert tokens <= upper
    rounded = max(1, round(height / unit)) * max(1, round(width / unit))
    if lower <= rounded <= upper:
        assert tokens == rounded
    if rounded < lower:  # enlarged as far as the quota lets it
        assert tokens >= min(lower, 0.4 * upper)


@pytest.mark.parametrize(
    ("window", "says"),
    [((float("nan"), 3), "finite"), ((1, float("inf")), "finite"), ((5, 2), "before it starts"), ((3, 3), "before"),
     (("a", 3), "two numbers"), ((None, 3), "two numbers"), ((1, 2, 3), "two numbers"), ((0, 10**400), "two numbers")],
)  # fmt: skip
def test_windows_that_are_none(window, says):
    with pytest.raises(VideoError, match=says) as error:
        check_window(window)
    assert error.value.kind == "window" and error.value.remedy


def test_unknown_strategy():
    with pytest.raises(VideoError, match=r"'finest'.*coarse, medium, fine") as error:
        plan_clip(fps=25.0, frames=900, height=99, width=99, window=(1, 5), strategy="finest")
    assert error.value.kind == "strategy"


@pytest.mark.parametrize(
    "bad", [{"fps": 0.0}, {"fps": float("nan")}, {"frames": 0}, {"height": 0}, {"clips": 0}]
)
def test_a_callers_mistake_is_a_value_error(bad):
    with pytest.raises(ValueError, match="not a video's shape"):
        plan_clip(**({"fps": 25.0, "frames": 10, "height": 9, "width": 9} | bad))


def test_policy_presets_and_overrides():
    assert CropPolicy() == CropPolicy(recipe="rl")
    small = CropPolicy(max_frames=64, overview_quota=64, overview_min=2, max_crop_frames=4, coarse_quota=4, medium_quota=16, fine_quota=36, crop_min=2)  # fmt: skip
    video = {"fps": 10.0, "frames": 6000, "height": 168, "width": 336}
    overview = plan_clip(**video, policy=small)
    assert (len(overview.indices), overview.height, overview.width, overview.tokens) == (
        64,
        28,
        56,
        64,
    )
    fine = plan_clip(**video, window=(10, 40), strategy="fine", policy=small)
    assert (len(fine.indices), fine.height, fine.width, fine.tokens) == (4, 84, 168, 36)
    changed = dataclasses.replace(small, max_crop_frames=6, fine_quota=54)
    assert len(plan_clip(**video, window=(10, 40), strategy="fine", policy=changed).indices) == 6
    assert changed.max_frames == 64


@pytest.mark.parametrize("recipe", RECIPES)
def test_policy_json(recipe):
    policy = CropPolicy(recipe=recipe, crop_fps=4.0)
    assert CropPolicy.from_json(policy.to_json()) == policy
    assert CropPolicy.from_json({"recipe": recipe, "crop_fps": 4.0}) == policy
    with pytest.raises(ValueError, match="fine_quote"):
        CropPolicy.from_json({"fine_quote": 3})


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"recipe": "paper"}, "paper"), ({"max_frames": 7}, "even"), ({"max_crop_frames": 0}, "even"), ({"sample_fps": 0.0}, "sample_fps"),
     ({"coarse_quota": 100}, "cannot hold"), ({"token_size": 27}, "token_size"), ({"crop_rule": "every"}, "every")],
)  # fmt: skip
def test_policy_refuses(fields, says):
    with pytest.raises(ValueError, match=says):
        CropPolicy(**fields)
