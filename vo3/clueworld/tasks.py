"""Questions on a world, with their truth.

Five groups, after the original's data (Seeker-173K of arXiv 2601.23224: {single, multi clue} x {with, without tool}, and temporal grounding):

    clue_single_w_tool    digit, after           the digit on a card, named by colour or by the card before it
    clue_multi_w_tool     sum, higher, ends      two digits on two cards: added up, compared, of the first and the last
    clue_single_wo_tool   first, last, exists    one look at the overview's cards
    clue_multi_wo_tool    count, next            all of the overview's cards
    temporal_grounding    when                   the seconds in which a card is shown, one turn

A new kind of question is one function in `KINDS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vo3.chat.tags import Segment, format_segment
from vo3.clueworld.world import COLORS, Card, World
from vo3.trajectory import Clue, Target, Task

LETTERS = "ABCD"
SINGLE_TOOL = "clue_single_w_tool"
MULTI_TOOL = "clue_multi_w_tool"
SINGLE_SEEN = "clue_single_wo_tool"
MULTI_SEEN = "clue_multi_wo_tool"
GROUNDING = "temporal_grounding"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its truth.

    Attributes:
      text: the question.
      answer: the answer in words ("6", "red", "yes"); for grounding, the JSON that is answered with.
      choices: wrong answers to draw options from.
      said: what the last think says before the answer ("the red card shows").
      looks: cards whose digits must be read, in the order in which they are looked at; empty when the overview answers.
      found: what is said before each look where the question does not name the card ("after blue white").
      shown: the card whose time is asked for, in grounding.
    """

    text: str
    answer: str
    choices: tuple[str, ...]
    said: str
    looks: tuple[Card, ...] = ()
    found: tuple[str, ...] = ()
    shown: Card | None = None

    @property
    def clues(self) -> tuple[Clue, ...]:
        """The true evidence."""
        cards = (self.shown,) if self.shown else self.looks
        return tuple(Clue(c.start, c.end) for c in cards)

    @property
    def kind(self) -> str:
        """What is asked, which is not always what was drawn: see `kind_of`."""
        return kind_of(self.text)


Maker = Callable[[World, np.random.Generator], Question]


def digit_question(card: Card) -> Question:
    """Which digit is on this card?"""
    return _read(f"Which digit is on the {card.color} card?", card)


def _read(text: str, card: Card) -> Question:
    wrong = _others(range(10), card.digit)
    return Question(text, str(card.digit), wrong, f"the {card.color} card shows", looks=(card,))


def _others(values: Iterable, right: object) -> tuple[str, ...]:
    return tuple(str(v) for v in values if v != right)


def _draw(cards: Sequence[Card], rng: np.random.Generator) -> Card:
    return cards[rng.integers(len(cards))]


def _digit(world: World, rng: np.random.Generator) -> Question:
    return digit_question(_draw(world.cards, rng))


def _after(world: World, rng: np.random.Generator) -> Question:
    """Of the next card; of a world's only card (training rows may show one), by its colour."""
    if len(world.cards) < 2:
        return _digit(world, rng)
    i = int(rng.integers(len(world.cards) - 1))
    before, card = world.cards[i].color, world.cards[i + 1]
    question = _read(f"Which digit is on the card after the {before} one?", card)
    return dataclasses.replace(question, found=(f"{_follows(before)} {card.color}",))


def _sum(world: World, rng: np.random.Generator) -> Question:
    return _two(world, rng, added)


def _higher(world: World, rng: np.random.Generator) -> Question:
    return _two(world, rng, compared)


def _ends(world: World, rng: np.random.Generator) -> Question:
    """The sum of the first and the last card's digits; where it is more than one digit, a question of another kind."""
    first, last = world.cards[0], world.cards[-1]
    if first == last or first.digit + last.digit > 9:
        return _higher(world, rng)
    question = added(first, last, "What is the sum of the digits on the first and the last card?")
    return dataclasses.replace(question, found=(f"first is {first.color}", f"last is {last.color}"))


def _two(world: World, rng: np.random.Generator, ask: Callable[[Card, Card], Question]) -> Question:
    """A question on two cards; where no two cards allow it (a sum is one digit, the digits differ), on one."""
    order = [world.cards[i] for i in rng.permutation(len(world.cards))]
    pairs = [(a, b) for a in order for b in order if a.color != b.color]
    for a, b in pairs:
        if ask is added and a.digit + b.digit <= 9:
            return added(a, b)
    for a, b in pairs:
        if a.digit != b.digit:
            return compared(a, b)
    return _digit(world, rng)


def added(a: Card, b: Card, text: str = "") -> Question:
    """The sum of two digits, at most 9."""
    text = text or f"What is the sum of the digits on the {a.color} and {b.color} cards?"
    total = a.digit + b.digit
    said = f"the sum of {a.digit} and {b.digit} is"
    return Question(text, str(total), _others(range(10), total), said, looks=(a, b))


