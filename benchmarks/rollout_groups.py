"""Groups of rollouts beside the same model without a shared prefix: `python -m benchmarks.rollout_groups`.

* One decoding step of 8 leaves behind a prefix of 8,192 tokens: one prefix for all of them, against the same program with 8 groups of one leaf,
  each with a prefix of its own, and against the engine of one conversation with 8 rows.
* Tokens that go through the model for a group of 8 conversations of 4 turns, against an engine that sends the context anew each turn.
* How long nothing was given to the device as all leaves waited for clips, while clips take their time.

The model is random, in f32; runs alternate, so that other load falls on both; medians stand in the table. Compilation is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import unittest.mock
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from vo3.chat import Specials, encode
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from vo3.rollout import GroupBuckets, GroupEngine, GroupRollout, RolloutPolicy, Sampling
from vo3.rollout.chunk import Lengths
from vo3.rollout.group_programs import GroupPrograms
from vo3.rollout.leaf import Leaf
from vo3.rollout.programs import Programs
from vo3.rollout.sampler import Drawn, Knobs
from vo3.rollout.stops import SampledTurn
from vo3.trajectory import Task
from vo3.video import Clip

PREFIX, SUFFIX, LEAVES = 8192, 256, 8
TASK = Task("bench", "noise", "Which digit is on the red card?", {"A": "1", "B": "2"})
TURNS = (
    *(
        f'<think>look</think>\n<grounding>{{"temporal_segment": [{t}, {t + 9}], "sampling_strategy": "fine"}}</grounding>'
        for t in (3, 17, 40)
    ),
    "<think>so</think>\n<answer>A</answer><|im_end|>",
)
BABBLE = 32


def small_model() -> tuple[Qwen2_5_VL, object]:
    """Four layers of 128, and the embedded world's tokenizer."""
    tokenizer = build_tokenizer()
    special = Specials.of(tokenizer)
    config = Qwen2_5_VLConfig.tiny(
        len(tokenizer),
        text={
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "mrope_section": (4, 6, 6),
        },
        vision={"out_hidden_size": 128},
        image_token_id=special.image_pad,
        video_token_id=special.video_pad,
        vision_start_token_id=special.vision_start,
        vision_end_token_id=special.vision_end,
    )
    return Qwen2_5_VL(config, rngs=nnx.Rngs(0)), tokenizer


