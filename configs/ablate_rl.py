"""The ablation of RL, in the micro-world: bonus, decay, size of a group, prefix tree.

    python -m benchmarks.ablate --config=configs/ablate_rl.py --workdir=out/ablate [--config.seeds="(0,)"]

The cells start from the agent of `configs/ablate.py` (the same stages: one workdir trains them once) and go on with RL. The first cell is that agent itself, without RL. `tree False` is the
same arithmetic without a shared prefix, so what it shows is time, and whether rounding matters.
"""

import ml_collections

from configs import ablate, rl_clueworld


def get_config() -> ml_collections.ConfigDict:
    """The agent before RL, RL with the published settings at its size, and one change at a time."""
    config = ablate.get_config()
    config.seeds = (0, 1, 2)
    config.grid = (
        {"rl.steps": (0,)},
        {"rl.steps": (40,)},
        {"rl.rl.reward.bonus_weight": (0.0,)},
        {"rl.rl.reward.decay": (0.0,)},
        {"rl.rl.group": (4,)},
        {"rl.rl.tree": (False,)},
    )
    config.cell.rl = rl = rl_clueworld.get_config()
    rl.unlock()
    rl.steps = 40
    rl.checkpoint.every = 10
    rl.checkpoint.export_hf = False
    rl.log.every = 1
    rl.rl.trajectories_every = 0
    rl.rl.rollout.max_new_tokens = 96
    rl.rl.clueworld.update(
        {"scale": "micro", "worlds": 64, "shortest": 60, "longest": 90}
        # What its model was taught: open questions, no grounding.
        | {"options_share": 0.0, "grounding_share": 0.0}
    )
    return config
