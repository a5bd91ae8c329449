"""Which parts of what is right a model predicts, a token ahead, on worlds that nothing is trained on.

    python -m vo3.clueworld.teacher clueworld-sft out/clueworld/read out/clueworld/order

For checkpoints and for runs of the recipe that are half way. Right answers tell late, and the share of tokens that a log has tells little: digits of clips are one token in fifty,
and a model that reads none of them predicts 97 %.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from vo3.clueworld import tasks
from vo3.clueworld.config import model_config
from vo3.clueworld.data import DataConfig, make_stream
from vo3.clueworld.world import COLORS
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.train.batch import Batch
from vo3.train.step import loss_sums

PARTS = {
    "digits": 'after "shows": read off a clip',
    "cards": "the list of cards, in order",
    "times": "the clock where the overview shows a card",
    "letters": "of the option that has just been said",
}
# What `read` shows, and what every stage from `whole` on does; their seed is no stage's.
_COMMON = {"seed": 90_000, "worlds": 4}
STREAMS = {
    "transcripts": DataConfig(
        **_COMMON, patches=2, length=448, transcripts=8, trajectories=False, options_share=0.0
    ),
    "trajectories": DataConfig(**_COMMON, length=1024, transcripts=0),
}


def parts(ids: Int[np.ndarray, "B L"], tokenizer) -> dict[str, Bool[np.ndarray, "B L"]]:
    """Where tokens of each of `PARTS` stand, whoever says them."""
    pieces = np.array(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    said = pieces[ids]
    before, earlier = (np.pad(said, ((0, 0), (n, 0)))[:, : ids.shape[1]] for n in (1, 2))
    named = [f" {color}" for color in COLORS]
    colon = ["-", *(f"{space}{color}:" for color in COLORS for space in ("", " "))]
    number = np.char.isdigit(said)
    return {
        "digits": np.isin(said, [f" {d}" for d in range(10)]) & (before == " shows"),
        # "after red blue" is an answer, not a list.
        "cards": np.isin(said, named)
        & (np.isin(before, ["cards", " cards"]) | (np.isin(before, named) & (earlier != " after"))),
        # Two digits a piece, four at most.
        "times": number & (np.isin(before, colon) | (np.char.isdigit(before) & np.isin(earlier, colon))),
        "letters": np.isin(said, [f"{space}{c}" for c in tasks.LETTERS for space in ("", " ")])
        & (before == ", "),
    }  # fmt: skip


@nnx.jit
def _sums(model: Qwen2_5_VL, batch: Batch):
    return loss_sums(model, batch)


def predicted(model: Qwen2_5_VL, config: DataConfig, *, worlds: int) -> dict[str, tuple[int, int]]:
    """(predicted rightly, tokens) of each of `PARTS` in the rows of so many worlds, or up to `config.worlds` - 1 more."""
    stream = make_stream(config)
    counts = {name: np.zeros(2, int) for name in PARTS}
    for step in range(-(-worlds // config.worlds)):
        batch = stream.batch(step)
        for name, where in parts(batch.ids, stream.tokenizer).items():
            weight = (where & (batch.weight > 0)).astype(np.float32)
            sums = _sums(model, dataclasses.replace(batch, weight=weight))
            counts[name] += int(sums.hits), int(sums.weight)
    return {name: (int(right), int(total)) for name, (right, total) in counts.items()}


def parameters(checkpoint: str) -> Qwen2_5_VL:
    """The embedded model with the weights of a checkpoint, or of the newest of a training run.

    Raises:
      CheckpointError: neither is there, or its words are not ClueWorld's.
    """
    from vo3.models import CheckpointError, load
    from vo3.train import workdir
    from vo3.train.sft import latest_params

    config = model_config()
    if not workdir.steps(checkpoint):
        model = load(checkpoint)
        if (words := model.config.text.vocab_size) != config.text.vocab_size:
            raise CheckpointError(
                f"its vocabulary has {words} pieces, ClueWorld's {config.text.vocab_size}; give it a checkpoint that was trained on ClueWorld"
            )
        return model
    model = Qwen2_5_VL(config, rngs=nnx.Rngs(0))
    nnx.update(model, latest_params(model, checkpoint))
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a Markdown table."""
    from vo3.models import CheckpointError

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", nargs="+", help="checkpoints, or folders of training runs")
    parser.add_argument("--worlds", type=int, default=32)
    args = parser.parse_args(argv)
    if args.worlds < 1:
        raise SystemExit(f"teacher: --worlds is {args.worlds}; at least 1")
    columns = []
    for checkpoint in args.checkpoints:
        try:
            model = parameters(checkpoint)
        except CheckpointError as error:
            raise SystemExit(f"teacher: {checkpoint}: {error}") from error
        columns.append([predicted(model, one, worlds=args.worlds) for one in STREAMS.values()])
    print("| | " + " | ".join(args.checkpoints) + " |")
    print("| --- |" + " --- |" * len(columns))
    for i, stream in enumerate(STREAMS):
        for part, meaning in PARTS.items():
            counts = [column[i][part] for column in columns]
            if any(total for _, total in counts):
                cells = " | ".join(f"{right} of {total}" for right, total in counts)
                print(f"| {stream}: {part}, {meaning} | {cells} |")


if __name__ == "__main__":
    main()