def compared(a: Card, b: Card) -> Question:
    """Which of two cards has the higher digit."""
    text = f"Which card has the higher digit, {a.color} or {b.color}?"
    high, low = (a, b) if a.digit > b.digit else (b, a)
    said = f"{a.digit} {a.color} {b.digit} {b.color} higher {high.digit}"
    return Question(text, high.color, (low.color,), said, looks=(a, b))


def _count(world: World, rng: np.random.Generator) -> Question:
    number = len(world.cards)
    return Question(
        "How many cards are there?", str(number), _others(range(2, 7), number), "there are"
    )


def _first(world: World, rng: np.random.Generator) -> Question:
    return _end("first", world.cards[0])


def _last(world: World, rng: np.random.Generator) -> Question:
    return _end("last", world.cards[-1])


def _end(which: str, card: Card) -> Question:
    wrong = _others(COLORS, card.color)
    return Question(f"Which card comes {which}?", card.color, wrong, f"{which} is")


def _next(world: World, rng: np.random.Generator) -> Question:
    if len(world.cards) < 2:
        return _first(world, rng)
    i = int(rng.integers(len(world.cards) - 1))
    before, card = world.cards[i].color, world.cards[i + 1].color
    wrong = tuple(c for c in COLORS if c not in (before, card))
    return Question(f"Which card comes after the {before} one?", card, wrong, _follows(before))


def _follows(color: str) -> str:
    """What a think says before the card that comes next: its colour last, so that one step of attention finds what follows it, as in the list of cards."""
    return f"after {color}"


def _exists(world: World, rng: np.random.Generator) -> Question:
    there = [c.color for c in world.cards]
    absent = [c for c in COLORS if c not in there]
    yes = bool(rng.random() < 0.5) or not absent
    color = str(rng.choice(there if yes else absent))
    answer, wrong = ("yes", "no") if yes else ("no", "yes")
    return Question(f"Is there a {color} card?", answer, (wrong,), f"{color}:")


def _when(world: World, rng: np.random.Generator) -> Question:
    card = _draw(world.cards, rng)
    text = f"When is the {card.color} card shown?"
    return Question(text, segment(card.start, card.end), (), "", shown=card)


def segment(start: float, end: float) -> str:
    """What a grounding task is answered with."""
    return format_segment(Segment(start, end), decimals=0)


QUADRANTS: dict[str, dict[str, Maker]] = {
    SINGLE_TOOL: {"digit": _digit, "after": _after},
    MULTI_TOOL: {"sum": _sum, "higher": _higher, "ends": _ends},
    SINGLE_SEEN: {"first": _first, "last": _last, "exists": _exists},
    MULTI_SEEN: {"count": _count, "next": _next},
    GROUNDING: {"when": _when},
}
KINDS: dict[str, Maker] = {k: make for kinds in QUADRANTS.values() for k, make in kinds.items()}
TOOL_KINDS = (*QUADRANTS[SINGLE_TOOL], *QUADRANTS[MULTI_TOOL])
OVERVIEW_KINDS = (*QUADRANTS[SINGLE_SEEN], *QUADRANTS[MULTI_SEEN])


# What the questions of a kind hold; the first that fits counts.
_WORDINGS = {
    "ends": "digits on the first and the last card",
    "sum": "the sum of the digits",
    "higher": "the higher digit",
    "after": "Which digit is on the card after",
    "digit": "Which digit is on the",
    "count": "How many cards",
    "first": "comes first",
    "last": "comes last",
    "next": "Which card comes after",
    "exists": "Is there",
    "when": "When is",
}


def kind_of(text: str) -> str:
    """The kind of a question, by its text.

    What a maker of `KINDS` gives may be of another kind: no sum of two digits of a world may be below ten, or a training row shows one card.

    Raises:
      ValueError: no question of this world.
    """
    for kind, wording in _WORDINGS.items():
        if wording in text:
            return kind
    raise ValueError(f"{text!r} is no question of ClueWorld: no kind is worded so")


def make_task(
    world: World,
    question: Question,
    *,
    video: str,
    task_id: str,
    rng: np.random.Generator,
    options: bool,
) -> Task:
    """The question as a `Task`, open or with up to four shuffled options (none in grounding)."""
    lettered = None
    answer = question.answer
    if options and question.choices:
        wrong = rng.permutation(question.choices)[: len(LETTERS) - 1]
        texts = rng.permutation([question.answer, *wrong])
        lettered = {letter: str(text) for letter, text in zip(LETTERS, texts, strict=False)}
        answer = next(letter for letter, text in lettered.items() if text == question.answer)
    target = Target(answer=answer, clues=question.clues, data_source=source_of(question))
    return Task(id=task_id, video=video, question=question.text, options=lettered, target=target)


def source_of(question: Question) -> str:
    """The quadrant, by what has to be looked at."""
    if question.shown is not None:
        return GROUNDING
    if question.looks:
        return SINGLE_TOOL if len(question.looks) == 1 else MULTI_TOOL
    whole = question.text.startswith(("How many", "Which card comes after"))
    return MULTI_SEEN if whole else SINGLE_SEEN
