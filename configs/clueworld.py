"""Trains the embedded model, stage by stage; `make clueworld` runs them all.

python -m vo3.clueworld.pretrain --workdir=out/clueworld/vision
python -m vo3.train.sft --config=configs/clueworld.py:read --workdir=out/clueworld/read
python -m vo3.train.sft --config=configs/clueworld.py:order --workdir=out/clueworld/order
python -m vo3.train.sft --config=configs/clueworld.py:whole --workdir=out/clueworld/whole
python -m vo3.train.sft --config=configs/clueworld.py:finish --workdir=out/clueworld/finish
"""

import ml_collections

# stage: steps, learning-rate schedule, where the parameters come from, data
_STAGES = {
    "read": (
        200,
        "constant",
        "vision",
        {"seed": 1, "patches": 2, "length": 384, "transcripts": 8, "trajectories": False},
    ),
    "order": (
        300,
        "constant",
        "read",
        {
            "seed": 2,
            "patches": 10,
            "dense": True,
            "length": 512,
            "transcripts": 5,
            "trajectories": False,
        },
    ),
    "whole": (300, "constant", "order", {"seed": 3, "length": 576, "lookups": 1}),
    "finish": (700, "cosine", "whole", {"seed": 4, "length": 576, "lookups": 1}),
}


def get_config(stage: str = "read") -> ml_collections.ConfigDict:
    """`read`: transcripts of two temporal patches; `order`: of the patches that hold cards; `whole` and `finish`: trajectories with all 32. Each from the one before."""
    if stage not in _STAGES:
        raise ValueError(f"unknown stage {stage!r}; one of {list(_STAGES)}")
    steps, schedule, before, data = _STAGES[stage]
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.steps = steps
    config.optimizer = "muon"
    config.schedule = schedule
    config.rate = 0.02  # of the matrices, under Muon
    config.adam_rate = 3e-3  # of everything else
    config.weight_decay = 0.0
    config.clip = 1.0
    config.warmup = 50
    config.workers = 1
    config.log_every = 25
    config.save_every = 200
    first = before == "vision"
    config.init_vision = "out/clueworld/vision/vision.npz" if first else ""
    config.init_from = "" if first else f"out/clueworld/{before}"
    config.data = ml_collections.ConfigDict(
        {"worlds": 12, "lookups": 0, "options_share": 0.6, "noise": 5.0, "emphasis": 4.0, **data}
    )
    return config
