"""The trajectories that answer a question rightly: those that are trained on.

The think text of a trajectory first names every card in order of appearance, then the clock's readings where the overview shows the card asked for, so that the
call copies what was read. The last think ends with the answer in words and, where there are options, its letter, so that the answer follows from text.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vo3.chat.tags import format_call
from vo3.clueworld.tasks import Question, segment
from vo3.clueworld.views import Sighting, observe, sightings
from vo3.clueworld.world import Card, World
from vo3.trajectory import Call, Observation, Task, Trajectory, Turn
from vo3.video import CropPolicy

if TYPE_CHECKING:
    from vo3.chat import PromptPack


def named(world: World) -> str:
    """Every card in order of appearance, as the think text lists them."""
    return f"cards {' '.join(card.color for card in world.cards)}."


def timed(world: World, overview: Observation) -> list[str]:
    """Every card with the clock's readings that bound it, as the think text writes them."""
    return [_timed(s) for s in sightings(world, overview)]


def _timed(sight: Sighting) -> str:
    return f"{sight.card.color}:{sight.start}-{sight.end}"


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
    """The ground-truth trajectory: list the cards, look at those that the question needs, answer.

    `overview` stands for the whole video unless given (a part of it, in training).
    """
    overview = overview or observe(world, 0, policy=policy)
    turns = [
        Turn("system", pack.system(task)),
        Turn("question", pack.question(task), observations=(overview,)),
    ]
    shown = {s.card: s for s in sightings(world, overview)}
    think = named(world)
    for number, card in enumerate(question.looks, start=1):
        sight = shown[card]
        call = Call(float(sight.start), float(sight.end), "fine")
        found = f"{question.found[number - 1]}. " if question.found else ""
        look = f"{think} {found}look at {_timed(sight)}."
        turns.append(
            Turn("call", f"<think>{look}</think>\n{format_call(call, decimals=0)}", call=call)
        )
        clip = observe(
            world, number, policy=policy, window=(call.start, call.end), strategy=call.strategy
        )
        turns.append(Turn("observation", pack.observation(number, clip), observations=(clip,)))
        think = digits(card)
    answer = task.target.answer
    if question.shown is not None:
        sight = shown[question.shown]
        think = f"{think} {_timed(sight)}."
        answer = segment(sight.start, sight.end)
    elif len(question.looks) == 1:
        think = stated(question, task)
    else:
        think = f"{think} {stated(question, task)}"
    return _answered(task, turns, think, answer, pack)


def _answered(
    task: Task, turns: list[Turn], think: str, answer: str, pack: PromptPack
) -> Trajectory:
    text = f"<think>{think}</think>\n<answer>{answer}</answer>"
    turns.append(Turn("answer", text, answer=answer))
    return Trajectory(task, tuple(turns), outcome="answered", answer=answer, prompt_pack=pack.name)


def make_one_look(
    world: World, question: Question, task: Task, *, pack: PromptPack, shown: Observation
) -> Trajectory:
    """The ground truth of a one-turn baseline on uniform frames: list the cards that the frames show, say the digits asked for, answer.

    A digit that the frames do not show is to be guessed: training on what is right teaches the best guess.
    """
    turns = [
        Turn("system", pack.system(task)),
        Turn("question", pack.question(task), observations=(shown,)),
    ]
    seen = {s.card: s for s in sightings(world, shown, missing=True)}
    think = [named(dataclasses.replace(world, cards=tuple(seen)))]
    answer = task.target.answer
    if question.shown is not None:
        card = question.shown
        sight = seen.get(card, Sighting(card, card.start, card.end))
        think.append(f"{_timed(sight)}.")
        answer = segment(sight.start, sight.end)
    else:
        if len(question.looks) == 2:
            think += [digits(card) for card in question.looks]
        think.append(stated(question, task))
    return _answered(task, turns, " ".join(think), answer, pack)


def digits(card: Card) -> str:
    """The sentence that tells a card's digit."""
    return f"the {card.color} card shows {card.digit}."
