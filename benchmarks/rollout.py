"""The rollout engine beside transformers + torch on this CPU: `python -m benchmarks.rollout`.

A conversation of four turns with three clips on one video; the model is random and babbles a fixed number of tokens a turn, then a scripted
call is put behind them. The other side does what an agent without a cache across turns does: `generate` on the whole context,
videos included, each turn. Weights, ids, precision (f32) and threads are the same, greedy tokens are checked to be equal. The
runs alternate, so that other load falls on both; medians stand in the table. Compilation is not counted.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.model import CONFIG, Measured, alternate, reference
from vo3.chat import Specials, assistant_header, encode, mrope_positions
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.rollout import Buckets, Engine, Rollout, RolloutPolicy
from vo3.rollout.session import SampledTurn
from vo3.rollout.stops import StopWatch
from vo3.trajectory import Task
from vo3.video import Clip, patchify

TOKENS = 64  # sampled a turn
_TOKENS = {
    "image": "image_pad",
    "video": "video_pad",
    "vision_start": "vision_start",
    "vision_end": "vision_end",
}
TASK = Task("bench", "noise", "Which digit is on the red card?", {"A": "1", "B": "2"})
CALLS = tuple(
    f'<think>look</think>\n<grounding>{{"temporal_segment": [{t}, {t + 9}], "sampling_strategy": "fine"}}</grounding>'
    for t in (3, 17, 40)
)
SCRIPT = (*CALLS, "<think>so</think>\n<answer>A</answer>")


class NoiseVideo:
    """An hour of noise at the embedded model's sizes: overview of 64 frames of 56 x 28, clips of 4 frames of 168 x 84."""

    duration = 3600.0

    def overview(self) -> Clip:
        """64 tokens."""
        return self._clip(0.0, self.duration, (64, 28, 56), 0)

    def crop(self, t0: float, t1: float, strategy: str) -> Clip:
        """36 tokens."""
        return self._clip(t0, t1, (4, 84, 168), int(t0) + 1)

    def _clip(self, start: float, end: float, size: tuple[int, int, int], seed: int) -> Clip:
        frames, height, width = size
        times = np.linspace(start, end, frames)
        grid = (frames // 2, height // 14, width // 14)
        return Clip(
            frames=np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8),
            times=times,
            indices=times.astype(np.int64),
            fps=frames / (end - start),
            start=start,
            end=end,
            grid=grid,
            tokens=grid[0] * grid[1] * grid[2] // 4,
        )


class Babbler(Engine):
    """Samples `tokens` tokens a turn, then says its lines."""

    tokens, script, turn = TOKENS, SCRIPT, 0

    def sample_turn(self, session, watch, sampling, on_token) -> SampledTurn:
        """See `Engine.sample_turn`."""
        quiet = StopWatch(self.tokenizer, tags=("</answer>",), ends=(), limit=self.tokens)
        said = session.sample(quiet, sampling, on_token)
        ids = self.tokenizer(self.script[self.turn], add_special_tokens=False)["input_ids"]
        session.context.append_ids(ids)
        self.turn += 1
        return SampledTurn((*said.ids, *ids), (*said.logprobs, *(0.0,) * len(ids)), "tag")


def converse(engine: Babbler) -> Rollout:
    """One conversation of the engine."""
    engine.turn = 0
    return engine.rollout(TASK, NoiseVideo())


