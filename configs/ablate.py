"""The first ablation: TDAM in the second stage of training, in the micro-world.

    python -m benchmarks.ablate --config=configs/ablate.py --workdir=out/ablate [--config.seeds="(0,1,2)"]

`grid` is a union of products: each entry maps keys of `cell` to the values to try. A cell is trained in stages, each from the one before, and stages that cells have
in common are trained once: the seed's vision tower and transcripts (the plain first stage), then trajectories, where `cell.tdam` is in force.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The micro agent and its one-turn baseline, and the agent under each TDAM policy."""
    config = ml_collections.ConfigDict()
    config.seeds = (0,)
    config.worlds = 60  # of evaluation; three questions of each quadrant
    config.quadrants = ("clue_single_w_tool", "clue_multi_w_tool", "clue_multi_wo_tool")
    config.grid = (
        {"view": ("agent",)},
        {"view": ("middle",), "read.data.length": (480,)},
        {"tdam.policy": ("released", "predictor", "turn"), "tdam.mask_ratio": (1.0, 0.1)},
    )
    cell = config.cell = ml_collections.ConfigDict()
    cell.scale = "micro"
    cell.view = "agent"
    cell.tdam = ml_collections.ConfigDict({"policy": "off", "mask_ratio": 0.0})
    cell.vision = ml_collections.ConfigDict({"steps": 500, "worlds": 24})
    common = {
        "schedule": "constant", "optimizer": "muon", "rate": 0.02, "adam_rate": 3e-3,
        "weight_decay": 0.0, "clip": 1.0, "warmup": 25, "workers": 1, "log_every": 25,
    }  # fmt: skip
    data = {
        "worlds": 8, "patches": 32, "options_share": 0.0, "noise": 5.0, "emphasis": 4.0, "dense": False,
    }  # fmt: skip
    read = {"length": 352, "transcripts": 3, "lookups": 2, "trajectories": False}
    asked = (
        "clue_single_w_tool",
        "clue_multi_w_tool",
        "clue_single_wo_tool|clue_multi_wo_tool",
    )
    # Whole conversations in words alone beside them: without, a digit that was read and said is not copied into the answer.
    said = {"lookups": 2, "stated": "turns", "matched": 0.0}
    whole = {"length": 896, "transcripts": 1, "trajectories": True, "asked": asked, **said}
    cell.read = ml_collections.ConfigDict({"steps": 200, **common, "data": {**data, **read}})
    cell.whole = ml_collections.ConfigDict(
        {"steps": 250, **common, "schedule": "cosine", "data": {**data, **whole}}
    )
    return config
