"""Stage 2 of the published fine-tuning: Seeker-173K, one epoch, with TDAM; starts from stage 1.

python -m vo3.train.sft --config=configs/sft_stage2.py --config.model=gs://BUCKET/Qwen2.5-VL-7B-Instruct --config.init_from=gs://BUCKET/stage1 --config.data.rows=gs://BUCKET/seeker.jsonl --config.data.videos=gs://BUCKET/videos --workdir=gs://BUCKET/stage2
"""

import ml_collections

from vo3.train.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """As stage 1 at twice the batch; a step in ten is masked as released."""
    config = defaults()
    # As released: positions count whole seconds per step. At 2 fps, so in all but long overviews, this is "constant".
    config.data.mrope_time = "hf_int"
    config.data.trajectories_per_step = 256
    config.tdam.policy = "released"
    config.tdam.mask_ratio = 0.1
    return config