def resend(model, engine: Babbler, rollout: Rollout) -> list[list[int]]:
    """The babbled tokens of every turn, by `generate` on all that precedes it."""
    found = []
    config = engine.model.config
    for number, turn in enumerate(rollout.trajectory.turns):
        if turn.role != "assistant":
            continue
        encoded = encode(rollout.trajectory.turns[:number], engine.tokenizer)
        ids = np.concatenate([encoded.ids, assistant_header(engine.tokenizer)])
        positions = mrope_positions(
            ids,
            encoded.grids,
            image_token_id=config.image_token_id,
            video_token_id=config.video_token_id,
        )
        # The rule of transformers 4.57; later versions have another after a video.
        places = torch.tensor(positions, dtype=torch.long)[:, None]
        delta = torch.tensor([[int(positions.max()) + 1 - len(ids)]])
        model.model.get_rope_index = lambda *_, p=places, d=delta, **__: (p, d)
        clips = rollout.clips[: len(encoded.grids)]
        with torch.no_grad():
            out = model.generate(
                input_ids=torch.tensor(ids, dtype=torch.long)[None],
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values_videos=torch.tensor(
                    np.concatenate([patchify(c.frames)[0] for c in clips])
                ),
                video_grid_thw=torch.tensor([c.grid for c in clips]),
                mm_token_type_ids=torch.tensor(ids == config.video_token_id, dtype=torch.int)[None]
                * 2,
                max_new_tokens=TOKENS,
                do_sample=False,
                pad_token_id=0,
            )
        found.append(out[0, len(ids) :].tolist())
    return found


def measure(repeats: int, threads: int) -> tuple[list[Measured], dict[str, int]]:
    """The comparisons, and the token counts of the first conversation."""
    torch.set_num_threads(threads)
    tokenizer = build_tokenizer()
    ids = {
        f"{name}_token_id": getattr(Specials.of(tokenizer), pad) for name, pad in _TOKENS.items()
    }
    model, theirs = reference(CONFIG.replace(text={"vocab_size": len(tokenizer)}, **ids))
    tables = Buckets(capacity=(1024, 2048))
    options = {"tokenizer": tokenizer, "pack": "clueworld", "buckets": tables}
    policy = RolloutPolicy(max_length=2048)
    engine = Babbler(model, policy=policy, shared_prefixes=0, **options)
    first = converse(engine)
    wanted = [list(t.ids[:TOKENS]) for t in first.trajectory.turns if t.ids is not None]
    if resend(theirs, engine, first) != wanted:
        raise RuntimeError("greedy tokens differ; the comparison would be of two different models")
    compiled = engine.compilations
    results = [
        Measured(
            f"conversation, 4 turns of {TOKENS} tokens, 4 videos",
            *alternate(lambda: converse(engine), lambda: resend(theirs, engine, first), repeats),
            "<= 0.5",
        )
    ]
    sharing = Babbler(model, policy=policy, shared_prefixes=1, programs=engine.programs, **options)
    alone = Babbler(model, policy=policy, shared_prefixes=0, programs=engine.programs, **options)
    for asked in (sharing, alone):
        asked.tokens, asked.script = 1, SCRIPT[-1:]
        converse(asked)
    again = converse(sharing)
    results.append(
        Measured(
            "question to first token, overview shared / not shared",
            *alternate(lambda: converse(sharing), lambda: converse(alone), repeats),
            "< 1",
        )
    )
    counts = dict(first.trajectory.meta["tokens"])
    lengths = [
        len(encode(first.trajectory.turns[:n], tokenizer))
        for n, t in enumerate(first.trajectory.turns)
        if t.role == "assistant"
    ]
    counts |= {
        "resent": sum(lengths),
        "compiled": compiled,
        "shared": again.trajectory.meta["tokens"]["shared"],
    }
    return results, counts


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    results, counts = measure(args.repeats, args.threads)
    table = Table(
        title=f"f32, {args.threads} CPU threads, medians of {args.repeats} alternating runs"
    )
    for column in ("measure", "ours", "other", "ratio", "goal"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for row in results:
        cells = (f"{row.ours * 1e3:.0f} ms", f"{row.theirs * 1e3:.0f} ms", f"{row.ratio:.2f}")
        table.add_row(row.name, *cells, row.goal)
    Console(width=120).print(table)
    print(
        f"tokens prefilled {counts['prefilled']}, unique {counts['context'] - counts['sampled']}, sent by the other side "
        f"{counts['resent']}; shared with the second question {counts['shared']}; programs compiled {counts['compiled']}"
    )


if __name__ == "__main__":
    main()
