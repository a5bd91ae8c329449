"""Our model beside transformers + torch on this CPU: `python -m benchmarks.model`.

The same weights, batch, threads and precision (f32). The runs of both sides alternate, so that other load on the machine falls on both;
medians stand in the table. Compilation is not counted. The train step is forward, backward and AdamW on whole conversations with videos;
generation is prefill with four clips, then greedy tokens one at a time, each handed to the host as a streaming caller wants it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from rich.console import Console
from rich.table import Table

import vo3.models
from pallas_kernels import Visibility
from vo3.chat.positions import mrope_positions
from vo3.models.qwen2_5_vl import (
    Qwen2_5_VL,
    Qwen2_5_VLConfig,
    stack_vision_inputs,
    vision_inputs,
)
from vo3.rollout.programs import Programs
from vo3.rollout.sampler import Drawn, Knobs, Sampling

# The embedded model's size: vision 3 blocks of 96, decoder 4 layers of 128.
CONFIG = Qwen2_5_VLConfig.tiny(
    128,
    text={
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "mrope_section": (4, 6, 6),
        "initializer_range": 0.05,
    },
    vision={
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 256,
        "out_hidden_size": 128,
        "fullatt_block_indexes": (2,),
        "initializer_range": 0.05,
    },
    scan_unroll=4,
)
OVERVIEW, CLIP = (32, 2, 4), (2, 6, 12)
RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Rows:
    """A batch of equal conversations: overview, then clips, with text between."""

    ids: np.ndarray
    positions: np.ndarray
    grids: list[tuple[int, int, int]]
    patches: np.ndarray
    index: np.ndarray


def make_rows(grids: list[tuple[int, int, int]], *, rows: int, text: int) -> Rows:
    """`rows` conversations that show `grids`, with `text` random tokens around each."""
    rng = np.random.default_rng(0)
    ids = []
    for _ in range(rows):
        row = [rng.integers(0, 120, text)]
        for t, h, w in grids:
            row += [[CONFIG.vision_start_token_id], [CONFIG.video_token_id] * (t * h * w // 4)]
            row += [[CONFIG.vision_end_token_id], rng.integers(0, 120, text)]
        ids.append(np.concatenate(row))
    ids = np.stack(ids).astype(np.int32)
    positions = mrope_positions(
        ids[0],
        grids,
        image_token_id=CONFIG.image_token_id,
        video_token_id=CONFIG.video_token_id,
        vision_start_token_id=CONFIG.vision_start_token_id,
    )
    patches = rng.normal(size=(rows, sum(t * h * w for t, h, w in grids), 1176)).astype(np.float32)
    pads = ids == CONFIG.video_token_id
    index = np.where(pads, np.cumsum(pads.reshape(-1)).reshape(ids.shape) - 1, -1).astype(np.int32)
    return Rows(ids, np.tile(positions[:, None], (1, rows, 1)), grids * rows, patches, index)


# ---------------------------------------------------------------- train step


def our_train(model: Qwen2_5_VL, rows: Rows) -> Callable[[], float]:
    graph, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)
    optimizer = optax.adamw(RATE, weight_decay=0.01)
    per_row = rows.grids[: len(rows.grids) // len(rows.ids)]
    # No attention crosses frames, so every temporal patch may be a row: attention is never larger than a frame.
    kinds = [g for g in dict.fromkeys(per_row)]
    sizes = [t * h * w for t, h, w in per_row]
    parts = np.split(rows.patches, np.cumsum(sizes)[:-1], axis=1)
    inputs, pixels, order = [], [], []
    start = 0
    for kind in kinds:
        t, h, w = kind
        mine = [i for i, g in enumerate(per_row) if g == kind]
        stacked = np.stack([parts[i] for i in mine], axis=1).reshape(-1, h * w, 1176)
        pixels.append(stacked)
        inputs.append(
            stack_vision_inputs([vision_inputs([(1, h, w)], CONFIG.vision)] * len(stacked))
        )
        tokens = t * h * w // 4
        for b in range(len(rows.ids)):
            for n, i in enumerate(mine):
                order.append((b, i, start + (b * len(mine) + n) * tokens, tokens))
        start += len(stacked) * h * w // 4
    flat = np.concatenate([np.arange(s, s + n) for _, _, s, n in sorted(order)])
    index = np.where(rows.index >= 0, flat[np.maximum(rows.index, 0)], -1).astype(np.int32)
    visibility = jax.tree.map(
        lambda f: np.tile(f, (len(rows.ids), 1)), Visibility.causal(rows.ids.shape[1])
    )
    batch = jax.tree.map(jnp.asarray, (pixels, inputs, rows.ids, rows.positions, visibility, index))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        pixels, inputs, ids, positions, visibility, index = batch

        def loss(params):
            built = nnx.merge(graph, params)
            features = [
                built.encode_vision(p, i).reshape(-1, CONFIG.text.hidden_size)
                for p, i in zip(pixels, inputs, strict=True)
            ]
            out = built(
                ids,
                positions,
                visibility,
                features=jnp.concatenate(features),
                feature_index=index,
            )
            picked = optax.softmax_cross_entropy_with_integer_labels(out.logits[:, :-1], ids[:, 1:])
            return jnp.mean(picked)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    kept = [params, optimizer.init(params)]

    def run() -> float:
        kept[0], kept[1], loss = step(kept[0], kept[1], batch)
        return float(loss)

    return run


def their_train(model, rows: Rows) -> Callable[[], float]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    ids = torch.tensor(rows.ids).long()
    positions = torch.tensor(rows.positions).long()
    pixels = torch.tensor(rows.patches.reshape(-1, 1176))
    grids = torch.tensor(rows.grids)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(
            input_ids=ids, position_ids=positions, pixel_values_videos=pixels, video_grid_thw=grids
        ).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
        )
        loss.backward()
        optimizer.step()
        return float(loss)

    return run


# ---------------------------------------------------------------- generation


def our_generate(model: Qwen2_5_VL, rows: Rows, tokens: int) -> Callable[[], list[int]]:
    """The rollout engine's programs in the order in which its sessions call them."""
    programs = Programs(model)
    length = rows.ids.shape[1]
    capacity = -(-(length + tokens) // 64) * 64
    inputs = vision_inputs(rows.grids, CONFIG.vision)
    one = np.ones(1, np.int32)
    first = Drawn(
        token=one,
        logprob=one.astype(np.float32),
        position=one * (int(rows.positions.max()) + 1),
        count=one - 1,
        seed=one.astype(np.uint32),
        active=one > 0,
    )
    knobs = Knobs.of(Sampling())
    own = np.where(rows.index >= 0, np.arange(length, dtype=np.int32), np.int32(-1))

    def run() -> list[int]:
        features = programs.encode(rows.patches[0], inputs)
        shown = programs.place(programs.blank(length), features, rows.index[0])
        cache, logits = programs.prefill(
            programs.empty(1, capacity), rows.ids, rows.positions, one * length, shown, own
        )
        drawn = programs.start(logits, first, knobs, method="greedy")
        out: list[int] = []
        while len(out) < tokens:
            cache, following = programs.decode(cache, drawn, knobs, method="greedy")
            out.append(int(np.asarray(drawn.token)[0]))
            drawn = following
        return out

    return run


def their_generate(model, rows: Rows, tokens: int) -> Callable[[], list[int]]:
    model.eval()
    ids = torch.tensor(rows.ids).long()
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == CONFIG.video_token_id).int() * 2,
        "pixel_values_videos": torch.tensor(rows.patches[0]),
        "video_grid_thw": torch.tensor(rows.grids),
    }

    def run() -> list[int]:
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, use_cache=True)
        return out[0, ids.shape[1] :].tolist()

    return run


