"""What a one-turn baseline says of the frames that it was shown, held against what they show: where it is lost, if it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vo3.clueworld.figures import Measure
from vo3.clueworld.views import sightings
from vo3.clueworld.world import WorldConfig, make_world
from vo3.trajectory import Trajectory

_LISTED = re.compile(r"<think>cards ([a-z ]*)\.")
_READ = re.compile(r"the (\w+) card shows (\d)")


def said(rows: Sequence[Trajectory], *, config: WorldConfig | None = None) -> dict[str, Measure]:
    """Whether what think texts say is right.

    Args:
      rows: of a baseline, with ids that begin with the world's seed.
      config: of the worlds; None: the embedded model's.
    """
    listed: dict[str, float] = {}
    shown: dict[str, float] = {}
    unshown: dict[str, float] = {}
    worlds = {}
    for row in rows:
        seed = int(row.task.id.partition("-")[0])
        if seed not in worlds:
            worlds[seed] = make_world(seed, config=config)
        world = worlds[seed]
        digits = {card.color: card.digit for card in world.cards}
        seen = [s.card.color for s in sightings(world, row.observations[0], missing=True)]
        text = row.turns[-1].text
        if cards := _LISTED.match(text):
            listed[row.task.id] = cards[1].split() == seen
        for i, (color, digit) in enumerate(_READ.findall(text)):
            if color in digits:
                part = shown if color in seen else unshown
                part[f"{row.task.id}#{i}"] = digits[color] == int(digit)
    return {
        "think: lists exactly the cards that frames show": Measure(listed),
        "think: digit of a card that frames show": Measure(shown),
        "think: digit of a card that no frame shows": Measure(unshown),
    }
