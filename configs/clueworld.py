"""Trains the embedded model, stage by stage; `make clueworld` runs them all.

python -m vo3.clueworld.pretrain --workdir=out/clueworld/vision
python -m vo3.train.sft --config=configs/clueworld.py:letters --workdir=out/clueworld/letters
python -m vo3.train.sft --config=configs/clueworld.py:text --workdir=out/clueworld/text
python -m vo3.train.sft --config=configs/clueworld.py:read --workdir=out/clueworld/read
python -m vo3.train.sft --config=configs/clueworld.py:order --workdir=out/clueworld/order
python -m vo3.train.sft --config=configs/clueworld.py:whole --workdir=out/clueworld/whole
python -m vo3.train.sft --config=configs/clueworld.py:finish --workdir=out/clueworld/finish
python -m vo3.train.sft --config=configs/clueworld.py:polish --workdir=out/clueworld/polish
python -m vo3.train.sft --config=configs/clueworld.py:last --workdir=out/clueworld/last
python -m vo3.train.sft --config=configs/clueworld.py:far --workdir=out/clueworld/far
python -m vo3.clueworld.recipe --workdir=out/clueworld --only=mean
python -m vo3.train.sft --config=configs/clueworld.py:settle --workdir=out/clueworld/settle
python -m vo3.clueworld.recipe --workdir=out/clueworld --only=settled
python -m vo3.train.sft --config=configs/clueworld.py:again --workdir=out/clueworld/again
python -m vo3.clueworld.recipe --workdir=out/clueworld --only=export

`STAGE.VIEW` is the same stage of a one-turn baseline (`vo3.clueworld.scales`): as many steps, worlds and questions, uniform frames for the overview, no clips, other rows' lengths.

python -m vo3.train.sft --config=configs/clueworld.py:whole.middle --workdir=out/middle/whole

`STAGE.VIEW.SEED` draws other parameters and other data.

python -m vo3.train.sft --config=configs/clueworld.py:whole.agent.1 --workdir=out/clueworld-1/whole
"""

import ml_collections

# A question with clips and one without.
_TWO = (
    "clue_single_w_tool|clue_multi_w_tool",
    "clue_single_wo_tool|clue_multi_wo_tool|temporal_grounding",
)
_HARDER = ("clue_single_w_tool|clue_multi_w_tool|clue_multi_w_tool", _TWO[1])
_STATED = {"length": 880, "lookups": 4, "matched": 0.5, "stated": "digits", "asked": _HARDER}
_LETTERED = {
    "length": 1152, "worlds": 10, "lookups": 3, "ordered": 0.1, "matched": 0.3, "stated": "turns", "options_share": 0.85, "asked": _TWO,
}  # fmt: skip
_FAR = {
    "length": 1696,
    "worlds": 6,
    "lookups": 6,
    "ordered": 0.0,
    "matched": 0.7,
    "stated": "sentences",
}
_AGAIN = {"length": 2048, "worlds": 12, "lookups": 8, "matched": 0.9}
_TEXT = {"length": 800, "transcripts": 0, "lookups": 16, "trajectories": False}
# Two questions a world: what is hard is to list the cards of many worlds, and to find one of them.
_MIXED = {"length": 760, "lookups": 3, "ordered": 0.3, "asked": _TWO}
# stage: steps, learning-rate schedule, where the parameters come from, data
_STAGES = {
    # Letters alone: beside sums, what matches an option's text with its letter is not found.
    "letters": (150, "constant", "vision", {"seed": 5, **_TEXT, "matched": 1.0}),
    "text": (250, "constant", "letters", {"seed": 6, **_TEXT, "ordered": 0.3}),
    "read": (
        200,
        "constant",
        "text",
        {"seed": 1, "patches": 2, "length": 480, "transcripts": 8, "trajectories": False},
    ),
    "order": (
        300,
        "constant",
        "read",
        {
            "seed": 2,
            "patches": 10,
            "dense": True,
            "length": 608,
            "transcripts": 5,
            "trajectories": False,
        },
    ),
    "whole": (400, "constant", "order", {"seed": 3, **_MIXED}),
    "finish": (800, "cosine", "whole", {"seed": 4, **_MIXED}),
    # What trajectories show too seldom: two digits of two cards, and first or last.
    "polish": (
        700,
        "cosine",
        "finish",
        {"seed": 7, **_MIXED, **_STATED},
    ),
    # The letter of a digit, far behind its options.
    "last": (300, "cosine", "polish", {"seed": 8, **_LETTERED}),
    # The same in words, denser: it is learned last, and slowest.
    "far": (300, "cosine", "last", {"seed": 9, **_LETTERED, **_FAR}),
    # From the mean of the three before: all that they teach, in larger steps. Then from the mean of where it started and ended, with more letters.
    "settle": (300, "cosine", "mean", {"seed": 10, **_LETTERED, **_FAR, "worlds": 12}),
    "again": (300, "cosine", "settled", {"seed": 11, **_LETTERED, **_FAR, **_AGAIN}),
}
# Learning rates of the matrices, under Muon, and of everything else.
_RATES = {"far": (0.012, 2e-3), "settle": (0.01, 1.5e-3), "again": (0.01, 1.5e-3)}

# Longer rows where a baseline's frames and words need them.
_LENGTHS = {"read": 640, "order": 896, "whole": 960, "finish": 960, "polish": 1040, "last": 1408}
_LENGTHS |= {"far": 2048, "settle": 2048, "again": 2400}
_VIEWS = ("agent", "coarse", "middle", "fine", "coarse-only")


def get_config(stage: str = "letters") -> ml_collections.ConfigDict:
    """`letters` and `text`: options, then sums and lists too, in words alone; `read`: transcripts of two temporal patches; `order`: of the patches that hold cards; `whole` and later: trajectories with all 32. Each from the one before."""
    parts = stage.split(".")
    stage, view, seed = (*parts, *("", "agent", "0")[len(parts) :])
    if stage not in _STAGES:
        raise ValueError(f"unknown stage {stage!r}; one of {list(_STAGES)}")
    if view not in _VIEWS:
        raise ValueError(f"unknown view {view!r}; one of {list(_VIEWS)}")
    if not seed.isdecimal():
        raise ValueError(f"seed {seed!r} is no whole number")
    steps, schedule, before, data = _STAGES[stage]
    config = ml_collections.ConfigDict()
    config.seed = int(seed)
    config.steps = steps
    config.optimizer = "muon"
    config.schedule = schedule
    config.rate, config.adam_rate = _RATES.get(stage, (0.02, 3e-3))
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
        {"worlds": 12, "lookups": 2, "options_share": 0.6, "noise": 5.0, "emphasis": 4.0, **data}
    )
    config.data.seed += 100 * config.seed  # seeds and stages share no world
    if view != "agent":
        config.data.view = view
        config.data.length = _LENGTHS.get(stage, config.data.length)
    return config