# ---------------------------------------------------------------- the table


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds a run, ours and theirs."""

    name: str
    ours: float
    theirs: float
    goal: str

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours / self.theirs


def alternate(ours: Callable, theirs: Callable, repeats: int) -> tuple[float, float]:
    """Median seconds of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for kept, run in zip(times, (ours, theirs), strict=True):
            start = time.perf_counter()
            run()
            kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def reference(config: Qwen2_5_VLConfig = CONFIG) -> tuple[Qwen2_5_VL, object]:
    """The same random weights on both sides, through a Hugging Face directory."""
    # A torchvision built for another torch lacks these operators; transformers imports it where it is installed.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    reference.library = library
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        Qwen2_5_VL(config, rngs=nnx.Rngs(0)).save_hf(folder)
        ours = vo3.models.load(folder, scan_unroll=config.scan_unroll)
        theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    # Without an end token both sides produce exactly as many tokens as asked.
    theirs.generation_config.eos_token_id = None
    return ours, theirs


def measure(repeats: int, threads: int) -> list[Measured]:
    """Both comparisons; checks first that both sides compute the same."""
    torch.set_num_threads(threads)
    model, theirs_model = reference()
    prompt, tokens = make_rows([CLIP] * 4, rows=1, text=40), 64
    ours, theirs = our_generate(model, prompt, tokens), their_generate(theirs_model, prompt, tokens)
    if ours() != theirs():
        raise RuntimeError("greedy tokens differ; the comparison would be of two different models")
    results = [
        Measured(
            f"generate {tokens} tokens, prompt {prompt.ids.shape[1]}",
            *alternate(ours, theirs, repeats),
            "<= 0.5",
        )
    ]

    batch = make_rows([OVERVIEW, CLIP, CLIP, CLIP], rows=8, text=40)
    ours, theirs = our_train(model, batch), their_train(theirs_model, batch)
    losses = [(ours(), theirs()) for _ in range(3)]
    if any(abs(a - b) > 1e-3 for a, b in losses):
        raise RuntimeError(f"losses differ: {losses}")
    shape = f"{batch.ids.shape[0]} x {batch.ids.shape[1]} tokens, {len(batch.grids)} videos"
    results.append(Measured(f"train step, {shape}", *alternate(ours, theirs, repeats), "<= 1.0"))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    table = Table(
        title=f"f32, {args.threads} CPU threads, medians of {args.repeats} alternating runs"
    )
    for column in ("measure", "ours", "transformers + torch", "ratio", "goal"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for row in measure(args.repeats, args.threads):
        cells = (f"{row.ours * 1e3:.0f} ms", f"{row.theirs * 1e3:.0f} ms", f"{row.ratio:.2f}")
        table.add_row(row.name, *cells, row.goal)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
