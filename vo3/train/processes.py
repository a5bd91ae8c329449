"""Processes of a run: start together, agree on decisions, end when asked."""

from __future__ import annotations

import os
import signal
import threading

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

# Set by the launch scripts. `auto` as the count leaves everything to JAX's cluster detection (TPU pods, GKE).
COORDINATOR, COUNT, INDEX = "VO3_COORDINATOR", "VO3_PROCESSES", "VO3_PROCESS"


def start() -> None:
    """Joins the other processes, where the variables say there are any; must come before anything touches a device.

    Raises:
      ValueError: some of the variables are missing, or no numbers.
    """
    # `Preemption` listens itself. JAX's service compares the step that was agreed on with the last number it was given, by
    # equality, and Orbax gives it numbers of its own at every save: a signal could pass unnoticed.
    jax.config.update("jax_enable_preemption_service", False)
    given = {name: os.environ.get(name, "") for name in (COORDINATOR, COUNT, INDEX)}
    if given[COUNT] == "auto":
        jax.distributed.initialize()
    elif any(given.values()):
        missing = [name for name, value in given.items() if not value]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} not set; set all of {', '.join(given)}, or none"
            )
        if not (given[COUNT].isdigit() and given[INDEX].isdigit()):
            raise ValueError(
                f"{COUNT}={given[COUNT]}, {INDEX}={given[INDEX]}: numbers are expected"
            )
        count, index = int(given[COUNT]), int(given[INDEX])
        if index >= count:
            raise ValueError(f"{INDEX}={index} lies outside of 0 to {count - 1}")
        if os.environ.get("JAX_PLATFORMS", "") == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(given[COORDINATOR], count, index)
    else:
        return
    logging.info("process %d of %d", jax.process_index(), jax.process_count())


def first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for every process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agree(flag: bool) -> bool:
    """Whether the flag is set in every process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))


class Preemption:
    """Notices that the run is to end: SIGTERM in any process, which is also what clouds send before they take a machine away.

    A context manager: each process has a handler of its own while the block runs, and `reached` spreads what one of them was told.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._before = None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self) -> bool:
        """Whether to save and end here; the same answer in every process.

        All processes gather one flag, so each must call it as often, and at the same place of its program order. It waits for
        the slowest: call it where the step's own collectives have been waited for, a few times a step at most.
        """
        return not agree(not self._asked.is_set())
