"""A group of rollouts as a tree: the prefix once, and a leaf for each rollout.

The prefix is what all rollouts of a task share, up to one token before the end of the prompt: the prompt's last token predicts n
different first tokens, so every leaf opens with a copy of its own, at the same RoPE position and without loss on itself. Sampled ids
stand as they were sampled; which tokens carry loss was settled where they were sampled (`vo3.chat.encode`, loss "rl").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pallas_kernels.visibility import leaf_starts
from vo3.chat import Encoded, assistant_header, encode
from vo3.data.items import patchify_levels
from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig
from vo3.rollout import Rollout


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of tokens with the pixels it shows.

    Attributes:
      ids: int32 [L].
      positions: int32 [3, L].
      feature_index: int32 [L], -1 or the place among the part's own vision tokens.
      grids: (t, h, w) of its clips, in order.
      patches: grey levels uint8 [P, C] of its clips.
    """

    ids: np.ndarray
    positions: np.ndarray
    feature_index: np.ndarray
    grids: tuple[tuple[int, int, int], ...]
    patches: np.ndarray

    def __len__(self) -> int:
        return self.ids.size


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What one rollout adds to the prefix.

    Attributes:
      part: the prompt's last token and all that follows, up to the last token with loss.
      loss: bool [L], the sampled tokens.
      sampler: f32 [L], their log-probabilities as they were sampled, 0 elsewhere.
      advantage: of the rollout.
      number: of the rollout in its group.
    """

    part: Part
    loss: np.ndarray
    sampler: np.ndarray
    advantage: float
    number: int

    @property
    def trained(self) -> int:
        """Tokens that carry loss."""
        return int(self.loss.sum())


@dataclasses.dataclass(frozen=True)
class Tree:
    """A group, or a part of one, as it stands in a row.

    Attributes:
      name: of the task.
      prefix: shared.
      leaves: those that carry loss.
      sequences: rollouts that it stands for in the denominator, those without loss too.
    """

    name: str
    prefix: Part
    leaves: tuple[Leaf, ...]
    sequences: int

    def starts(self, align: int) -> np.ndarray:
        """Where each leaf begins."""
        return leaf_starts(len(self.prefix), [len(x.part) for x in self.leaves], align=align)

    def length(self, align: int) -> int:
        """Tokens it takes, the padding before leaves included."""
        if not self.leaves:
            return len(self.prefix)
        return int(self.starts(align)[-1]) + len(self.leaves[-1].part)

    def needs(self, align: int) -> Shape:
        """The smallest shape that holds it."""
        parts = [self.prefix, *(leaf.part for leaf in self.leaves)]
        return Shape(
            self.length(align),
            sum(len(part.patches) for part in parts),
            sum(leaf.trained for leaf in self.leaves),
        )


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """Static sizes of a row: tokens, vision patches, and tokens that carry loss."""

    tokens: int
    patches: int
    scored: int

    def holds(self, other: Shape) -> bool:
        """Whether the other fits in."""
        return (
            self.tokens >= other.tokens
            and self.patches >= other.patches
            and self.scored >= other.scored
        )

    def __add__(self, other: Shape) -> Shape:
        return Shape(
            self.tokens + other.tokens, self.patches + other.patches, self.scored + other.scored
        )


def group_tree(
    rollouts: Sequence[Rollout],
    advantages: Sequence[float],
    trained: Sequence[bool],
    tokenizer: Any,
    config: Qwen2_5_VLConfig,
    *,
    sequences: int | None = None,
) -> Tree:
    """The tree of a group.

    Args:
      rollouts: of one task.
      advantages: of each.
      trained: whether it carries loss.
      tokenizer: that the rollouts were made with.
      config: of the model.
      sequences: rollouts that count in the denominator; None: all.

    Raises:
      ValueError: the rollouts do not share their prompt, or a sampled turn lacks ids or log-probabilities.
    """
    name = rollouts[0].trajectory.task.id
    prefix, leaves = None, []
    for number, rollout in enumerate(rollouts):
        if not trained[number]:
            continue
        cut = _cut(rollout, tokenizer, config)
        if prefix is None:
            prefix = cut.prefix
        elif not np.array_equal(prefix.ids, cut.prefix.ids):
            raise ValueError(f"{name}: rollout {number} has another prompt than the ones before it")
        if cut.loss.any():
            leaves.append(Leaf(cut.leaf, cut.loss, cut.sampler, float(advantages[number]), number))
    if prefix is None:  # nothing is trained; the group still counts
        prefix = _cut(rollouts[0], tokenizer, config).prefix
    return Tree(name, prefix, tuple(leaves), len(rollouts) if sequences is None else sequences)


@dataclasses.dataclass(frozen=True)
class _Cut:
    prefix: Part
    leaf: Part
    loss: np.ndarray
    sampler: np.ndarray


def _cut(rollout: Rollout, tokenizer: Any, config: Qwen2_5_VLConfig) -> _Cut:
    turns = rollout.trajectory.turns
    merge = config.vision.spatial_merge_size
    encoded = encode(
        turns, tokenizer, mrope_time=config.mrope_time, loss="rl", spatial_merge_size=merge
    )
    header = len(assistant_header(tokenizer))
    said = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if not said:
        raise ValueError(f"{rollout.trajectory.task.id}: a rollout without a sampled turn")
    prompt = int(encoded.turn_offsets[said[0]]) + header
    sampler = np.zeros(len(encoded), np.float32)
    for i in said:
        turn, start = turns[i], int(encoded.turn_offsets[i]) + header
        if turn.logprobs is None or len(turn.logprobs) != len(turn.ids):
            raise ValueError(
                f"{rollout.trajectory.task.id}: turn {i} has no log-probabilities; keep them when sampling"
            )
        sampler[start : start + len(turn.ids)] = turn.logprobs
    end = int(np.flatnonzero(encoded.loss_mask)[-1]) + 1 if encoded.loss_mask.any() else prompt
    shown = int((encoded.feature_index[: prompt - 1] >= 0).sum())
    unit, width = config.vision.merge_unit, config.vision.patch_dim
    patch = config.vision.patch_size
    levels = [patchify_levels(clip.frames, patch_size=patch) for clip in rollout.clips]
    sizes = [len(x) // unit for x in levels]
    first = int(np.searchsorted(np.cumsum(sizes), shown)) + 1 if shown else 0
    if sum(sizes[:first]) != shown or len(encoded.grids) != len(levels):
        raise ValueError(
            f"{rollout.trajectory.task.id}: {len(levels)} clips do not match the {len(encoded.grids)} that are shown"
        )
    # A clip after the last token with loss need not be encoded.
    seen = encoded.feature_index[prompt - 1 : end]
    last = first + int(np.searchsorted(np.cumsum(sizes[first:]), int((seen >= 0).sum())))
    last += bool((seen >= 0).any())
    return _Cut(
        prefix=_part(encoded, slice(0, prompt - 1), levels[:first], 0, width),
        leaf=_part(encoded, slice(prompt - 1, end), levels[first:last], first, width),
        loss=encoded.loss_mask[prompt - 1 : end],
        sampler=sampler[prompt - 1 : end],
    )


def _part(encoded: Encoded, where: slice, levels: list[np.ndarray], first: int, width: int) -> Part:
    index = encoded.feature_index[where]
    base = int(index[index >= 0].min()) if (index >= 0).any() else 0
    return Part(
        ids=encoded.ids[where],
        positions=encoded.positions[:, where],
        feature_index=np.where(index >= 0, index - base, -1).astype(np.int32),
        grids=encoded.grids[first : first + len(levels)],
        patches=np.concatenate(levels) if levels else np.zeros((0, width), np.uint8),
    )


def split(tree: Tree, shape: Shape, *, align: int) -> list[Tree]:
    """The tree, or parts of it with as many leaves each as a row of `shape` holds.

    Raises:
      ValueError: a leaf with its prefix that the shape does not hold.
    """
    parts: list[Tree] = []
    leaves: list[Leaf] = []
    for leaf in tree.leaves:
        trial = dataclasses.replace(tree, leaves=(*leaves, leaf), sequences=0)
        if leaves and not shape.holds(trial.needs(align)):
            parts.append(dataclasses.replace(tree, leaves=tuple(leaves), sequences=0))
            leaves = []
            trial = dataclasses.replace(tree, leaves=(leaf,), sequences=0)
        if not shape.holds(trial.needs(align)):
            need = trial.needs(align)
            raise ValueError(
                f"{tree.name}: rollout {leaf.number} takes {need.tokens} tokens, {need.patches} patches and {need.scored} trained "
                f"tokens, more than the largest row ({shape.tokens}, {shape.patches}, {shape.scored}); raise the last of "
                "rl.shapes, with which the run may go on"
            )
        leaves.append(leaf)
    parts.append(dataclasses.replace(tree, leaves=tuple(leaves), sequences=0))
    # The whole group counts once in the denominator.
    parts[0] = dataclasses.replace(parts[0], sequences=tree.sequences)
    return parts


def apart(tree: Tree) -> list[Tree]:
    """The tree as trees of one leaf each, every one with the prefix again."""
    return [
        dataclasses.replace(tree, leaves=(leaf,), sequences=tree.sequences if i == 0 else 0)
        for i, leaf in enumerate(tree.leaves)
    ] or [tree]
