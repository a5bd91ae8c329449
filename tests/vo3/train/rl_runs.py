"""RL runs with scripted rollouts, for the tests of the trainer; as a program, one process of several.

python rl_runs.py WORKDIR [STEP]
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import signal
import sys

import fake_groups
import jax
import numpy as np
from jax.experimental import multihost_utils
from rollout_fakes import CROP, NoiseVideo

from configs import rl_clueworld
from vo3.chat import PromptPack
from vo3.rollout import GroupRollout
from vo3.train import grpo, processes
from vo3.train.config import override
from vo3.train.prompts import Prompt

BASE = {
    "steps": 3, "init_from": "random", "checkpoint.every": 1, "checkpoint.background": False, "checkpoint.export_hf": False,
    "optim.rate": 1e-3, "data.rows_per_device": 2, "loss.chunk": 64, "checkpoint.keep": 9,
    "rl.prompts_per_step": 2, "rl.group": 3, "rl.align": 8, "rl.shapes": ((1280, 128, 512),), "rl.when_short": "stop",
    "rl.rollout.max_length": 1024, "rl.trajectories_every": 1, "rl.draw_limit": 4.0,
}  # fmt: skip


def config(**changes):
    return override(rl_clueworld.get_config(), **{**BASE, **changes})


class FakePrompts:
    """Tasks named by their number."""

    plan = "cc"

    def __init__(self, per_epoch=None):
        self.per_epoch = per_epoch

    def __getitem__(self, number):
        return Prompt(number, fake_groups.task(f"p{number}"))

    def ready(self, numbers):
        pass


class FakeRoller:
    """Rollouts that depend on weights, task, seed and number, as sampled ones do.

    `equal`: prompts whose rollouts are all alike; `broken`: those that cannot begin; `blind`: the weights do not matter.
    """

    def __init__(self, equal=(), broken=(), *, blind=False):
        self.equal, self.broken, self.asked = set(equal), set(broken), []
        self._weights, self._blind = b"", blind

    def update(self, model):
        if self._blind:
            return
        self._weights = hashlib.sha256(np.asarray(model.embed.table[...]).tobytes()).digest()

    def ahead(self, tasks):
        self.begun = [task.id for task in tasks]

    def close(self):
        self.closed = True

    def roll(self, tasks, *, seed):
        groups = []
        for task in tasks:
            self.asked.append(task.id)
            if task.id in self.broken:
                groups.append(GroupRollout(task, (), "VideoError: gone"))
                continue
            key = hashlib.sha256(self._weights + f"{task.id}/{seed}".encode()).digest()
            rng = np.random.default_rng(list(key))
            # The first two always differ in reward.
            kinds = [0, 1, int(rng.integers(5))] if task.id not in self.equal else [1, 1, 1]
            salt = int(rng.integers(1 << 30))
            groups.append(
                GroupRollout(task, tuple(fake_groups.rollout(task.id, k, salt) for k in kinds))
            )
        return groups


def parts(roller=None, per_epoch=None):
    return grpo.Parts(
        prompts=FakePrompts(per_epoch),
        roller=roller or FakeRoller(),
        model=fake_groups.architecture(),
        setting=grpo.Setting(fake_groups.tokenizer(), PromptPack.load("clueworld"), CROP),
        open_video=lambda task: NoiseVideo(seed=1),
    )


class AskedRoller(FakeRoller):
    """The second process sends itself SIGTERM in the rollouts of a step, counted from 1 in this process."""

    def __init__(self, step):
        super().__init__(blind=True)
        self._left = step

    def roll(self, tasks, *, seed):
        self._left -= 1
        if not self._left and not processes.first():
            os.kill(os.getpid(), signal.SIGTERM)
        return super().roll(tasks, seed=seed)


def main(workdir: str, asked: str = "") -> None:
    """One step on all devices of all processes; the first process writes final.npz. `asked`: a fourth step is not reached, for
    the run is asked to end in the rollouts of this one.
    """
    processes.start()
    changes = {"steps": 4 if asked else 1, "rl.prompts_per_step": 3, "mesh.fsdp": -1}
    roller = AskedRoller(int(asked)) if asked else FakeRoller(equal=["p1"], blind=True)
    result = grpo.train(config(**changes), workdir, parts=parts(roller))
    if asked:
        return
    whole = {
        name: multihost_utils.process_allgather(value, tiled=True)
        for name, value in sorted(result.params.items())
    }
    if processes.first():
        np.savez(pathlib.Path(workdir) / "final.npz", **jax.device_get(whole))


if __name__ == "__main__":
    main(*sys.argv[1:])
