"""Random documents with media and a tiny model, packed by hand: what the invariance tests of the trainer run on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from pallas_kernels.visibility import CLIP, OVERVIEW, Visibility
from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig, stack_vision_inputs, vision_inputs
from vo3.train.batch import RowBatch
from vo3.train.config import defaults, override
from vo3.train.sharding import make_mesh
from vo3.train.state import Trainable, initial_params, trainable

MODEL = Qwen2_5_VLConfig.tiny(
    text={"num_hidden_layers": 2, "initializer_range": 0.1},
    vision={"depth": 2, "initializer_range": 0.1},
)


@dataclasses.dataclass(frozen=True)
class Document:
    """Text, an overview, text, a clip, text; the last text carries loss and hides the overview."""

    ids: np.ndarray
    weight: np.ndarray
    kind: np.ndarray
    hide: np.ndarray
    grids: tuple[tuple[int, int, int], ...]
    patches: np.ndarray


@functools.cache
def document(seed: int, text: int = 7) -> Document:
    rng = np.random.default_rng(seed)
    grids = ((2, 2, 4), (1, 4, 4))
    ids, kind = [rng.integers(0, 250, text)], [np.zeros(text)]
    for grid, bit in zip(grids, (OVERVIEW, CLIP), strict=True):
        tokens = int(np.prod(grid)) // 4
        ids += [np.full(tokens, MODEL.video_token_id), rng.integers(0, 250, text)]
        kind += [np.full(tokens, bit), np.zeros(text)]
    ids, kind = np.concatenate(ids).astype(np.int32), np.concatenate(kind).astype(np.int32)
    last = np.arange(ids.size) >= ids.size - text
    patches = rng.integers(0, 256, (sum(map(np.prod, grids)), MODEL.vision.patch_dim))
    return Document(
        ids=ids,
        weight=last * rng.uniform(0.5, 2.0, ids.size).astype(np.float32),
        kind=kind,
        hide=np.where(last, OVERVIEW, 0).astype(np.int32),
        grids=grids,
        patches=patches.astype(np.uint8),
    )


def rows(packs: Sequence[Sequence[Document]], *, length: int, patches: int) -> RowBatch:
    """Documents in rows, padded; what stands in the padding must not matter and is not zero."""
    count = len(packs)
    ids = np.full((count, length), 3, np.int32)
    positions = np.full((count, 3, length), 5, np.int32)
    segments = np.full((count, length), -1, np.int32)
    kind, hide = np.zeros((count, length), np.int32), np.zeros((count, length), np.int32)
    weight = np.zeros((count, length), np.float32)
    index = np.full((count, length), -1, np.int32)
    pixels = np.full((count, patches, MODEL.vision.patch_dim), 77, np.uint8)
    for b, pack in enumerate(packs):
        start = place = 0
        for number, doc in enumerate(pack):
            here = slice(start, start + doc.ids.size)
            ids[b, here], weight[b, here] = doc.ids, doc.weight
            positions[b, :, here] = np.arange(doc.ids.size)
            segments[b, here], kind[b, here], hide[b, here] = number, doc.kind, doc.hide
            shown = doc.ids == MODEL.video_token_id
            index[b, here] = np.where(shown, np.cumsum(shown) - 1 + place // 4, -1)
            pixels[b, place : place + len(doc.patches)] = doc.patches
            start, place = here.stop, place + len(doc.patches)
    grids = [[g for doc in pack for g in doc.grids] for pack in packs]
    return RowBatch(
        ids=ids,
        positions=positions,
        visibility=Visibility.segments(segments).with_kinds(kind, hide),
        weight=weight,
        feature_index=index,
        patches=pixels,
        vision=stack_vision_inputs(
            [vision_inputs(g, MODEL.vision, pad_patches=patches) for g in grids]
        ),
    )


TOKENS, PATCHES = document(0).ids.size, len(document(0).patches)


def config(**changes):
    """A run of the tiny model; keys as for `override`."""
    base = {
        "steps": 20,
        "init_from": "random",
        "dtype": "float32",
        "remat": "none",
        "frozen": (),
        "optim.rate": 1e-2,
        "optim.warmup": 0.0,
        "optim.schedule": "constant",
        "loss.chunk": 16,
        "data.rows": "none",
        "checkpoint.export_hf": False,
        "log.tensorboard": False,
        "log.samples_every": 0,
        **{f"mesh.{axis}": 1 for axis in ("dcn_data", "data", "fsdp", "tensor", "context")},
    }
    return override(defaults(), **{**base, **changes})


def layout(devices: int = 1, **changes) -> Trainable:
    """The tiny model on the first `devices` devices."""
    chosen = config(**changes)
    return trainable(chosen, make_mesh(chosen, jax.devices()[:devices]), model=MODEL)


def fresh(run: Trainable):
    """(state, frozen) of a new run."""
    trained, frozen = run.split(initial_params(run))
    make = jax.jit(run.new_state, out_shardings=jax.tree.map(lambda x: x.sharding, run.state))
    return make(trained), frozen


def assert_close(a: dict, b: dict, *, relative: float = 1e-5) -> None:
    """Every array of `a` lies within `relative` of that of `b`, in the Euclidean norm."""
    assert set(a) == set(b)
    whole = np.sqrt(sum(float(np.sum(np.square(np.asarray(x, np.float64)))) for x in b.values()))
    for name in b:
        x, y = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
        # A gradient that is zero in exact arithmetic is rounding noise of the others.
        scale = max(np.linalg.norm(y), 1e-3 * whole)
        assert np.linalg.norm(x - y) <= relative * scale, (name, np.linalg.norm(x - y) / scale)
