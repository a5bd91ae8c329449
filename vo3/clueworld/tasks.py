"""Questions on a world and their ground-truth trajectories.

Two groups, after the quadrants of the original's data (one clue): the digit on a card needs a clip (`clue_single_w_tool`), counts, order and presence of cards
are answered from the overview (`clue_single_wo_tool`). A new kind of question is one function in `KINDS`.

The think text of a trajectory first names every card in order of appearance, then the clock's readings where the overview shows the card asked for, so that the
call copies what was read. The last think ends with the answer in words and, where there are options, its letter, so that the answer follows from text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vo3.chat.tags import format_call
from vo3.clueworld.views import observe, sightings
from vo3.clueworld.world import COLORS, Card, World
from vo3.trajectory import Call, Clue, Observation, Target, Task, Trajectory, Turn
from vo3.video import CropPolicy

if TYPE_CHECKING:
    from vo3.chat import PromptPack

LETTERS = "ABCD"
WITH_TOOL = "clue_single_w_tool"
WITHOUT_TOOL = "clue_single_wo_tool"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its truth.

    Attributes:
      text: the question.
      answer: the answer in words ("6", "red", "yes").
      choices: wrong answers to draw options from.
      said: what the last think says before the answer ("the red card shows").
      card: the card whose digit must be read, or None when the overview answers.
    """

    text: str
    answer: str
    choices: tuple[str, ...]
    said: str
    card: Card | None = None


def _digit(world: World, rng: np.random.Generator) -> Question:
    card = world.cards[rng.integers(len(world.cards))]
    return digit_question(card)


def digit_question(card: Card) -> Question:
    """Which digit is on this card?"""
    return Question(
        text=f"Which digit is on the {card.color} card?",
        answer=str(card.digit),
        choices=tuple(str(d) for d in range(10) if d != card.digit),
        said=f"the {card.color} card shows",
        card=card,
    )


def _count(world: World, rng: np.random.Generator) -> Question:
    number = str(len(world.cards))
    wrong = tuple(str(n) for n in range(2, 7) if str(n) != number)
    return Question("How many cards are there?", number, wrong, "there are")


def _first(world: World, rng: np.random.Generator) -> Question:
    return _end("first", world.cards[0])


def _last(world: World, rng: np.random.Generator) -> Question:
    return _end("last", world.cards[-1])


def _end(which: str, card: Card) -> Question:
    wrong = tuple(c for c in COLORS if c != card.color)
    return Question(f"Which card comes {which}?", card.color, wrong, f"{which} is")


def _exists(world: World, rng: np.random.Generator) -> Question:
    there = [c.color for c in world.cards]
    absent = [c for c in COLORS if c not in there]
    yes = bool(rng.random() < 0.5)
    color = str(rng.choice(there if yes else absent))
    answer, wrong = ("yes", "no") if yes else ("no", "yes")
    return Question(f"Is there a {color} card?", answer, (wrong,), f"{color}:")


KINDS: dict[str, Callable[[World, np.random.Generator], Question]] = {
    "digit": _digit,
    "count": _count,
    "first": _first,
    "last": _last,
    "exists": _exists,
}
OVERVIEW_KINDS = ("count", "first", "last", "exists")


def make_task(
    world: World,
    question: Question,
    *,
    video: str,
    task_id: str,
    rng: np.random.Generator,
    options: bool,
) -> Task:
    """The question as a `Task`, open or with up to four shuffled options."""
    lettered = None
    answer = question.answer
    if options:
        wrong = rng.permutation(question.choices)[: len(LETTERS) - 1]
        texts = rng.permutation([question.answer, *wrong])
        lettered = {letter: str(text) for letter, text in zip(LETTERS, texts, strict=False)}
        answer = next(letter for letter, text in lettered.items() if text == question.answer)
    card = question.card
    target = Target(
        answer=answer,
        clues=(Clue(card.start, card.end),) if card else (),
        data_source=WITH_TOOL if card else WITHOUT_TOOL,
    )
    return Task(id=task_id, video=video, question=question.text, options=lettered, target=target)


def named(world: World) -> str:
    """Every card in order of appearance, as the think text lists them."""
    return f"cards {' '.join(card.color for card in world.cards)}."


def timed(world: World, overview: Observation) -> list[str]:
    """Every card with the clock's readings that bound it, as the think text writes them."""
    return [f"{s.card.color}:{s.start}-{s.end}" for s in sightings(world, overview)]


def stated(question: Question, task: Task) -> str:
    """The sentence that ends the last think: the answer in words and, if there are options, its letter."""
    letter = f", {task.target.answer}" if task.options else ""
    return f"{question.said} {question.answer}{letter}."


def make_trajectory(
    world: World,
    question: Question,
    task: Task,
    *,
    pack: PromptPack,
    policy: CropPolicy,
    overview: Observation | None = None,
) -> Trajectory:
    """The ground-truth trajectory: list the cards, look at the right one if the question needs it, answer.

    `overview` stands for the whole video unless given (a part of it, in training).
    """
    overview = overview or observe(world, 0, policy=policy)
    turns = [
        Turn("system", pack.system(task)),
        Turn("question", pack.question(task), observations=(overview,)),
    ]
    think = named(world)
    if question.card is not None:
        shown = timed(world, overview)[world.cards.index(question.card)]
        sight = next(s for s in sightings(world, overview) if s.card == question.card)
        call = Call(float(sight.start), float(sight.end), "fine")
        look = f"{think} look at {shown}."
        turns.append(
            Turn("call", f"<think>{look}</think>\n{format_call(call, decimals=0)}", call=call)
        )
        clip = observe(
            world, 1, policy=policy, window=(call.start, call.end), strategy=call.strategy
        )
        turns.append(Turn("observation", pack.observation(1, clip), observations=(clip,)))
        think = stated(question, task)
    else:
        think = f"{think} {stated(question, task)}"
    answer = task.target.answer
    text = f"<think>{think}</think>\n<answer>{answer}</answer>"
    turns.append(Turn("answer", text, answer=answer))
    return Trajectory(task, tuple(turns), outcome="answered", answer=answer, prompt_pack=pack.name)
