"""Trees of rollouts (`vo3.train.group_trees`) in rows of a batch: [prefix | leaf 1 | ... | leaf n], the prefix computed once.

A group that is longer than a row is cut between leaves, and each part has the prefix again; short ones share a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from pallas_kernels.visibility import Visibility
from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig
from vo3.models.qwen2_5_vl.vision import stack_vision_inputs, vision_inputs
from vo3.train.batch import RowBatch
from vo3.train.group_trees import Shape, Tree, split
from vo3.train.policy_loss import Aggregation, Scored, denominator, token_weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyBatch:
    """Rows of trees and the tokens of theirs that carry loss.

    Attributes:
      rows: what the model runs on; `weight` marks the tokens with loss, for people.
      scored: those tokens.
    """

    rows: RowBatch
    scored: Scored


def choose(trees: Sequence[Tree], shapes: Sequence[Shape], *, align: int) -> int:
    """Number of the smallest shape that holds every tree; the largest one where some must be cut."""
    needs = [tree.needs(align) for tree in trees]
    fits = (i for i, shape in enumerate(shapes) if all(shape.holds(need) for need in needs))
    return next(fits, len(shapes) - 1)


def pack(trees: Sequence[Tree], shape: Shape, *, align: int) -> list[list[Tree]]:
    """Deals trees out to rows, each to the first that has room; those that are longer than a row are cut between leaves.

    Args:
      trees: in the order in which they are dealt.
      shape: of a row.
      align: leaves, and trees, begin on multiples of it.

    Raises:
      ValueError: a leaf with its prefix that the shape does not hold.
    """
    rows: list[list[Tree]] = []
    used: list[Shape] = []
    for piece in (piece for tree in trees for piece in split(tree, shape, align=align)):
        size = piece.needs(align)
        place = next((i for i, u in enumerate(used) if shape.holds(u + size)), None)
        if place is None:
            rows.append([])
            used.append(Shape(0, 0, 0))
            place = len(rows) - 1
        rows[place].append(piece)
        whole = Shape(-(-size.tokens // align) * align, size.patches, size.scored)
        used[place] = used[place] + whole
    return rows


def build_rows(
    rows: Sequence[Sequence[Tree]],
    shape: Shape,
    config: Qwen2_5_VLConfig,
    *,
    align: int,
    aggregation: Aggregation,
) -> PolicyBatch:
    """Rows of trees as arrays; a row may be empty.

    Raises:
      ValueError: a row that the shape does not hold.
    """
    vision, count = config.vision, len(rows)
    length, unit = shape.tokens, vision.merge_unit
    ids = np.zeros((count, length), np.int32)
    positions = np.zeros((count, 3, length), np.int32)
    weight = np.zeros((count, length), np.float32)
    index = np.full((count, length), -1, np.int32)
    pixels = np.zeros((count, shape.patches, vision.patch_dim), np.uint8)
    scored = Scored(
        at=np.zeros((count, shape.scored), np.int32),
        targets=np.zeros((count, shape.scored), np.int32),
        leaf=np.full((count, shape.scored), -1, np.int32),
        weight=np.zeros((count, shape.scored), np.float32),
        advantage=np.zeros((count, shape.scored), np.float32),
        sampler=np.zeros((count, shape.scored), np.float32),
        total=np.zeros(count, np.float32),
    )
    seen, inputs = [], []
    for b, row in enumerate(rows):
        start = place = done = number = 0
        fields, grids = [], []
        for tree in row:
            need = tree.needs(align)
            if not shape.holds(Shape(start, place, done) + need):
                raise ValueError(f"row {b} does not fit {shape}: {tree.name} takes {need}")
            begins = [0, *tree.starts(align)]
            parts = [tree.prefix, *(leaf.part for leaf in tree.leaves)]
            for begin, part in zip(begins, parts, strict=True):
                here = slice(start + begin, start + begin + len(part))
                ids[b, here], positions[b, :, here] = part.ids, part.positions
                shown = part.feature_index
                index[b, here] = np.where(shown >= 0, shown + place // unit, -1)
                pixels[b, place : place + len(part.patches)] = part.patches
                place += len(part.patches)
                grids += part.grids
            for begin, leaf in zip(begins[1:], tree.leaves, strict=True):
                first = start + begin
                weight[b, first : first + len(leaf.part)] = leaf.loss
                at = np.flatnonzero(leaf.loss)
                here = slice(done, done + at.size)
                scored.at[b, here] = first + at - 1
                scored.targets[b, here] = leaf.part.ids[at]
                scored.leaf[b, here] = number
                scored.weight[b, here] = token_weights([at.size], aggregation)[0]
                scored.advantage[b, here] = leaf.advantage
                scored.sampler[b, here] = leaf.sampler[at]
                done, number = done + at.size, number + 1
            lengths = [leaf.trained for leaf in tree.leaves]
            scored.total[b] += denominator(lengths, tree.sequences, aggregation)
            size = -(-need.tokens // align) * align
            sizes = [len(leaf.part) for leaf in tree.leaves]
            size = min(size, length - start)
            fields.append(Visibility.tree(len(tree.prefix), sizes, align=align, total=size))
            start += size
        seen.append(Visibility.concat(fields, length) if fields else Visibility.padding(length))
        inputs.append(vision_inputs(grids, vision, pad_patches=shape.patches))
    batch = RowBatch(
        ids=ids,
        positions=positions,
        visibility=jax.tree.map(lambda *xs: np.stack(xs), *seen),
        weight=weight,
        feature_index=index,
        patches=pixels,
        vision=stack_vision_inputs(inputs),
    )
    return PolicyBatch(batch, scored)
