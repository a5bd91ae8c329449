"""How closely the frames of a view bound the seconds of a card: what a reader of the clock who finds every card would answer in grounding.

It is also what training teaches, so that a model is held against it and not against 1. A reader that knew how long cards last could guess better.
"""

from __future__ import annotations

from collections.abc import Sequence

from vo3.clueworld import tasks
from vo3.clueworld.evaluate import OPTIONS, questions_of
from vo3.clueworld.figures import Measure
from vo3.clueworld.scales import Scale
from vo3.clueworld.views import observe, sightings
from vo3.clueworld.world import make_world
from vo3.rewards.grounding import Interval, overlap

EVERY = tuple(tasks.QUADRANTS)


def bounded(scale: Scale, view: str, worlds: Sequence[int], *, options: float = OPTIONS) -> Measure:
    """IoU of the bounds (`views.sightings`) with the truth, of the grounding questions that evaluation asks, by id; 0 where no frame shows the card.

    Args:
      scale, view: whose frames.
      worlds: seeds.
      options: share of questions with options, of evaluation; what is drawn depends on it.
    """
    values = {}
    for seed in worlds:
        world = make_world(seed, config=scale.world)
        shown = observe(world, 0, policy=scale.view(view))
        bounds = {
            sight.card: Interval(sight.start, sight.end)
            for sight in sightings(world, shown, missing=True)
        }
        # All quadrants, as evaluation draws them one after another.
        for question, task in questions_of(world, "-", options=options, quadrants=EVERY):
            if question.shown is None:
                continue
            truth = [Interval(clue.start, clue.end) for clue in question.clues]
            told = bounds.get(question.shown)
            values[task.id] = overlap([told], truth).iou if told else 0.0
    return Measure(values, share=False)
