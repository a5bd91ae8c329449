"""The published RL: Qwen2.5-VL-7B after fine-tuning, GRPO with the Verifiable Trajectory-Guided Reward.

python -m vo3.train.grpo --config=configs/rl.py --config.model=gs://BUCKET/Qwen2.5-VL-7B-Instruct --config.init_from=gs://BUCKET/stage2 --config.data.rows=gs://BUCKET/rl.jsonl --config.data.videos=gs://BUCKET/videos --workdir=gs://BUCKET/rl
"""

import ml_collections

from vo3.train.rl_config import defaults


def get_config() -> ml_collections.ConfigDict:
    """32 prompts of 16 rollouts a step, one epoch; every value that is not set here is the default, which is the recipe's."""
    return defaults()
