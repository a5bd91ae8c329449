"""Which sampling strategy a look should use: the cheapest that shows enough."""

from __future__ import annotations

from data_prep.schema import Detail, VideoInfo
from data_prep.settings import GenerateSettings
from vo3.trajectory import STRATEGIES, Strategy
from vo3.video import CropPolicy, plan_clip


def choose(
    window: tuple[float, float],
    detail: Detail,
    *,
    info: VideoInfo,
    policy: CropPolicy,
    settings: GenerateSettings,
) -> Strategy:
    """The strategy for a window.

    A longer window spreads a strategy's quota over more frames, so the same detail needs a finer strategy. Enough is what the
    detail asks for, or, where no strategy gives as much (small pictures, long windows), the most that any gives.
    """
    shown = {
        strategy: _per_pair(window, strategy, info=info, policy=policy) for strategy in STRATEGIES
    }
    wanted = {
        "low": settings.tokens_low,
        "medium": settings.tokens_medium,
        "high": settings.tokens_high,
    }[detail]
    enough = min(wanted, max(shown.values()))
    return next(strategy for strategy in STRATEGIES if shown[strategy] >= enough)


def _per_pair(
    window: tuple[float, float], strategy: Strategy, *, info: VideoInfo, policy: CropPolicy
) -> float:
    """Video tokens of a pair of frames."""
    plan = plan_clip(
        fps=info.fps, frames=info.frames, height=info.height, width=info.width,
        window=window, strategy=strategy, policy=policy,
    )  # fmt: skip
    return plan.tokens / (len(plan.indices) // 2)
