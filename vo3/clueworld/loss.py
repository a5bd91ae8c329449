"""Which tokens of an example have loss, with what weight, and what they may see."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vo3.chat import Encoded, encode
from vo3.chat.tdam import CLIP, OVERVIEW
from vo3.chat.tokens import Role
from vo3.clueworld import tasks
from vo3.clueworld.world import COLORS
from vo3.train.batch import Example
from vo3.trajectory import Turn


class LossWeights:
    """Makes examples of turns: `emphasis` on tokens that carry evidence, visibility by a TDAM policy (see `masked`)."""

    def __init__(self, tokenizer, *, emphasis: float, tdam: str):
        self.tokenizer, self.tdam = tokenizer, tdam
        self.weights = evidence_weights(tokenizer, emphasis)

    def __call__(self, turns: Sequence[Turn], shown: tuple[tuple[str, int], ...] = ()) -> Example:
        """The turns as an example; `shown` are its videos, by kind and number in the batch."""
        encoded = masked(encode(turns, self.tokenizer), turns, self.tokenizer, self.tdam)
        weight = np.where(encoded.loss_mask, self.weights[encoded.ids], 0).astype(np.float32)
        return Example(encoded, weight, shown)


def evidence_weights(tokenizer, emphasis: float) -> Float[np.ndarray, "V"]:
    """Loss weight by token id: `emphasis` for digits, colours, letters, yes and no, and what ends or joins them ("-", ".", ", "); 1 for the rest."""
    weights = np.ones(len(tokenizer), np.float32)
    numbers = [*map(str, range(10)), *(f"{n:02d}" for n in range(100))]
    words = [
        *numbers,
        *COLORS,
        *(f"{c}:" for c in COLORS),
        *tasks.LETTERS,
        "yes",
        "no",
        "-",
        ".",
        ", ",
    ]
    for word in words:
        for form in (word, " " + word):
            index = tokenizer.convert_tokens_to_ids(form)
            if index != tokenizer.unk_token_id:
                weights[index] = emphasis
    return weights


def masked(encoded: Encoded, turns: Sequence[Turn], tokenizer, policy: str) -> Encoded:
    """With the visibility of a TDAM policy.

    `released` is defined on Qwen's ids, which this tokenizer has not; here it is what it comes to there: the queries *at* the content of the last answer and of
    all calls but the first, so that the token that predicts the first of the content is not among them.
    """
    if policy == "off" or not (encoded.roles == Role.CLIP).any():
        return encoded
    if policy != "released":
        return encode(turns, tokenizer, policy=policy)
    roles = encoded.roles
    kind = np.where(roles == Role.OVERVIEW, OVERVIEW, 0) + np.where(roles == Role.CLIP, CLIP, 0)
    answers, calls = _runs(roles == Role.ANSWER), _runs(roles == Role.CALL)
    hide = np.zeros(len(roles), np.int32)
    for start, end in answers[-1:]:
        hide[start:end] = OVERVIEW
    for start, end in calls[1:]:
        hide[start:end] = CLIP
    seen = dataclasses.replace(encoded.visibility, kind=kind.astype(np.int32), hide=hide)
    return dataclasses.replace(encoded, visibility=seen)


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Maximal runs of True as [start, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
