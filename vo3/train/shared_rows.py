"""Processes whose devices hold the same rows must feed the same: what one of them could not read, all of them leave out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils


def lost_by_group(lost: Collection[int], groups: Mapping[int, int]) -> tuple[set[int], bool]:
    """What the processes of this one's group lost together. A collective: every process calls it, in the same order as its programs.

    Where nobody lost anything it is one all-gather of one integer.

    Args:
      lost: numbers of trajectories that this process left out of a micro-batch.
      groups: group of each process, see `vo3.train.sharding.process_groups`.

    Returns:
      (numbers lost by any process of this group, whether in every group all processes lost the same); the latter is the same
      in every process.
    """
    most = int(_gathered(np.asarray([len(lost)], np.int32)).max())
    if not most:
        return set(), True
    padded = np.full(most, -1, np.int32)
    padded[: len(lost)] = sorted(lost)
    each = [{int(n) for n in row if n >= 0} for row in _gathered(padded)]
    together: dict[int, set[int]] = {}
    for process, group in groups.items():
        together.setdefault(group, set()).update(each[process])
    same = all(each[process] == together[group] for process, group in groups.items())
    return together[groups[jax.process_index()]], same


def _gathered(x: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(x)).reshape(-1, x.size)
