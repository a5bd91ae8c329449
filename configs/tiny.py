"""The real data path on a laptop: rows with videos through plan, loader and step, into the embedded model.

python -m vo3.train.sft --config=configs/tiny.py --config.data.rows=ROWS.jsonl --config.data.videos=DIR --workdir=out/tiny
"""

import ml_collections

from vo3.train.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """The published recipe at a thousandth of the size; the embedded model's weights, prompts and short rows."""
    config = defaults()
    config.steps = 20
    config.model = "clueworld"
    config.dtype = "float32"
    config.remat = "none"
    config.data.prompt_pack = "clueworld"
    config.data.tokens_per_row = 2048
    config.data.programs = 2
    config.data.trajectories_per_step = 4
    config.data.workers = 1
    config.data.time_limit = 30.0
    config.optim.rate = 1e-4
    config.loss.chunk = 128
    config.checkpoint.every = 10
    config.log.samples_every = 0
    return config
