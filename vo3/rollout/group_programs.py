"""The device's part of groups of rollouts: a few jitted programs with static shapes, and a count of their compilations.

G groups of n leaves; on a mesh groups lie over its row axes, Z shards of them, and a picture is encoded on its group's shard. Features wait
in a buffer of fixed size until the tokens that show them are prefilled.

    encode   one per patch bucket                            patches -> features, a call of the tower for every shard
    prompt   token buckets x prefix buckets                  tokens appended to prefixes; first tokens of their leaves drawn
    extend   token x prefix x suffix buckets                 tokens appended to leaves; first tokens of their turns drawn
    decode   prefix buckets x suffix buckets                 one token appended to every leaf, the next drawn
    resize   pairs of buckets, prefix and suffix             a copy with more slots, or fewer

Those that draw come once per sampling method.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vo3.models.qwen2_5_vl.group_cache import PrefixCache, SuffixCache
from vo3.models.qwen2_5_vl.group_decoder import decode_leaves, extend_leaves, extend_prefix
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.models.qwen2_5_vl.vision import VisionInputs, stack_vision_inputs, vision_inputs
from vo3.rollout.buckets import GroupBuckets
from vo3.rollout.chunk import Chunk, Lengths
from vo3.rollout.group_places import GroupPlaces, GroupState
from vo3.rollout.sampler import Drawn, Knobs, Method, Sampling, draw
from vo3.rollout.vision import Patches
from vo3.rollout.weights import Weights


class GroupPrograms:
    """Jitted functions of one model. Caches that are appended to are donated.

    Host arrays hold this process's groups; what comes back holds everybody's and is read by `local`.

    Attributes:
      compiled: how often each program was compiled for which sizes.
      groups, leaves: G and n, of this process.
      shards: row shards of this process.
    """

    def __init__(self, model: Qwen2_5_VL, *, groups: int, leaves: int):
        self.config = model.config
        self.dtype = model.dtype
        self.compiled: collections.Counter[tuple] = collections.Counter()
        self.groups, self.leaves = groups, leaves
        self._weights = Weights.of(model)
        self._places = places = GroupPlaces.of(model, groups)
        self.shards = places.shards
        jit = places.jit
        donated = lambda *names: {"donate_argnames": names}
        method = {"static_argnames": ("method",)}
        self._encode = jit(self._encode_body, ("rows",), **donated("features"))
        self._prompt = jit(
            self._prompt_body, ("prefix", "rows"), **donated("prefix", "drawn"), **method
        )
        self._extend = jit(
            self._extend_body, ("suffix", "rows"), **donated("suffix", "drawn"), **method
        )
        self._decode = jit(self._decode_body, ("suffix", "rows"), **donated("suffix"), **method)
        size = {"static_argnames": ("capacity",)}
        self._resize_prefix = jit(self._resize_body, ("prefix",), **size)
        self._resize_suffix = jit(self._resize_body, ("suffix",), **size)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self.compiled.total()

    @property
    def shared(self) -> bool:
        """Whether several processes run these programs together."""
        return self._places.shared

    def update(self, model: Qwen2_5_VL) -> None:
        """Uses the parameters of `model`, of the same architecture, from now on."""
        self._weights = self._weights.replaced(model)

    def encode(
        self,
        features: Float[Array, "Z F D"],
        calls: Sequence[Patches | None],
        offsets: Sequence[int],
        bucket: int,
    ) -> Float[Array, "Z F D"]:
        """Features (donated) with those of one call of the tower per shard of this process, from its offset on; None: nothing."""
        vision = self.config.vision
        patches = np.zeros((len(calls), bucket, vision.patch_dim), np.float32)
        start = np.full(len(calls), features.shape[1], np.int32)
        inputs: list[VisionInputs] = []
        for shard, call in enumerate(calls):
            if call is None:
                inputs.append(vision_inputs([], vision, pad_patches=bucket))
                continue
            start[shard] = offsets[shard]
            patches[shard, : len(call.patches)] = call.patches
            fits = len(call.patches) == bucket
            inputs.append(
                call.inputs if fits else vision_inputs([call.grid], vision, pad_patches=bucket)
            )
        put = self._places.put
        return self._encode(
            self._weights.leaves,
            features=features,
            patches=put(patches),
            inputs=jax.tree.map(put, stack_vision_inputs(inputs)),
            start=put(start),
        )

    def prompt(
        self, prefix: PrefixCache, drawn: Drawn, chunk: Chunk, features: Array, knobs: Knobs, *, method: Method
    ) -> tuple[PrefixCache, Drawn]:  # fmt: skip
        """Appends a chunk to prefixes and draws the first tokens of the turns behind it."""
        return self._prompt(
            self._weights.leaves,
            prefix=prefix,
            drawn=drawn,
            chunk=jax.tree.map(self._places.put, chunk),
            features=features,
            knobs=self._put_knobs(knobs),
            method=method,
        )

    def extend(
        self, prefix: PrefixCache, suffix: SuffixCache, drawn: Drawn, lengths: Int[np.ndarray, " G"],
        chunk: Chunk, features: Array, knobs: Knobs, *, method: Method,
    ) -> tuple[SuffixCache, Drawn]:  # fmt: skip
        """Appends a chunk to leaves and draws the first tokens of the turns behind it. `lengths`: slots of prefixes in use."""
        return self._extend(
            self._weights.leaves,
            prefix=prefix,
            suffix=suffix,
            drawn=drawn,
            lengths=self._places.put(lengths),
            chunk=jax.tree.map(self._places.put, chunk),
            features=features,
            knobs=self._put_knobs(knobs),
            method=method,
        )

    def decode(
        self, prefix: PrefixCache, suffix: SuffixCache, drawn: Drawn, lengths: Lengths, knobs: Knobs, *, method: Method
    ) -> tuple[SuffixCache, Drawn]:  # fmt: skip
        """Appends `drawn.token` to the active leaves and draws the next."""
        lengths = jax.tree.map(self._places.put, lengths)
        return self._decode(
            self._weights.leaves,
            prefix=prefix,
            suffix=suffix,
            drawn=drawn,
            lengths=lengths,
            knobs=self._put_knobs(knobs),
            method=method,
        )

    def empty(self, prefix: int, suffix: int, features: int) -> GroupState:
        """Unwritten caches of these capacities, room for `features` features a shard, and nothing drawn."""
        state = self._places.empty(
            self.config.text, self.leaves, prefix, suffix, features, self.dtype
        )
        if self._places.mesh is None:
            # Committed to the weights' device, as what the programs give is: else each would be compiled once more for it.
            where = jax.tree.leaves(self._weights.leaves)[0].sharding
            for field in dataclasses.fields(state):
                setattr(state, field.name, jax.device_put(getattr(state, field.name), where))
        return state

    def resize(self, cache, capacity: int):
        """A copy of a prefix or suffix cache with `capacity` slots."""
        body = self._resize_prefix if isinstance(cache, PrefixCache) else self._resize_suffix
        return body(cache, capacity=capacity)

    def local(self, x: Array) -> np.ndarray:
        """This process's part of what a program gave; waits for it."""
        return self._places.local(x)

    def warm_up(self, buckets: GroupBuckets, knobs: Knobs, method: Method) -> None:
        """Calls every program for every combination of buckets, on caches without groups."""
        lengths = Lengths.empty(self.groups, self.leaves)
        chunks = [Chunk.empty(self.groups, self.leaves, tokens) for tokens in buckets.tokens]
        calls = [None] * self.shards
        for number, prefix in enumerate(buckets.prefix):
            for at, suffix in enumerate(buckets.suffix):
                state = self.empty(prefix, suffix, buckets.features)
                if not (number or at):
                    for patches in buckets.patches:
                        state.features = self.encode(state.features, calls, [], patches)
                # Twice: what a program gives is laid out as it says, what `empty` gives need not be.
                for chunk in 2 * chunks:
                    if not at:
                        state.prefix, state.drawn = self.prompt(
                            state.prefix, state.drawn, chunk, state.features, knobs, method=method
                        )
                    state.suffix, state.drawn = self.extend(
                        state.prefix, state.suffix, state.drawn, lengths.prefix, chunk,
                        state.features, knobs, method=method,
                    )  # fmt: skip
                for _ in range(2):
                    state.suffix, state.drawn = self.decode(
                        state.prefix, state.suffix, state.drawn, lengths, knobs, method=method
                    )
                if not at:
                    for size in set(buckets.prefix) - {prefix}:
                        self.resize(state.prefix, size)
                if not number:
                    for size in set(buckets.suffix) - {suffix}:
                        self.resize(state.suffix, size)
                jax.block_until_ready(state.suffix)

    def lowered(
        self, *, tokens: int, prefix: int, suffix: int, features: int, method: Method = "plain"
    ) -> dict[str, jax.stages.Lowered]:
        """`prompt`, `extend` and `decode` for these sizes, lowered for the model's devices, which need not be there."""
        state = self._places.abstract(
            self.config.text, self.leaves, prefix, suffix, features, self.dtype
        )
        rows = lambda tree: jax.tree.map(self._places.abstract_rows, tree)
        lengths = rows(Lengths.empty(self.groups, self.leaves))
        chunk = rows(Chunk.empty(self.groups, self.leaves, tokens))
        same = {"drawn": state.drawn, "method": method}
        same["knobs"] = jax.tree.map(np.asarray, Knobs.of(Sampling(temperature=1.0)))
        new = {"chunk": chunk, "features": state.features, **same}
        caches = {"prefix": state.prefix, "suffix": state.suffix}
        weights = self._weights.leaves
        return {
            "prompt": self._prompt.lower(weights, prefix=state.prefix, **new),
            "extend": self._extend.lower(weights, lengths=lengths.prefix, **caches, **new),
            "decode": self._decode.lower(weights, lengths=lengths, **caches, **same),
        }

    def cache_bytes(self, *, prefix: int, suffix: int) -> int:
        """Bytes of the key-value caches of these capacities on one device."""
        state = self._places.abstract(self.config.text, self.leaves, prefix, suffix, 1, self.dtype)
        own = lambda x: x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        caches = jax.tree.leaves((state.prefix, state.suffix))
        return sum(math.prod(own(x)) * x.dtype.itemsize for x in caches)

    def _put_knobs(self, knobs: Knobs) -> Knobs:
        """Knobs of every row lie as the rows do; one for all is the same number everywhere."""
        return jax.tree.map(lambda x: self._places.put(x) if x.ndim else x, knobs)

    # Bodies. Each notes its compilation: the Python code below runs once per compiled program.

    def _note(self, *key) -> None:
        self.compiled[key] += 1

    def _encode_body(self, weights, features, patches, inputs, start):
        self._note("encode", patches.shape[1])
        new = self._weights.model(weights).encode_vision(patches, inputs)
        index = jnp.arange(new.shape[1], dtype=jnp.int32)[None]
        count = inputs.count[:, None] // self.config.vision.merge_unit
        # Padding, and the shards without a call, are written nowhere.
        index = jnp.where(index < count, start[:, None] + index, features.shape[1])
        write = lambda kept, at, x: kept.at[at].set(x.astype(kept.dtype), mode="drop")
        return jax.vmap(write)(features, index, new)

    def _prompt_body(self, weights, prefix, drawn, chunk, features, knobs, *, method):
        self._note("prompt", chunk.ids.shape[1], prefix.capacity, method)
        model = self._weights.model(weights)
        x, positions = _embed(model, chunk, features)
        hidden, prefix = extend_prefix(model.decoder, x, positions, chunk.slots, prefix)
        return prefix, _begin(model, hidden, chunk, drawn, knobs, method)

    def _extend_body(
        self, weights, prefix, suffix, drawn, lengths, chunk, features, knobs, *, method
    ):
        self._note("extend", chunk.ids.shape[1], prefix.capacity, suffix.capacity, method)
        model = self._weights.model(weights)
        x, positions = _embed(model, chunk, features)
        hidden, suffix = extend_leaves(
            model.decoder, x, positions, chunk.leaf, chunk.slots, prefix, lengths, suffix
        )
        return suffix, _begin(model, hidden, chunk, drawn, knobs, method)

    def _decode_body(self, weights, prefix, suffix, drawn, lengths, knobs, *, method):
        self._note("decode", prefix.capacity, suffix.capacity, method)
        model = self._weights.model(weights)
        shape = lengths.active.shape
        places = jnp.broadcast_to(drawn.position.reshape(shape)[None], (3, *shape))
        hidden, suffix = decode_leaves(
            model.decoder,
            model.embed(drawn.token.reshape(shape)),
            places,
            lengths.active,
            prefix,
            lengths.prefix,
            suffix,
            lengths.suffix,
        )
        count = drawn.count + 1
        logits = model.unembed(hidden).reshape(drawn.token.size, -1)
        token, logprob = draw(logits, drawn.seed, count, knobs, method=method)
        return suffix, Drawn(token, logprob, drawn.position + 1, count, drawn.seed, drawn.active)

    def _resize_body(self, cache, *, capacity):
        self._note("resize", type(cache).__name__, cache.capacity, capacity)
        return cache.resize(capacity)


