"""Examples in words alone: what a last think does once, without anything to see.

Sums and comparisons, which card of a list comes after another, the letters of options: bare, or behind what the earlier turns of a trajectory say (`DataConfig.stated`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vo3.chat import PromptPack
from vo3.clueworld import tasks, trajectories
from vo3.clueworld.loss import LossWeights
from vo3.clueworld.scales import get_scale
from vo3.clueworld.world import COLORS, Card, training_world
from vo3.train.batch import Example
from vo3.trajectory import VIDEO_MARK, Trajectory, Turn

if TYPE_CHECKING:
    from vo3.clueworld.data import DataConfig


class Words:
    """Draws the examples of a config; every one is a function of the generator's state."""

    def __init__(self, config: DataConfig, tokenizer, pack: PromptPack, example: LossWeights):
        self.config, self.pack = config, pack
        self.scale = get_scale(config.scale)
        self._example = example
        self._letters = [tokenizer.convert_tokens_to_ids(letter) for letter in tasks.LETTERS]

    def draw(self, rng: np.random.Generator) -> Example:
        """One example."""
        stated = self.config.stated
        if not self.config.options_share and not stated:
            return self._arithmetic(rng)
        if self.config.ordered and rng.random() < self.config.ordered:
            return self._stated(tasks.OVERVIEW_KINDS, rng) if stated else self._ordered(rng)
        if rng.random() < self.config.matched:
            return self._lookup(rng)
        if not stated:
            return self._arithmetic(rng)
        two = tuple(tasks.QUADRANTS[tasks.MULTI_TOOL])
        return self._stated(two if stated == "digits" else tasks.TOOL_KINDS, rng)

    def _stated(self, kinds: Sequence[str], rng: np.random.Generator) -> Example:
        """A question and the last think on it. What earlier turns say stands before it, where no loss is."""
        trajectory = self._spoken(kinds, rng)
        asked, *between, last = [t.text.replace(VIDEO_MARK, "") for t in trajectory.turns[1:]]
        if self.config.stated == "digits":
            # Of calls only what was seen in them, except for what the last think says itself.
            between = re.findall(r"the \w+ card shows \d\.", " ".join(between))
            last = last.partition("\n")[0]
        return self._example((Turn("question", "\n".join([asked, *between])), Turn("text", last)))

    def _ordered(self, rng: np.random.Generator) -> Example:
        """A list of cards, and which comes after one of them."""
        colors = [str(c) for c in rng.permutation(list(COLORS))[: rng.integers(3, 6)]]
        i = int(rng.integers(len(colors) - 1))
        said = f"cards {' '.join(colors)}. after {colors[i]} {colors[i + 1]}."
        return self._example((Turn("question", ""), Turn("text", f"<think>{said}</think>")))

    def _arithmetic(self, rng: np.random.Generator) -> Example:
        """Sums and comparisons of two digits, as the questions on two cards end."""
        said = []
        while len(said) < 4:
            (a, b), (p, q) = rng.integers(0, 10, 2), rng.permutation(list(COLORS))[:2]
            cards = [Card(str(c), int(d), 0, 1, (0, 0)) for c, d in ((p, a), (q, b))]
            if len(said) % 2 == 0 and a + b <= 9:
                question = tasks.added(*cards)
            elif len(said) % 2 and a != b:
                question = tasks.compared(*cards)
            else:
                continue
            said.append(f"{question.said} {question.answer}.")
        think = f"<think>{' '.join(said)}</think>"
        return self._example((Turn("question", ""), Turn("text", think)))

    def _lookup(self, rng: np.random.Generator) -> Example:
        """Options and, in another order, the letter of each: what a last think does once, without anything to see.

        Under "sentences" earlier turns stand between, and each text ends a sentence of a last think: bare ones next to their options teach neither distance nor sentences.
        """
        sets = (list(COLORS), [str(d) for d in range(10)], ("yes", "no"))
        texts = rng.permutation(sets[rng.choice(3, p=(0.4, 0.4, 0.2))])[: len(tasks.LETTERS)]
        options = dict(zip(tasks.LETTERS, texts, strict=False))
        listed = "\n".join(f"{letter} {text}" for letter, text in options.items())
        order = [str(letter) for letter in rng.permutation(list(options))]
        if self.config.stated == "sentences":
            listed = "\n".join([listed, *self._between(rng)])
            # The last letter would follow from the others.
            said = " ".join(f"{_sentence(options[k], rng)}, {k}." for k in order[:3])
        else:
            said = " " + " ".join(f"{options[k]}, {k}." for k in order)
        turns = (Turn("question", listed), Turn("text", f"<think>{said}</think>"))
        example = self._example(turns)
        if self.config.stated == "sentences":
            # What a sentence says is made up, and contradicts what stands before it.
            letters = np.isin(example.encoded.ids, self._letters)
            example = dataclasses.replace(example, weight=example.weight * letters)
        return example

    def _between(self, rng: np.random.Generator) -> list[str]:
        """What stands between a question and the last think of a trajectory with calls."""
        trajectory = self._spoken(tasks.TOOL_KINDS, rng)
        return [turn.text.replace(VIDEO_MARK, "") for turn in trajectory.turns[2:-1]]

    def _spoken(self, kinds: Sequence[str], rng: np.random.Generator) -> Trajectory:
        """A trajectory of one of these kinds, for its words: the agent's, whose overview shows every card, in a baseline too."""
        world = training_world(rng, self.scale.world)
        question = tasks.KINDS[str(rng.choice(kinds))](world, rng)
        options = bool(rng.random() < self.config.options_share)
        task = tasks.make_task(world, question, video="-", task_id="-", rng=rng, options=options)
        policy = self.scale.policy
        return trajectories.make_trajectory(world, question, task, pack=self.pack, policy=policy)


def _sentence(text: str, rng: np.random.Generator) -> str:
    """A sentence of a last think that ends with this text."""
    color = rng.choice([c for c in COLORS if c != text])
    if text in ("yes", "no"):
        return f"{color}: {text}"
    if text in COLORS:
        begun = ("first is", "last is", f"after {color}", f"2 {color} 5 {text} higher 5")
        return f"{begun[rng.integers(len(begun))]} {text}"
    first = int(rng.integers(int(text) + 1))
    begun = (
        f"the {color} card shows",
        f"the sum of {first} and {int(text) - first} is",
        "there are",
    )
    return f"{begun[rng.integers(len(begun))]} {text}"
