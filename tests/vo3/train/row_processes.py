"""What one of several processes sees of rows on a mesh, with its devices side by side and interleaved with the others'.

python row_processes.py FOLDER, with the variables of `vo3.train.processes`; writes FOLDER/PROCESS.json.
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tiny_rows import PATCHES, TOKENS, config, document, rows

from vo3.train import processes, sharding
from vo3.train.feed import local_rows
from vo3.train.shared_rows import lost_by_group


@jax.jit
def loss(batch):
    """Of each row the product over its fields of a number that every element changes; summed over the rows."""
    parts = []
    for x in jax.tree.leaves(batch):
        flat = x.reshape(x.shape[0], -1).astype(jnp.float32)
        parts.append(1 + jnp.cos(flat + jnp.arange(flat.shape[1])[None]).mean(1))
    return jnp.stack(parts).prod(0).sum()


def main(folder: str) -> None:
    """Places rows by both orders of devices."""
    processes.start()
    devices = jax.devices()
    batch = rows([[document(i)] for i in range(4)], length=TOKENS, patches=PATCHES)
    told: dict[str, dict] = {"held": {}, "loss": {}, "ids": {}}
    for name, order in {"ordered": devices, "interleaved": devices[::2] + devices[1::2]}.items():
        mesh = sharding.make_mesh(config(**{"mesh.fsdp": len(order)}), order)
        group, groups = sharding.row_groups(mesh)
        mine = local_rows(batch, group, groups)
        placed = sharding.place(mine, mesh, groups=groups)
        shards = {s.index[0].start: np.asarray(s.data) for s in placed.ids.addressable_shards}
        told["held"][name] = sorted(shards)
        told["ids"][name] = np.concatenate([shards[i] for i in sorted(shards)]).tolist()
        told["loss"][name] = float(loss(placed))
    # One group of both: each lost something else, then the same, then nothing.
    lost = ([{5, 3}, {8}], [{3}, {3}], [set(), set()])
    told["lost"] = [
        [sorted(found), same]
        for each in lost
        for found, same in [lost_by_group(each[jax.process_index()], {0: 0, 1: 0})]
    ]
    # Two groups: everybody takes another turn, but what others lost is not ours.
    told["apart"] = sorted(lost_by_group(lost[0][jax.process_index()], {0: 0, 1: 1})[0])
    file = pathlib.Path(folder) / f"{jax.process_index()}.json"
    file.write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
