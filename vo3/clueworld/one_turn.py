"""What a one-turn baseline says of the frames that it was shown, held against what they show: where it is lost, if it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vo3.clueworld.views import sightings
from vo3.clueworld.world import WorldConfig, make_world
from vo3.trajectory import Trajectory

_LISTED = re.compile(r"<think>cards ([a-z ]*)\.")
_READ = re.compile(r"the (\w+) card shows (\d)")


def said(
    rows: Sequence[Trajectory], *, config: WorldConfig | None = None
) -> dict[str, tuple[int, int]]:
    """(right, of) what think texts say.

    Args:
      rows: of a baseline, with ids that begin with the world's seed.
      config: of the worlds; None: the embedded model's.
    """
    listed, shown, unshown = [], [], []
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
            listed.append(cards[1].split() == seen)
        for color, digit in _READ.findall(text):
            if color in digits:
                (shown if color in seen else unshown).append(digits[color] == int(digit))
    return {
        "think: lists exactly the cards that frames show": (sum(listed), len(listed)),
        "think: digit of a card that frames show": (sum(shown), len(shown)),
        "think: digit of a card that no frame shows": (sum(unshown), len(unshown)),
    }