def _embed(model: Qwen2_5_VL, chunk: Chunk, features: Array) -> tuple[Array, Array]:
    """Embedded tokens [G, L, D] with the features among them, and positions [3, G, L]."""
    x = model.embed(chunk.ids)
    rows = chunk.rows.reshape(features.shape[0], -1)
    shown = jnp.take_along_axis(features, jnp.maximum(rows, 0)[..., None], axis=1, mode="clip")
    x = jnp.where((chunk.rows >= 0)[..., None], shown.reshape(x.shape).astype(x.dtype), x)
    return x, chunk.positions.swapaxes(0, 1)


def _begin(
    model: Qwen2_5_VL, hidden: Array, chunk: Chunk, drawn: Drawn, knobs: Knobs, method: Method
) -> Drawn:
    """`drawn` with the first tokens of the turns that begin behind a chunk."""
    index = jnp.maximum(chunk.last, 0)[..., None]
    ends = jnp.take_along_axis(hidden, index, axis=1, mode="clip")
    logits = model.unembed(ends)
    logits = logits.reshape(-1, logits.shape[-1])
    flat = functools.partial(jnp.reshape, shape=(-1,))
    token, logprob = draw(logits, flat(chunk.seed), flat(chunk.count), knobs, method=method)
    begins = flat(chunk.last >= 0)
    pick = lambda new, old: jnp.where(begins, new, old)
    return Drawn(
        token=pick(token, drawn.token),
        logprob=pick(logprob, drawn.logprob),
        position=pick(flat(chunk.position), drawn.position),
        count=pick(flat(chunk.count), drawn.count),
        seed=pick(flat(chunk.seed), drawn.seed),
        active=drawn.active | begins,
    )
