"""The best guess at a question on digits by somebody who has not read all of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from vo3.clueworld import tasks
from vo3.clueworld.legibility import Readings
from vo3.trajectory import Task


def chance(
    question: tasks.Question, task: Task, seen: set[str], read: Readings | None = None
) -> float:
    """How probable it is that the best answer is right, to somebody who sees the cards of the `seen` colours.

    Digits that are not seen are uniform among those that the question can have been made of; the answer that most of them lead to is given.

    Args:
      question, task: what is asked.
      seen: colours of cards.
      read: how digits that are seen are read: as cards with this digit were, one as probable as another; None: rightly.
    """
    known = [card.color in seen for card in question.looks]
    shape = (10,) * len(known)
    answers = [
        _answer(question, digits) for digits in itertools.product(range(10), repeat=len(known))
    ]
    given = sorted({a for a in answers if a and (not task.options or a in task.options.values())})
    # Whether these digits lead to this answer: [A, 10] or [A, 10, 10].
    leads = np.array([[a == answer for a in answers] for answer in given], float)
    leads = leads.reshape(len(given), *shape)
    exact = np.eye(10)
    truth = [
        exact[[c.digit]] if k else np.ones((1, 10))
        for c, k in zip(question.looks, known, strict=True)
    ]
    held = truth
    if read is not None:
        held = [
            read.of(c.digit) if k else t
            for c, k, t in zip(question.looks, known, truth, strict=True)
        ]
    true, believed = _weigh(leads, truth), _weigh(leads, held)
    best = np.isclose(believed, believed.max(-1, keepdims=True), rtol=1e-9, atol=0)
    best = best / best.sum(-1, keepdims=True)
    return float((best * true).sum(-1).mean() / true.sum())


def _weigh(leads: np.ndarray, held: Sequence[np.ndarray]) -> np.ndarray:
    """How much speaks for each answer, for every way in which the cards are read: [n, A] for one card, [n, m, A] for two."""
    if len(held) == 1:
        return np.einsum("ad,nd->na", leads, held[0])
    return np.einsum("ade,nd,me->nma", leads, *held, optimize=True)


def _answer(question: tasks.Question, digits: Sequence[int]) -> str | None:
    """The answer, were these the digits; None where the question would not have been asked."""
    cards = [
        dataclasses.replace(card, digit=d) for card, d in zip(question.looks, digits, strict=True)
    ]
    if len(cards) == 1:
        return str(digits[0])
    if question.said.startswith("the sum"):
        return None if sum(digits) > 9 else tasks.added(*cards).answer
    return None if digits[0] == digits[1] else tasks.compared(*cards).answer