class Step:
    """A decoding step of 8 leaves in `groups` groups, again and again from the same lengths."""

    def __init__(self, model: Qwen2_5_VL, groups: int):
        leaves = LEAVES // groups
        self.programs = GroupPrograms(model, groups=groups, leaves=leaves)
        self.state = self.programs.empty(PREFIX, SUFFIX, 4)
        shape = (groups, leaves)
        self.lengths = Lengths(
            np.full(groups, PREFIX, np.int32),
            np.full(shape, SUFFIX // 2, np.int32),
            np.ones(shape, bool),
        )
        self.knobs = jax.tree.map(np.asarray, Knobs.of(Sampling(temperature=1.0)))

    def __call__(self) -> None:
        """Four steps, and the wait for the last."""
        state = self.state
        for _ in range(4):
            state.suffix, state.drawn = self.programs.decode(
                state.prefix, state.suffix, state.drawn, self.lengths, self.knobs, method="plain"
            )
        jax.block_until_ready(state.drawn)


class Rows:
    """The same step as 8 rows of the engine of one conversation."""

    def __init__(self, model: Qwen2_5_VL):
        self.programs = Programs(model)
        cache = self.programs.empty(LEAVES, PREFIX + SUFFIX)
        ids = np.zeros((LEAVES, 512), np.int32)
        places = np.zeros((3, LEAVES, 512), np.int32)
        full = np.full(LEAVES, 512, np.int32)
        for _ in range(PREFIX // 512):
            cache, _ = self.programs.prefill(
                cache, ids, places, full, self.programs.blank(512), ids - 1
            )
        self.cache = cache
        one = np.ones(LEAVES, np.int32)
        self.drawn = Drawn(one, one.astype(np.float32), one, one, one.astype(np.uint32), one > 0)

    def __call__(self) -> None:
        """Four steps, and the wait for the last."""
        knobs = Knobs.of(Sampling(temperature=1.0))
        for _ in range(4):
            self.cache, drawn = self.programs.decode(self.cache, self.drawn, knobs, method="plain")
        jax.block_until_ready(drawn)


class NoiseVideo:
    """An hour of noise: overview of 64 frames of 56 x 28, clips of 4 frames of 168 x 84 that take `seconds` to read."""

    duration = 3600.0

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds

    def overview(self) -> Clip:
        """64 tokens."""
        return self._clip(0.0, self.duration, (64, 28, 56), 0)

    def crop(self, t0: float, t1: float, strategy: str) -> Clip:
        """36 tokens."""
        time.sleep(self.seconds)
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


def talk(
    model: Qwen2_5_VL, tokenizer, groups: int, *, seconds: float = 0.0, lanes: int = 1
) -> tuple[GroupEngine, list[GroupRollout], float]:
    """Groups of 8 conversations that babble, then say their lines; and the seconds that the second time took."""

    class Babbler(Leaf):
        """Samples `BABBLE` tokens a turn, then says its line."""

        turn = 0

        def token(self, token: int, logprob: float) -> None:
            self._ids.append(token)
            self._logprobs.append(logprob)
            # Leaves of unequal length, so that they do not all call at once.
            if len(self._ids) < BABBLE + self.sampling.seed % 8:
                return
            line = tokenizer(TURNS[self.turn], add_special_tokens=False)["input_ids"]
            self.turn += 1
            stop = "tag" if self.turn < len(TURNS) else "end"
            turn = SampledTurn((*self._ids, *line), (*self._logprobs, *(0.0,) * len(line)), stop)
            self.said(turn, len(self._ids))

    engine = GroupEngine(
        model,
        tokenizer=tokenizer,
        pack="clueworld",
        policy=RolloutPolicy(mode="rl", max_length=2048, reserve=64),
        buckets=GroupBuckets(
            tokens=(64, 256, 512), patches=(256,), prefix=(512,), suffix=(512, 1024)
        ),
        slots=2,
        lanes=lanes,
        rollouts=LEAVES,
    )
    tasks = [TASK] * groups
    with unittest.mock.patch("vo3.rollout.group.Leaf", Babbler):
        list(engine.run(tasks, lambda task: NoiseVideo(0.0)))
        engine.counts = type(engine.counts)()
        began = time.perf_counter()
        done = list(engine.run(tasks, lambda task: NoiseVideo(seconds)))
    return engine, done, time.perf_counter() - began


def alternate(ours: Callable, theirs: Callable, repeats: int) -> tuple[float, float]:
    """Median seconds of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for kept, run in zip(times, (ours, theirs), strict=True):
            began = time.perf_counter()
            run()
            kept.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def tokens(done: list[GroupRollout], tokenizer) -> tuple[int, int]:
    """(unique, sent anew): tokens that are not sampled, and what an engine without a cache across turns sends in all."""
    unique = sent = 0
    for group in done:
        for number, rollout in enumerate(group.rollouts):
            counts, turns = rollout.trajectory.meta["tokens"], rollout.trajectory.turns
            last = len(tokenizer(TURNS[-1], add_special_tokens=False)["input_ids"])
            own = counts["context"] - counts["sampled"] - last
            unique += own if number == 0 else own - counts["shared"]
            sent += sum(
                len(encode(turns[:at], tokenizer))
                for at, turn in enumerate(turns)
                if turn.role == "assistant"
            )
    return unique, sent


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    model, tokenizer = small_model()
    table = Table(title=f"f32, CPU, medians of {args.repeats} alternating runs")
    for column in ("measure", "ours", "other", "ratio", "goal"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    shared, apart, rows = Step(model, 1), Step(model, LEAVES), Rows(model)
    for body in (shared, apart, rows):
        body()
    step = f"decoding step, {LEAVES} leaves, prefix {PREFIX}"
    for name, other in (("a prefix each", apart), ("8 rows of the single engine", rows)):
        ours, theirs = (x / 4 for x in alternate(shared, other, args.repeats))
        cells = (f"{ours * 1e3:.1f} ms", f"{theirs * 1e3:.1f} ms", f"{theirs / ours:.1f}x")
        table.add_row(f"{step} / {name}", *cells, ">= 3x")
    engine, done, _ = talk(model, tokenizer, 2)
    unique, sent = tokens(done, tokenizer)
    count = engine.counts.prefilled
    name = f"tokens prefilled, 2 groups of {LEAVES} x {len(TURNS)} turns"
    table.add_row(f"{name} / unique", str(count), str(unique), f"{count / unique:.3f}", "<= 1.02")
    table.add_row(f"{name} / sent anew each turn", str(count), str(sent), f"{count / sent:.3f}", "")
    for lanes in (1, 2):
        engine, _, seconds = talk(model, tokenizer, 4, seconds=0.1, lanes=lanes)
        waited = engine.counts.waited_s
        label = (
            f"4 groups, clips of 0.1 s, {lanes} lane{'s' * (lanes > 1)}: device without work / all"
        )
        table.add_row(
            label, f"{waited * 1e3:.0f} ms", f"{seconds * 1e3:.0f} ms", f"{waited / seconds:.2f}", "<= 0.15"
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
