"""Four steps of the embedded model on data made on the fly, in seconds on a laptop: does the trainer run at all?

python -m vo3.train.sft --config=configs/debug.py --workdir=/tmp/vo3_debug
"""

import ml_collections

from vo3.train.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """ClueWorld at two worlds a step; no file is needed."""
    config = defaults()
    config.steps = 4
    config.model = "clueworld"
    config.init_from = "random"
    config.frozen = ()
    config.dtype = "float32"
    config.remat = "none"
    config.data.source = "clueworld"
    config.data.prompt_pack = "clueworld"
    config.data.workers = 0
    config.data.clueworld.update({"worlds": 2, "patches": 6, "length": 896, "dense": True})
    config.optim.rate = 1e-3
    config.optim.warmup = 1.0
    config.checkpoint.every = 2
    config.checkpoint.export_hf = False
    config.log.tensorboard = False
    config.log.samples_every = 0
    return config
