"""Packed rows: trajectories one after the other, tokens and patches padded to the shape of their step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from pallas_kernels.visibility import Visibility
from vo3.data.failures import Failure
from vo3.data.feature_cache import FeatureSpec
from vo3.data.items import Item
from vo3.models.qwen2_5_vl.config import VisionConfig
from vo3.models.qwen2_5_vl.vision import VisionInputs, stack_vision_inputs, vision_inputs
from vo3.trajectory import Observation


@dataclasses.dataclass(frozen=True)
class MissingFeatures:
    """A clip of a row whose features were not in the cache.

    Attributes:
      key: of the clip.
      row, start: where its first feature stands: [row, start] of the features.
      observation: of the clip.
      patches: grey levels uint8 [P, C].
    """

    key: str | None
    row: int
    start: int
    observation: Observation
    patches: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one shape. B rows, L tokens and P patches each; M = P / (patches per token).

    Attributes:
      ids: int32 [B, L] token ids, 0 in the padding.
      positions: int32 [B, 3, L] M-RoPE positions, each trajectory from 0.
      visibility: fields [B, L]; trajectories do not see each other. `hide` is that of the masking policy.
      weight: f32 [B, L] loss weight of each token as a target; 0 for no loss.
      roles: int8 [B, L] `vo3.chat.Role` of each token.
      segments: int32 [B, L] number of the trajectory in its row; -1 in the padding.
      feature_index: int32 [B, L] -1, or the place among the row's own vision tokens.
      patches: uint8 [B, P, C] grey levels, zeros in the padding; None where `features` are.
      vision: the tower's inputs, fields with the row axis first; None where `features` are.
      features: [B, M, W] from the feature cache, zeros in the padding and where `missing` says.
      missing: clips whose features are to be computed.
      numbers: of the trajectories of each row.
    """

    ids: np.ndarray
    positions: np.ndarray
    visibility: Visibility
    weight: np.ndarray
    roles: np.ndarray
    segments: np.ndarray
    feature_index: np.ndarray
    patches: np.ndarray | None
    vision: VisionInputs | None
    features: np.ndarray | None
    missing: tuple[MissingFeatures, ...]
    numbers: tuple[tuple[int, ...], ...]


def fit(
    items: Sequence[Item], *, step: int, length: int, patches: int
) -> tuple[list[Item], list[Failure]]:
    """The items that fit into a row, in order; those that do not are failures.

    A plan never overfills a row, but a video may have been replaced since its length was measured.
    """
    kept: list[Item] = []
    failures = []
    tokens_left, patches_left = length, patches
    for item in items:
        if len(item.encoded) > tokens_left or item.patches > patches_left:
            message = (
                f"{len(item.encoded)} tokens and {item.patches} patches do not fit the {tokens_left} and {patches_left} "
                "left in its row: a video or the tokenizer is not what the lengths were measured with; measure them again"
            )
            failures.append(Failure(step, item.number, item.id, "", "length", message))
            continue
        kept.append(item)
        tokens_left -= len(item.encoded)
        patches_left -= item.patches
    return kept, failures


def pack_rows(
    rows: Sequence[Sequence[Item]],
    *,
    length: int,
    patches: int,
    vision: VisionConfig,
    features: FeatureSpec | None = None,
) -> Rows:
    """Rows of items, padded.

    Args:
      rows: items of each row; a row may be empty.
      length: tokens of a row.
      patches: vision patches of a row.
      vision: of the tower.
      features: give it to get vision features in place of patches.

    Raises:
      ValueError: a row that does not fit.
    """
    count, unit = len(rows), vision.merge_unit
    out = Rows(
        ids=np.zeros((count, length), np.int32),
        positions=np.zeros((count, 3, length), np.int32),
        # Copies: the fields of padding share memory.
        visibility=jax.tree.map(np.copy, Visibility.padding(count, length)),
        weight=np.zeros((count, length), np.float32),
        roles=np.zeros((count, length), np.int8),
        segments=np.full((count, length), -1, np.int32),
        feature_index=np.full((count, length), -1, np.int32),
        patches=None if features else np.zeros((count, patches, vision.patch_dim), np.uint8),
        vision=None,
        features=np.zeros((count, patches // unit, features.width), features.dtype)
        if features
        else None,
        missing=(),
        numbers=tuple(tuple(item.number for item in row) for row in rows),
    )
    missing: list[MissingFeatures] = []
    inputs = []
    for b, row in enumerate(rows):
        start = place = walk = 0
        for segment, item in enumerate(row):
            e = item.encoded
            stop = start + len(e)
            if stop > length or (place + item.patches) > patches:
                raise ValueError(
                    f"row {b} holds {stop} tokens and {place + item.patches} patches, more than {length} and {patches}"
                )
            here = slice(start, stop)
            out.ids[b, here] = e.ids
            out.positions[b, :, here] = e.positions
            out.weight[b, here] = e.loss_mask
            out.roles[b, here] = e.roles
            out.segments[b, here] = segment
            out.feature_index[b, here] = np.where(
                e.feature_index >= 0, e.feature_index + place // unit, -1
            )
            walk = _see(out.visibility, e.visibility, b, here, walk)
            for shot in item.shots:
                size = int(np.prod(shot.observation.grid))
                if out.features is None:
                    out.patches[b, place : place + size] = shot.patches
                elif shot.features is None:
                    missing.append(
                        MissingFeatures(shot.key, b, place // unit, shot.observation, shot.patches)
                    )
                else:
                    out.features[b, place // unit : (place + size) // unit] = shot.features
                place += size
            start = stop
        if features is None:
            grids = [shot.observation.grid for item in row for shot in item.shots]
            inputs.append(vision_inputs(grids, vision, pad_patches=patches))
    return dataclasses.replace(
        out,
        vision=None if features else stack_vision_inputs(inputs),
        missing=tuple(missing),
    )


def _see(row: Visibility, part: Visibility, b: int, here: slice, walk: int) -> int:
    """Writes a document's fields into its row, blind to the documents before; returns where the next one's walk begins."""
    live = part.enter >= 0
    shift = np.where(live, walk, 0)
    row.order[b, here] = part.order + here.start
    row.enter[b, here] = part.enter + shift
    row.leave[b, here] = part.leave + shift
    row.kind[b, here] = part.kind
    row.hide[b, here] = part.hide
    return walk + int(part.leave.max(initial=0, where=live))
