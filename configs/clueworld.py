"""Trains the embedded model, stage by stage; `make clueworld` runs them all.

python -m vo3.clueworld.pretrain --workdir=out/clueworld/vision
python -m vo3.train.sft --config=configs/clueworld.py:stage1 --workdir=out/clueworld/stage1
python -m vo3.train.sft --config=configs/clueworld.py:stage2 --workdir=out/clueworld/stage2
"""

import ml_collections


def get_config(stage: str = "stage1") -> ml_collections.ConfigDict:
    """`stage1`: overviews of 8 temporal patches, from the pretrained vision tower. `stage2`: all 32."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.optimizer = "muon"
    config.schedule = "cosine"
    config.weight_decay = 0.0
    config.clip = 1.0
    config.warmup = 50
    config.workers = 1
    config.log_every = 25
    config.save_every = 200
    config.init_from = ""
    config.init_vision = ""
    config.rate = 0.02
    config.adam_rate = 3e-3
    config.data = ml_collections.ConfigDict(
        {
            "seed": 1,
            "worlds": 16,
            "patches": 8,
            "length": 400,
            "options_share": 0.6,
            "noise": 5.0,
            "emphasis": 4.0,
        }
    )
    if stage == "stage0":
        config.steps = 200
        config.schedule = "constant"
        config.init_vision = "out/clueworld/vision/vision.npz"
        config.data.update({"seed": 3, "patches": 4, "length": 400})
    elif stage == "stage1":
        config.steps = 300
        config.schedule = "constant"
        config.init_from = "out/clueworld/stage0"
    elif stage == "stage2":
        config.steps = 1200
        config.init_from = "out/clueworld/stage1"
        config.data.update({"seed": 2, "patches": 32, "length": 576})
    else:
        raise ValueError(f"unknown stage {stage!r}; one of 'stage1', 'stage2'")
    return config
