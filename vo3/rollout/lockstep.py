"""What to run next, agreed on by every process that shares a model.

Programs over a mesh of several hosts need all of them: each says what it would do, in a few integers that are gathered from everybody, and
all do the same. A process without work of its own takes part with padding. Nobody waits for a host thread of another process: a
leaf whose clip is late is a row that stands still.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class Need:
    """What a process would do next. The largest of everybody's numbers is what all of them do.

    Attributes:
      busy: 1 while there is anything left to do, now or later.
      encode: patches of the next call of the vision tower; 0: none is due.
      prompt, extend: tokens of the next chunk; 0: none is due.
      decode: 1 if a leaf samples.
      prefix, suffix: slots that the caches must have.
      refit: 1 if the caches may become smaller.
    """

    busy: int = 0
    encode: int = 0
    prompt: int = 0
    extend: int = 0
    decode: int = 0
    prefix: int = 1
    suffix: int = 1
    refit: int = 0

    @property
    def idle(self) -> bool:
        """Whether no program is due."""
        return not (self.encode or self.prompt or self.extend or self.decode)


def agree(need: Need) -> Need:
    """The largest of every process's numbers, the same in each of them."""
    mine = np.asarray(dataclasses.astuple(need), np.int32)
    everybody = multihost_utils.process_allgather(mine)
    return Need(*(int(number) for number in everybody.max(axis=0)))
