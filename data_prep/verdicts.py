"""What people say of rows: accepted shares by stage, agreement between reviewers, and rows filtered by it."""

from __future__ import annotations

import collections
import dataclasses
import itertools

from data_prep import stats
from data_prep.store import Store, write_lines


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """All verdicts, counted.

    Attributes:
      by_stage: "stage, accepted" and "stage, rejected" -> share of the pipeline's decisions that people found right (Wilson interval).
      reviewers: reviewer -> verdicts given.
      pairs: labels of two reviewers on the same item, for every pair of them.
    """

    by_stage: dict[str, stats.Share]
    reviewers: dict[str, int]
    pairs: tuple[tuple[str, str], ...]

    @property
    def agreement_text(self) -> str:
        """How far reviewers agree, as a sentence."""
        people = ", ".join(f"{name} {n}" for name, n in sorted(self.reviewers.items()))
        if not self.pairs:
            return f"Verdicts: {people}. No item has two reviewers yet, so there is no agreement to report."
        agreed = stats.Share(sum(a == b for a, b in self.pairs), len(self.pairs))
        kappa = stats.kappa(self.pairs)
        told = "not defined, all verdicts are the same" if kappa is None else f"{kappa:.2f}"
        return (
            f"Verdicts: {people}. Two reviewers agree on {agreed} items; Cohen's kappa is {told}."
        )


def read_verdicts(store: Store) -> Verdicts:
    """Counts the verdicts. On an accepted row "accept" agrees with the pipeline; on a rejected one "reject" does."""
    right: collections.Counter = collections.Counter()
    total: collections.Counter = collections.Counter()
    reviewers: collections.Counter = collections.Counter()
    items: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    query = (
        "SELECT v.key, v.stage, v.reviewer, v.verdict, r.stage FROM verdicts v JOIN records r USING (key) "
        "ORDER BY v.key, v.stage, v.reviewer"
    )
    for key, stage, reviewer, verdict, ended in store.rows(query):
        side = "rejected" if ended == stage else "accepted"
        total[f"{stage}, {side}"] += 1
        right[f"{stage}, {side}"] += (verdict == "reject") == (side == "rejected")
        reviewers[reviewer] += 1
        items[key, stage].append(verdict)
    pairs = [pair for labels in items.values() for pair in itertools.combinations(labels, 2)]
    shares = {name: stats.Share(right[name], total[name]) for name in sorted(total)}
    return Verdicts(shares, dict(reviewers), tuple(pairs))


def apply(store: Store) -> tuple[int, int]:
    """Writes `trajectories.reviewed.jsonl`: the accepted rows without those that people reject. Returns (kept, left out).

    A row is left out when more reviewers reject it, at any stage, than accept it.
    """
    votes: collections.Counter = collections.Counter()
    for key, verdict in store.rows("SELECT key, verdict FROM verdicts"):
        votes[key] += 1 if verdict == "accept" else -1
    accepted = (
        "SELECT key, row FROM records JOIN admitted USING (key) WHERE stage = '' ORDER BY key"
    )
    left_out = 0

    def lines():
        nonlocal left_out
        for key, row in store.rows(accepted):
            if votes[key] < 0:
                left_out += 1
            else:
                yield row

    kept = write_lines(store.workdir / "trajectories.reviewed.jsonl", lines())
    return kept, left_out
