"""Stage 1 of the published fine-tuning: Seeker-173K, one epoch, plain causal attention.

python -m vo3.train.sft --config=configs/sft_stage1.py --config.model=gs://BUCKET/Qwen2.5-VL-7B-Instruct --config.data.rows=gs://BUCKET/seeker.jsonl --config.data.videos=gs://BUCKET/videos --workdir=gs://BUCKET/stage1
"""

import ml_collections

from vo3.train.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """Decoder and merger train, the vision tower is frozen; half of stage 2's batch."""
    config = defaults()
    # As released: positions count whole seconds per step. At 2 fps, so in all but long overviews, this is "constant".
    config.data.mrope_time = "hf_int"
    config.data.trajectories_per_step = 128
    return config
