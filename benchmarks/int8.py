"""What int8 weights do to the embedded model's logits: `python -m benchmarks.int8`.

On what conversations should say, from the question to the answer: root mean square of the difference to f32 over the logits' standard deviation, its
largest value, and the share of tokens whose likeliest successor stays. Accuracy is measured by two evaluations and `vo3 compare`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from rich.console import Console
from rich.table import Table

KINDS = {
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "int8, bfloat16": {"quantize": "int8", "dtype": "bfloat16"},
}


def conversations(model, seeds: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray, dict]]:
    """Ids, the places before tokens that are the assistant's, and media of a true conversation in each world."""
    from vo3.chat import encode
    from vo3.clueworld import tasks, trajectories
    from vo3.clueworld.views import render
    from vo3.clueworld.world import make_world
    from vo3.video import patchify

    found = []
    for seed in seeds:
        world, rng = make_world(seed), np.random.default_rng(seed)
        question = tasks.KINDS["sum"](world, rng)
        task = tasks.make_task(world, question, video="", task_id="", rng=rng, options=True)
        said = trajectories.make_trajectory(
            world, question, task, pack=model.prompt_pack, policy=model.crop_policy
        )
        encoded = encode(list(said.turns), model.tokenizer)
        shown = [patchify(render(world, clip, scale=1)) for clip in said.observations]
        media = {"patches": np.concatenate([p for p, _ in shown]), "grids": [g for _, g in shown]}
        found.append((encoded.ids, np.flatnonzero(encoded.loss_mask) - 1, media))
    return found


def logits(model, said: Sequence[tuple[np.ndarray, np.ndarray, dict]]) -> np.ndarray:
    """Logits [tokens, V] at the places of all conversations."""
    import vo3.models

    return np.concatenate(
        [np.asarray(vo3.models.run(model, ids, **media))[at] for ids, at, media in said]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", type=int, default=4, help="held-out ones, a conversation each")
    parser.add_argument("--checkpoint", default="clueworld", help="that knows ClueWorld")
    args = parser.parse_args(argv)
    import vo3.models

    exact = vo3.models.load(args.checkpoint, dtype="float32")
    said = conversations(exact, range(2031, 2031 + args.worlds))
    before = logits(exact, said)
    table = Table(title=f"{len(before)} tokens of {args.worlds} conversations, against float32")
    for name in ("weights", "rms / std", "largest", "same likeliest"):
        table.add_column(name, justify="left" if name == "weights" else "right")
    for name, how in KINDS.items():
        after = logits(vo3.models.load(args.checkpoint, **how), said)
        wrong = np.sqrt(np.mean((after - before) ** 2)) / before.std()
        same = np.mean(after.argmax(-1) == before.argmax(-1))
        table.add_row(name, f"{wrong:.2%}", f"{np.abs(after - before).max():.2f}", f"{same:.2%}")
    Console().print(table)


if __name__ == "__main__":
    main()
