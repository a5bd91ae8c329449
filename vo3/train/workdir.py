"""Whose a workdir is: the configuration that stands in it, written once and checked on every start."""

from __future__ import annotations

import json
import re
from typing import Any

import ml_collections
import orbax.checkpoint as ocp
from etils import epath

from vo3.models.safetensors_io import CheckpointError
from vo3.train import config as config_lib
from vo3.train import processes

CONFIG = "config.json"
# Keys that may differ when a run goes on: they change what is seen of it, how its rows are padded, or when it gives up, not what
# it has learned from. The errors that end a run name some of them as the remedy.
FREE = (
    r"^(log|checkpoint|mesh|sharding)\.",
    r"^data\.(workers|clip_cache|clip_cache_bytes|time_limit|reject_limit|videos|rows)$",
    r"^(compilation_cache|on_nan|spike_factor|scan_unroll|remat)$",
    r"^rl\.(trajectories_every|alarms|when_short|draw_limit|shapes|rollout\.(tensor|slots|lanes|workers))$",
)
# Keys that came later, and what the runs of before did.
LATER: dict[str, Any] = {"optim.scales": []}


def claim(workdir: epath.PathLike, config: ml_collections.ConfigDict) -> None:
    """Writes the resolved configuration into the workdir, or checks that the run which is there has the same.

    Raises:
      ConfigError: the workdir belongs to a run with other values of keys that change the result.
      CheckpointError: whose it is cannot be read, and it has checkpoints.
    """
    workdir = epath.Path(workdir)
    new = json.loads(json.dumps(config_lib.flatten(config)))
    try:
        old = {**LATER, **(stored(workdir) or new)}
    except CheckpointError:
        if steps(workdir):
            raise
        old = new  # nothing came of that run
    differ = [
        key
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key) and not any(re.search(p, key) for p in FREE)
    ]
    if differ:
        told = ", ".join(f"{k}={old.get(k)!r}, now {new.get(k)!r}" for k in differ[:5])
        raise config_lib.ConfigError(
            f"{workdir} belongs to a run of another configuration ({told}); use another workdir, or the same values"
        )
    processes.barrier("config checked")
    if processes.first():
        workdir.mkdir(parents=True, exist_ok=True)
        # Written aside: a run that is killed here must not lose what says whose its checkpoints are. On a bucket a rename is a
        # copy of one object, which appears whole or not at all.
        part = workdir / f"{CONFIG}.part"
        part.write_text(json.dumps(new, indent=1) + "\n")
        part.replace(workdir / CONFIG)


def stored(workdir: epath.PathLike) -> dict[str, Any] | None:
    """The configuration of the run in a workdir, by dotted key; None where there is none.

    Raises:
      CheckpointError: it cannot be read.
    """
    file = epath.Path(workdir) / CONFIG
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise CheckpointError(
            f"{file} is no JSON ({error}); put back the values with which the run was started (its first log lists them), or "
            "delete it and start the run again with the very same configuration: it is written anew then"
        ) from error
    return found


def steps(workdir: epath.PathLike) -> list[int]:
    """Steps that have a checkpoint in a workdir."""
    root = epath.Path(workdir) / "checkpoints"
    return ocp.utils.checkpoint_steps(root) if root.exists() else []
