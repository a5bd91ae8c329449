"""Joining the other processes of a run: TPU pods and GKE find each other, local processes are told by `launch/local.sh`."""

from __future__ import annotations

import os

import jax
from absl import logging

COORDINATOR, COUNT, INDEX = "VO3_COORDINATOR", "VO3_NUM_PROCESSES", "VO3_PROCESS_ID"


def initialize() -> None:
    """Calls `jax.distributed.initialize` where the launcher asks for it; must come before any other use of JAX.

    `VO3_NUM_PROCESSES=auto`, which the pod launchers set, leaves everything to JAX's cluster detection. A number comes with
    `VO3_COORDINATOR` (host:port) and `VO3_PROCESS_ID`; on CPU those processes talk over gloo. Unset, this is the only process.

    Raises:
      ValueError: one of the three is missing or no number.
    """
    count = os.environ.get(COUNT, "")
    if not count:
        return
    if count == "auto":
        jax.distributed.initialize()
    else:
        missing = [name for name in (COORDINATOR, INDEX) if not os.environ.get(name)]
        if missing:
            raise ValueError(
                f"{COUNT}={count} needs {' and '.join(missing)} as well; launch/local.sh sets them"
            )
        try:
            processes, index = int(count), int(os.environ[INDEX])
        except ValueError as error:
            raise ValueError(
                f"{COUNT}={count}, {INDEX}={os.environ[INDEX]}: numbers are expected"
            ) from error
        if not 0 <= index < processes:
            raise ValueError(f"{INDEX}={index} lies outside of 0 to {processes - 1}")
        if os.environ.get("JAX_PLATFORMS", "") == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(os.environ[COORDINATOR], processes, index)
    logging.info("process %d of %d", jax.process_index(), jax.process_count())
