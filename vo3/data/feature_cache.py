"""A disk cache of vision features, for towers that do not train.

Features are kept under the clip's key and a hash of the weights that made them: other weights, other features. What is
kept is what the frozen part gives. Where the merger trains, as in the published stages, that is the tower's output before
the merger; its width is the caller's business.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath
from jaxtyping import Shaped

from vo3.data.blob_store import BlobStore, StoreCounts
from vo3.data.clip_cache import Entry, pack_entry, unpack_entry
from vo3.trajectory import Observation


def weights_hash(weights: Mapping | object) -> str:
    """A hash of a tree of arrays: names, shapes, dtypes and every byte.

    Args:
      weights: the frozen tower's parameters (any pytree, such as `nnx.state(model.vision.blocks)`), with arrays that this
        process can read whole. Whatever else decides the features (the dtype of the computation) belongs into it too.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype.name} {array.shape} ".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """What the features of a token are: how many numbers, of which dtype ("bfloat16")."""

    width: int
    dtype: str


class FeatureCache:
    """Vision features by clip, in a folder that the processes of a machine share; see `BlobStore`.

    On an object store it serves every host: stage 2 then finds what stage 1 computed, whichever host reads a row.

    Picklable, so that it can be handed to worker processes.

    Attributes:
      weights: hash of the weights that the features are made with.
      spec: width and dtype of a token's features.
    """

    def __init__(
        self,
        root: epath.PathLike,
        *,
        weights: str,
        spec: FeatureSpec,
        limit_bytes: int | None = None,
    ):
        """`root`: a folder or an address on an object store; `weights`: see `weights_hash`.

        Raises:
          ValueError: no hash.
        """
        if not weights:
            raise ValueError("a feature cache needs the hash of the weights; see weights_hash")
        self.weights, self.spec = weights, spec
        self._store = BlobStore(root, limit_bytes=limit_bytes)

    @property
    def counts(self) -> StoreCounts:
        """Hits, misses and the like, of this process."""
        return self._store.counts

    def get(self, clip: str) -> Entry | None:
        """Observation and features [M, width] of the clip with this key (`clip_key`); the array is read-only."""
        data = self._store.get(self._key(clip))
        return None if data is None else unpack_entry(data)

    def put(self, clip: str, observation: Observation, features: Shaped[np.ndarray, "M W"]) -> bool:
        """Keeps the features; whether that worked. A full disk is counted, not raised.

        Raises:
          ValueError: not one row per token of the clip, or another width or dtype.
        """
        wanted = (observation.tokens, self.spec.width)
        if features.shape != wanted or features.dtype.name != self.spec.dtype:
            raise ValueError(
                f"features {features.dtype.name} {features.shape} for a clip of {observation.tokens} tokens; wanted "
                f"{self.spec.dtype} {wanted}"
            )
        return self._store.put(self._key(clip), pack_entry(Entry(observation, features)))

    def _key(self, clip: str) -> str:
        return hashlib.blake2b(
            f"{clip} {self.weights} {self.spec}".encode(), digest_size=20
        ).hexdigest()
