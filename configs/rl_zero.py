"""RL from the base model, without fine-tuning before it.

python -m vo3.train.grpo --config=configs/rl_zero.py --config.model=gs://BUCKET/Qwen2.5-VL-7B-Instruct --config.data.rows=gs://BUCKET/rl.jsonl --config.data.videos=gs://BUCKET/videos --workdir=gs://BUCKET/rl-zero
"""

import ml_collections

from vo3.train.rl_config import defaults


def get_config() -> ml_collections.ConfigDict:
    """As `configs/rl.py`, from the published instruction model; single-clue rows come first, while calls are still being learnt."""
    config = defaults()
    config.init_from = "model"
    config.rl.curriculum = "single_first"
    # A model that was never shown the format seldom earns anything at first: more prompts may be looked through for a step.
    config.rl.draw_limit = 16.0
    return config
