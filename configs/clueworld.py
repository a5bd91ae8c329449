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

`STAGE.VIEW` is the same stage of a one-turn baseline (`vo3.clueworld.scales`): as many steps, worlds and questions, uniform frames for the overview, no clips, rows as long as they need.

python -m vo3.train.sft --config=configs/clueworld.py:whole.middle --workdir=out/clueworld-middle/whole

`STAGE.VIEW.SEED` draws other parameters and other data. Each view and seed starts from its own stages: those in out/clueworld-VIEW-SEED, where `agent` and 0 are left out, unless `--config.init_from` names others.

python -m vo3.train.sft --config=configs/clueworld.py:whole.agent.1 --workdir=out/clueworld-1/whole
"""

import ml_collections

from vo3.clueworld.scales import frozen

# A question with clips and one without.
_TWO = (
    "clue_single_w_tool|clue_multi_w_tool",
    "clue_single_wo_tool|clue_multi_wo_tool|temporal_grounding",
)
_HARDER = ("clue_single_w_tool|clue_multi_w_tool|clue_multi_w_tool", _TWO[1])
_STATED = {"lookups": 4, "matched": 0.5, "stated": "digits", "asked": _HARDER}
_LETTERED = {
    "worlds": 10, "lookups": 3, "ordered": 0.1, "matched": 0.3, "stated": "turns", "options_share": 0.85, "asked": _TWO,
}  # fmt: skip
_FAR = {
    "worlds": 6,
    "lookups": 6,
    "ordered": 0.0,
    "matched": 0.7,
    "stated": "sentences",
}
_AGAIN = {"worlds": 12, "lookups": 8, "matched": 0.9}
_TEXT = {"transcripts": 0, "lookups": 16, "trajectories": False}
# Two questions a world: what is hard is to list the cards of many worlds, and to find one of them.
_MIXED = {"lookups": 3, "ordered": 0.3, "asked": _TWO}
# stage: steps, learning-rate schedule, where the parameters come from, data
_STAGES = {
    # Letters alone: beside sums, what matches an option's text with its letter is not found.
    "letters": (150, "constant", "vision", {"seed": 5, **_TEXT, "matched": 1.0}),
    "text": (250, "constant", "letters", {"seed": 6, **_TEXT, "ordered": 0.3}),
    "read": (
        200,
        "constant",
        "text",
        {"seed": 1, "patches": 2, "transcripts": 8, "trajectories": False},
    ),
    "order": (
        300,
        "constant",
        "read",
        {
            "seed": 2,
            "patches": 10,
            "dense": True,
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

# Tokens of a row, by view and stage: as many as the longest of 700 rows takes, and some more. In a row that takes still more the last texts are left out.
_LENGTHS = {
    "agent": (592, 688, 456, 560, 768, 768, 832, 1104, 1552, 1552, 1840),
    "coarse": (592, 688, 448, 640, 792, 792, 864, 1152, 1568, 1616, 1872),
    "middle": (592, 688, 584, 944, 800, 800, 880, 1168, 1584, 1616, 1888),
    "fine": (592, 688, 760, 1144, 808, 808, 888, 1176, 1592, 1600, 1904),
    "coarse-only": (592, 688, 448, 648, 680, 680, 752, 1040, 1456, 1512, 1768),
}


def get_config(stage: str = "letters") -> ml_collections.ConfigDict:
    """`letters` and `text`: options, then sums and lists too, in words alone; `read`: transcripts of two temporal patches; `order`: of the patches that hold cards; `whole` and later: trajectories with all that the view shows. Each from the one before."""
    parts = stage.split(".")
    stage, view, seed = (*parts, *("", "agent", "0")[len(parts) :])
    if stage not in _STAGES:
        raise ValueError(f"unknown stage {stage!r}; one of {list(_STAGES)}")
    if view not in _LENGTHS:
        raise ValueError(f"unknown view {view!r}; one of {list(_LENGTHS)}")
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
    config.frozen = frozen(view)
    config.scales = ()
    config.log_every = 25
    config.save_every = 200
    first = before == "vision"
    # A run of its own for every view and seed: no stage begins with the parameters of another.
    run = "-".join(
        ["out/clueworld", *([view] if view != "agent" else []), *([seed] if int(seed) else [])]
    )
    config.init_vision = f"{run}/vision/vision.npz" if first else ""
    config.init_from = "" if first else f"{run}/{before}"
    config.data = ml_collections.ConfigDict(
        {"worlds": 12, "lookups": 2, "options_share": 0.6, "noise": 5.0, "emphasis": 4.0, **data}
    )
    config.data.length = _LENGTHS[view][list(_STAGES).index(stage)]
    # Stages share no world with each other, nor with those of other seeds. The vision tower's stream has the plain seed and draws worlds in the
    # same way: that of seed 1 shares them with `read` of seed 0, and so on.
    config.data.seed += 100 * config.seed
    if view != "agent":
        config.data.view = view
    return config
