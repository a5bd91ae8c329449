"""The device's part of a rollout: a few jitted programs with static shapes, and a count of their compilations.

Every size that a program sees comes from `Buckets`, so their number is bounded by its tables:

    encode   one per patch bucket                 patches -> features
    place    patch buckets x token buckets        features -> rows aligned with the tokens of a prefill call
    prefill  token buckets x capacities           new tokens appended to the cache -> logits of the last
    start    one per sampling method              logits -> first token of a turn
    decode   capacities x sampling methods        one token appended, the next drawn
    resize   pairs of capacities                  a copy of the cache with as many slots or more
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Float, Int

from pallas_kernels.visibility import Visibility
from vo3.attention import AttentionMesh
from vo3.models.qwen2_5_vl.cache import KVCache
from vo3.models.qwen2_5_vl.config import TextConfig
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.models.qwen2_5_vl.vision import VisionInputs, vision_inputs
from vo3.rollout.buckets import Buckets
from vo3.rollout.sampler import Drawn, Knobs, Method, Sampling, draw
from vo3.rollout.weights import Weights


class Programs:
    """Jitted functions of one model.

    The parameters are arguments, not constants: `update` swaps them without compiling anything. The cache that is handed to `prefill` and
    `decode` is donated; `resize` leaves its argument alone, so a snapshot is what was resized and not handed on.

    Attributes:
      compiled: how often each program was compiled for which sizes.
    """

    def __init__(self, model: Qwen2_5_VL):
        self.config = model.config
        self.dtype = model.dtype
        self._mesh = model.decoder.mesh
        self.compiled: collections.Counter[tuple] = collections.Counter()
        self._weights = Weights.of(model)
        place = None if self._mesh is None else _Places.of(self.config.text, self._mesh)
        self._places = place
        cache, whole = (place.cache, place.whole) if place else (None, None)

        def jit(body, out, **options):
            # On a mesh what a program gives is laid out as the next one takes it: another layout is another program.
            return jax.jit(body, **({"out_shardings": out} if place else {}), **options)

        donated = {"donate_argnames": ("cache",)}
        method = {"static_argnames": ("method",)}
        self._encode = jit(self._encode_body, whole)
        self._place = jit(self._place_body, whole)
        self._prefill = jit(self._prefill_body, (cache, whole), **donated)
        self._start = jit(self._start_body, whole, **method)
        self._decode = jit(self._decode_body, (cache, whole), **donated, **method)
        self._resize = jit(self._resize_body, cache, static_argnames=("capacity",))
        self._zeros = functools.cache(self._blank)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self.compiled.total()

    def update(self, model: Qwen2_5_VL) -> None:
        """Uses the parameters of `model`, of the same architecture, from now on."""
        self._weights = self._weights.replaced(model)

    def encode(
        self, patches: Float[np.ndarray, "P C"], inputs: VisionInputs
    ) -> Float[Array, "M D"]:
        """Vision features of a padded row of patches."""
        return self._encode(self._weights.leaves, patches, inputs)

    def place(
        self, rows: Float[Array, "L D"], features: Float[Array, "M D"], index: Int[np.ndarray, "L"]
    ) -> Float[Array, "L D"]:
        """`rows` with features where `index` is not -1."""
        return self._place(rows, features, index)

    def blank(self, tokens: int) -> Float[Array, "L D"]:
        """Rows without features, to place them in."""
        return self._zeros(tokens)

    def prefill(
        self,
        cache: KVCache,
        ids: Int[np.ndarray, "B L"],
        positions: Int[np.ndarray, "3 B L"],
        valid: Int[np.ndarray, "B"],
        rows: Float[Array, "L D"],
        index: Int[np.ndarray, "B L"],
    ) -> tuple[KVCache, Float[Array, "B V"]]:
        """Appends the first `valid` tokens of each row; logits of the last of them. `cache` is donated."""
        return self._prefill(self._weights.leaves, cache, ids, positions, valid, rows, index)

    def start(
        self, logits: Float[Array, "B V"], drawn: Drawn, knobs: Knobs, *, method: Method
    ) -> Drawn:
        """Draws the first token of a turn; token and logprob of `drawn` are not read."""
        return self._start(logits, drawn, knobs, method=method)

    def decode(
        self, cache: KVCache, drawn: Drawn, knobs: Knobs, *, method: Method
    ) -> tuple[KVCache, Drawn]:
        """Appends `drawn.token` to the cache (donated) and draws the next."""
        return self._decode(self._weights.leaves, cache, drawn, knobs, method=method)

    def empty(self, batch: int, capacity: int) -> KVCache:
        """An unwritten cache, its heads over the devices that hold the model's."""
        cache = KVCache.empty(self.config.text, batch, capacity, dtype=self.dtype)
        return jax.device_put(cache, self._places.cache) if self._places else cache

    def resize(self, cache: KVCache, capacity: int) -> KVCache:
        """A copy of `cache` with `capacity` slots, no fewer than it has."""
        return self._resize(cache, capacity=capacity)

    def warm_up(self, buckets: Buckets, method: Method) -> None:
        """Calls every program for every combination of buckets."""
        vision = self.config.vision
        for patches in buckets.patches:
            pixels = np.zeros((patches, vision.patch_dim), np.float32)
            features = self.encode(pixels, vision_inputs((), vision, pad_patches=patches))
            for tokens in buckets.tokens:
                self.place(self.blank(tokens), features, np.full(tokens, -1, np.int32))
        one = np.ones(1, np.int32)
        drawn = Drawn(one, np.ones(1, np.float32), one, one, one.astype(np.uint32), one > 0)
        knobs = Knobs.of(Sampling())
        for number, capacity in enumerate(buckets.capacity):
            cache = self.empty(1, capacity)
            for tokens in buckets.tokens:
                ids = np.zeros((1, tokens), np.int32)
                places = np.zeros((3, 1, tokens), np.int32)
                cache, logits = self.prefill(cache, ids, places, one, self.blank(tokens), ids - 1)
            first = self.start(logits, drawn, knobs, method=method)
            # As in a turn: the first token comes from `start`, the later ones from `decode` itself.
            for _ in range(2):
                cache, first = self.decode(cache, first, knobs, method=method)
            for larger in buckets.capacity[number:]:
                jax.block_until_ready(self.resize(cache, larger))

    def lowered(
        self,
        *,
        patches: int,
        tokens: int,
        capacity: int,
        device: jax.Device,
        method: Method = "greedy",
    ) -> dict[str, jax.stages.Lowered]:
        """`encode`, `prefill`, `decode` and `resize` for these sizes and one conversation, lowered for `device`, where the model's shapes
        are said to lie and which need not be there."""
        where = SingleDeviceSharding(device)
        laid = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        abstract = lambda make: jax.tree.map(laid, jax.eval_shape(make))
        vision, text, weights = self.config.vision, self.config.text, self._weights.leaves
        inputs = jax.tree.map(laid, vision_inputs((), vision, pad_patches=patches))
        pixels = laid(jax.ShapeDtypeStruct((patches, vision.patch_dim), jnp.float32))
        cache = abstract(lambda: KVCache.empty(text, 1, capacity, dtype=self.dtype))
        one = np.ones(1, np.int32)
        ids, places = np.zeros((1, tokens), np.int32), np.zeros((3, 1, tokens), np.int32)
        rows = abstract(lambda: jnp.zeros((tokens, text.hidden_size), self.dtype))
        drawn = Drawn(one, np.ones(1, np.float32), one, one, one.astype(np.uint32), one > 0)
        knobs = Knobs.of(Sampling())
        return {
            "encode": self._encode.lower(weights, pixels, inputs),
            "prefill": self._prefill.lower(weights, cache, ids, places, one, rows, ids),
            "decode": self._decode.lower(weights, cache, drawn, knobs, method=method),
            "resize": self._resize.lower(cache, capacity=capacity),
        }

    # Bodies. Each notes its compilation: the Python code below runs once per compiled program.

    def _note(self, *key) -> None:
        self.compiled[key] += 1

    def _blank(self, tokens: int) -> Float[Array, "L D"]:
        rows = jnp.zeros((tokens, self.config.text.hidden_size), self.dtype)
        return jax.device_put(rows, self._places.whole) if self._places else rows

    def _encode_body(self, weights, patches, inputs):
        self._note("encode", patches.shape[0])
        return self._weights.model(weights).encode_vision(patches, inputs)

    def _place_body(self, rows, features, index):
        self._note("place", features.shape[0], rows.shape[0])
        shown = features.at[jnp.maximum(index, 0)].get(mode="clip").astype(rows.dtype)
        return jnp.where((index >= 0)[:, None], shown, rows)

    def _prefill_body(self, weights, cache, ids, positions, valid, rows, index):
        batch, tokens = ids.shape
        self._note("prefill", batch, tokens, cache.capacity)
        step = jnp.arange(tokens, dtype=jnp.int32)[None]
        seen = Visibility.document(cache.length[:, None] + step, step < valid[:, None])
        model = self._weights.model(weights)
        out = model(
            ids, positions, seen, features=rows, feature_index=index, cache=cache, logits="last"
        )
        return out.cache, out.logits

    def _start_body(self, logits, drawn, knobs, *, method):
        self._note("start", logits.shape[0], method)
        token, logprob = draw(logits, drawn.seed, drawn.count, knobs, method=method)
        return Drawn(token, logprob, drawn.position, drawn.count, drawn.seed, drawn.active)

    def _decode_body(self, weights, cache, drawn, knobs, *, method):
        self._note("decode", cache.batch, cache.capacity, method)
        positions = jnp.broadcast_to(drawn.position[None, :, None], (3, cache.batch, 1))
        seen = Visibility.document(cache.length[:, None], drawn.active[:, None])
        out = self._weights.model(weights)(
            drawn.token[:, None], positions, seen, cache=cache, logits="all"
        )
        count = drawn.count + 1
        token, logprob = draw(out.logits[:, 0], drawn.seed, count, knobs, method=method)
        return out.cache, Drawn(token, logprob, drawn.position + 1, count, drawn.seed, drawn.active)

    def _resize_body(self, cache, *, capacity):
        self._note("resize", cache.batch, cache.capacity, capacity)
        return cache.grow(capacity)


@dataclasses.dataclass(frozen=True)
class _Places:
    """Layouts on a mesh: the cache's heads stand where attention computes them, all else stands everywhere."""

    cache: KVCache
    whole: NamedSharding

    @classmethod
    def of(cls, config: TextConfig, mesh: AttentionMesh) -> _Places:
        axes = tuple(name for name in mesh.heads if mesh.mesh.shape.get(name, 1) > 1)
        ways = math.prod(mesh.mesh.shape[name] for name in axes)
        split = axes if axes and config.num_key_value_heads % ways == 0 else None
        heads = NamedSharding(mesh.mesh, PartitionSpec(None, None, split))
        whole = NamedSharding(mesh.mesh, PartitionSpec())
        seen = Visibility(whole, whole, whole, whole, whole)
        return cls(KVCache(k=heads, v=heads, visibility=seen, length=whole), whole)
