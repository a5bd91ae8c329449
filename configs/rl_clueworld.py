"""RL of the embedded model on ClueWorld, from its fine-tuned state, on a laptop: tasks and videos are made on the fly.

python -m vo3.train.grpo --config=configs/rl_clueworld.py --workdir=out/clueworld-rl
"""

import ml_collections

from vo3.train.rl_config import defaults


def get_config() -> ml_collections.ConfigDict:
    """The published recipe at the embedded model's size: 8 rollouts of 12 prompts, short videos, a higher rate.

    A step draws its prompts once: groups of equal reward drop out and are not replaced, as each further wave would cost a laptop as much as the first.
    """
    config = defaults()
    config.steps = 60
    config.model = "clueworld"
    config.init_from = "clueworld-sft"  # what the embedded model was before RL
    config.dtype = "float32"
    config.remat = "none"
    config.data.source = "clueworld"
    config.data.prompt_pack = "clueworld"
    config.data.workers = 2
    config.data.time_limit = 30.0
    config.data.rows_per_device = 4
    config.optim.rate = 1e-4
    config.loss.chunk = 256
    config.checkpoint.every = 10
    config.log.tensorboard = False
    config.rl.prompts_per_step = 12
    config.rl.group = 8
    config.rl.when_short = "train"
    config.rl.draw_limit = 1.0
    config.rl.align = 16
    # Few shapes: on a laptop each program costs more to compile than its padding costs to run.
    config.rl.shapes = ((2048, 3072, 1024),)
    config.rl.rollout.slots = 6
    config.rl.rollout.workers = 2
    config.rl.rollout.max_new_tokens = 160
    config.rl.rollout.max_length = 640
    config.rl.buckets.update(
        {"tokens": (128,), "patches": (256,), "prefix": (256,), "suffix": (256, 640)}
    )
    config.rl.clueworld.update({"worlds": 48, "longest": 480, "grounding_share": 0.1})
    return config
