"""Optimisers by name, on optax."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import optax
from optax import contrib


def schedule(kind: str, peak: float, *, steps: int, warmup: int) -> optax.Schedule:
    """Warm-up from 0, then `cosine` or `linear` to 0, or `constant`.

    Raises:
      ValueError: an unknown kind, or a warm-up as long as the run.
    """
    if warmup >= steps:
        raise ValueError(f"warmup of {warmup} steps does not fit a run of {steps}; lower warmup")
    if kind == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, steps - warmup),
    }
    if kind not in after:
        raise ValueError(f"unknown schedule {kind!r}; one of 'cosine', 'linear', 'constant'")
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, max(warmup, 1)), after[kind]], [warmup]
    )


def muon_dimensions(params: Any) -> Any:
    """Muon for matrices ([in, out] or stacked [layers, in, out], also those of the patches, the merger and an untied output); AdamW (None) for the rest: embeddings, norms, biases."""

    def numbers(path, leaf):
        is_matrix = jax.tree_util.keystr(path).find("kernel") >= 0 and leaf.ndim in (2, 3)
        return contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if is_matrix else None

    return jax.tree_util.tree_map_with_path(numbers, params)


def scaled(scales: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies the updates of some parameters, which is their learning rate, weight decay included.

    Args:
      scales: regular expressions on dotted parameter paths, and factors; the first that is found counts, others have 1.
    """

    def factor(name: str) -> float:
        return next((by for pattern, by in scales if re.search(pattern, name)), 1.0)

    return optax.stateless(lambda updates, _: {n: x * factor(n) for n, x in updates.items()})


def make_optimizer(
    name: str,
    rate: optax.Schedule,
    *,
    adam_rate: optax.Schedule | None = None,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    scales: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformation:
    """`adamw`, or `muon` for matrices with AdamW for the rest, behind clipping by the global norm.

    Args:
      rate: learning rate; with Muon, of the matrices.
      adam_rate: with Muon, learning rate of everything else.
      weight_decay: decoupled, as in AdamW.
      clip: most the global norm of the gradient may be.
      betas, eps: of Adam.
      scales: of the learning rate, by parameter; see `scaled`.

    Raises:
      ValueError: an unknown name.
    """
    if name == "adamw":
        core = optax.adamw(rate, *betas, eps=eps, weight_decay=weight_decay)
    elif name == "muon":
        core = contrib.muon(
            rate,
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay,
            adam_b1=betas[0],
            adam_b2=betas[1],
            eps=eps,
            adam_learning_rate=adam_rate or rate,
            muon_weight_dimension_numbers=muon_dimensions,
        )
    else:
        raise ValueError(f"unknown optimizer {name!r}; one of 'adamw', 'muon'")
    # Without scales nothing is added: the state of runs that have none stays as it is stored.
    return optax.chain(optax.clip_by_global_norm(clip), core, *([scaled(scales)] if scales else []))
