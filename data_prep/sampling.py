"""A stratified sample of a run for people to look at: so many items of every stage and side, and of every quadrant."""

from __future__ import annotations

import collections
import dataclasses

from data_prep.keys import draw
from data_prep.pipeline import STAGE_NAMES
from data_prep.schema import Record
from data_prep.store import Store


@dataclasses.dataclass(frozen=True)
class Item:
    """A record to look at.

    Attributes:
      group: the stratum: "STAGE rejected" or "QUADRANT accepted".
      stage: the stage whose decision is judged.
      record: the record.
    """

    group: str
    stage: str
    record: Record


def sample(store: Store, *, each: int, seed: int = 0) -> list[Item]:
    """`each` items of every stratum, the same for the same seed, so that two reviewers see the same ones.

    Strata: questions that stage 0 refused; rows rejected by each stage; rows accepted in each quadrant, whose last stage stands
    for the whole chain.
    """
    groups: dict[str, list[tuple[float, str, str]]] = collections.defaultdict(list)
    query = " UNION ALL ".join(
        f"SELECT key, stage, quadrant FROM records JOIN {table} USING (key)"
        for table in ("admitted", "refused")
    )
    for key, stage, quadrant in store.rows(query):
        name = f"{stage} rejected" if stage else f"{quadrant} accepted"
        chance = draw("review", seed, key)
        kept = groups[name]
        kept.append((chance, key, stage or STAGE_NAMES[-1]))
        if (
            len(kept) > 4 * each + 64
        ):  # the smallest are kept, the rest forgotten: memory stays flat
            groups[name] = sorted(kept)[:each]
    chosen: dict[str, tuple[str, str]] = {}
    for name in sorted(groups):
        for _, key, stage in sorted(groups[name])[:each]:
            chosen[key] = (name, stage)
    items = []
    for key, (name, stage) in chosen.items():
        record = store.record(key)
        items.append(Item(name, stage, record))
    return items
