"""Intervals over questions and runs at once: several trained models answer the same questions, which come several to a world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

ROUNDS = 4000


def world_of(name: str) -> str:
    """The world that a question is about, by its id."""
    return name.partition("-")[0]


def interval(
    values: Float[np.ndarray, "runs questions"], worlds: Sequence[str], *, seed: int = 0
) -> tuple[float, float]:
    """The bootstrap's 95 % interval of the mean over runs and questions: worlds and runs are both drawn anew, with replacement (Owen 2007).

    Questions on one world are not independent, and the runs answer the same ones, so that neither can stand for the other. A few runs drawn
    from themselves spread too little, by (n - 1) / n of their variance: their deviations are stretched to make up for it. The tails are still those of few
    draws, so that of three runs the interval is rather too narrow. One run is taken as it is.

    Args:
      values: of every question in every run.
      worlds: of every question.
      seed: of the draws.

    Returns:
      (low, high).

    Raises:
      ValueError: there is nothing.
    """
    runs, questions = values.shape
    if not values.size or len(worlds) != questions:
        raise ValueError(f"{runs} runs of {questions} questions on {len(worlds)} worlds")
    if runs > 1:
        middle = values.mean(0)
        values = middle + (values - middle) * np.sqrt(runs / (runs - 1))
    names, where = np.unique(np.asarray(worlds), return_inverse=True)
    sums = np.stack([np.bincount(where, weights=row, minlength=len(names)) for row in values])
    counts = np.bincount(where, minlength=len(names))
    rng = np.random.default_rng([0xB007, seed])
    # How often each world, and each run, is drawn in a round.
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), ROUNDS)
    chosen = rng.multinomial(runs, np.full(runs, 1 / runs), ROUNDS)
    means = ((chosen @ sums) * drawn).sum(1) / (runs * (drawn @ counts))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
