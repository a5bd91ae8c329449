"""Groups of rollouts over a mesh, which tests start in several processes.

python group_runs.py OUT TASKS: every process writes OUT/<its index>.json with what was said on its tasks; TASKS is one word of task ids a process.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import unittest.mock

import jax
import numpy as np
import rollout_fakes as fakes
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rollout_fakes import NoiseVideo, answer, call

from vo3.attention import AttentionMesh
from vo3.models.qwen2_5_vl import Qwen2_5_VL
from vo3.rollout import GroupBuckets, GroupEngine, RolloutPolicy, Sampling
from vo3.rollout.rolling import rollout_seed
from vo3.train import processes

POLICY = RolloutPolicy(mode="rl", max_length=4096, reserve=64)
BUCKETS = GroupBuckets(tokens=(256,), patches=(64,), prefix=(2048,), suffix=(1024,))
SCRIPTS = ((call(), answer("B") + "<|im_end|>"), (answer() + "<|im_end|>",))
BABBLE = 5


def video(task) -> NoiseVideo:
    """Of another length and content for every task."""
    return NoiseVideo(seed=ord(task.id), duration=30.0 + ord(task.id) % 7)


def over(model: Qwen2_5_VL, mesh: Mesh) -> Qwen2_5_VL:
    """The model with its weights whole on every device of a mesh, and rows over its axis "data"."""
    whole = NamedSharding(mesh, PartitionSpec())
    put = lambda x: jax.make_array_from_callback(x.shape, whole, lambda at: np.asarray(x)[at])
    split = AttentionMesh(mesh)
    spread = Qwen2_5_VL(model.config, rngs=nnx.Rngs(0), mesh=split)
    nnx.update(spread, jax.tree.map(put, nnx.state(model)))
    return spread


def roll(model: Qwen2_5_VL, tokenizer, tasks: str, *, slots: int) -> dict[str, list]:
    """Sampled ids and outcomes by task."""

    class Leaf(fakes.ScriptedLeaf):
        pass

    Leaf.scripts = {
        rollout_seed(0, task, number): words
        for task in tasks
        for number, words in enumerate(SCRIPTS)
    }
    Leaf.babble, Leaf.tokenizer = BABBLE, tokenizer
    engine = GroupEngine(
        model, tokenizer=tokenizer, policy=POLICY, buckets=BUCKETS, slots=slots, rollouts=2, agree_every=3
    )  # fmt: skip
    todo = [dataclasses.replace(fakes.TASK, id=name) for name in tasks]
    with unittest.mock.patch("vo3.rollout.group.Leaf", Leaf):
        return {
            group.task.id: [
                [list(turn.ids) for turn in rollout.trajectory.turns if turn.ids]
                + [rollout.trajectory.outcome]
                for rollout in group.rollouts
            ]
            for group in engine.run(todo, video, sampling=Sampling(temperature=1.0), seed=0)
        }


def main(out: str, *tasks: str) -> None:
    """One process of as many as there are words of tasks."""
    processes.start()
    # The first collective waits 30 s for the others; now they are at the same place, after building a model they need not be.
    processes.barrier("begin")
    tokenizer = fakes.byte_tokenizer()
    model = over(fakes.random_model(tokenizer), Mesh(np.array(jax.devices()), ("data",)))
    said = roll(model, tokenizer, tasks[jax.process_index()], slots=1)
    (pathlib.Path(out) / f"{jax.process_index()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], *sys.argv[2:])
