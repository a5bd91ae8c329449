"""One conversation on the device: only new tokens are prefilled, and each turn is decoded token by token."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from vo3.models.qwen2_5_vl.cache import KVCache
from vo3.rollout.buckets import Buckets, smallest
from vo3.rollout.context import Context, Counts, Features, Tokens
from vo3.rollout.kv_cache import Prefix
from vo3.rollout.programs import Programs
from vo3.rollout.sampler import Drawn, Knobs, Sampling
from vo3.rollout.stops import SampledTurn, StopWatch
from vo3.rollout.vision import clip_patches
from vo3.video import Clip

# Slots kept free when a cache is chosen for a prompt: most turns then end before it must grow.
_SLACK = 256


class Session:
    """A context, its cache, and the programs that bring the one into the other.

    Attributes:
      context: the tokens; append to it, then `flush`.
      counts: work done.
    """

    def __init__(self, programs: Programs, buckets: Buckets):
        """An empty conversation; the largest capacity of `buckets` is the longest it can become."""
        self.context = Context()
        self.counts = Counts()
        self._programs = programs
        self._buckets = buckets
        self._cache: KVCache | None = None
        self._logits = None

    @property
    def programs(self) -> Programs:
        """The jitted functions."""
        return self._programs

    def show(self, clip: Clip, row: int = 0) -> None:
        """Encodes a clip whose first feature is the conversation's `row`-th, some temporal patches at a time."""
        vision, table = self._programs.config.vision, self._buckets.patches
        for call in clip_patches(clip, vision, table, row):
            array = self._programs.encode(call.patches, call.inputs)
            self.context.features.append(Features(call.row, call.count, array))
            self.counts.patches += call.used

    def flush(self, count: int | None = None) -> None:
        """Prefills the first `count` waiting tokens, or all of them."""
        tokens = self.context.waiting()[slice(0, count)]
        if not len(tokens):
            return
        self._room(len(tokens), slack=_SLACK)
        done = 0
        for bucket in self._buckets.split(len(tokens)):
            self._prefill(tokens[done : done + bucket], bucket)
            done += bucket
        self.context.mark_cached(len(tokens))
        self.counts.prefilled += len(tokens)

    def grow(self) -> None:
        """Makes the cache as large as the whole context asks for. Growing here and not on the way makes the sizes that a
        token meets the same whether its prefix was shared or not."""
        if self._cache is not None and self._cache.capacity < self._whole():
            self._cache = self._programs.resize(self._cache, self._whole())

    def snapshot(self) -> Prefix:
        """The conversation so far, for others to start from; this one goes on with a copy."""
        kept = self._cache
        if kept is None:
            raise ValueError("nothing was prefilled yet")
        self._cache = self._programs.resize(kept, max(self._whole(), kept.capacity))
        return Prefix(kept, self.context.cached)

    def resume(self, prefix: Prefix) -> None:
        """Takes the first `prefix.length` waiting tokens from a snapshot instead of prefilling them."""
        if self._cache is not None:
            raise ValueError("a conversation that has begun cannot resume from a prefix")
        self._cache = self._programs.resize(prefix.cache, max(self._whole(), prefix.cache.capacity))
        self.context.mark_cached(prefix.length)
        self.counts.shared += prefix.length

    def wait(self) -> None:
        """Blocks until the device has done what it was given; only for honest clocks."""
        if self._logits is not None:
            self._logits.block_until_ready()

    def sample(
        self,
        watch: StopWatch,
        sampling: Sampling,
        on_token: Callable[[int, str], None] | None = None,
    ) -> SampledTurn:
        """Samples a turn after what was appended; its tokens are in the context and the cache afterwards.

        Args:
          watch: says when to stop.
          sampling: how tokens are drawn.
          on_token: called with each token and the text it adds.
        """
        self.flush()
        knobs, method = Knobs.of(sampling), sampling.method
        drawn = Drawn(
            token=np.zeros(1, np.int32),
            logprob=np.zeros(1, np.float32),
            position=np.full(1, self.context.state.position, np.int32),
            count=np.full(1, self.counts.sampled, np.int32),
            seed=np.full(1, sampling.seed, np.uint32),
            active=np.ones(1, bool),
        )
        drawn = self._programs.start(self._logits, drawn, knobs, method=method)
        ids: list[int] = []
        logprobs = []
        while True:
            self._room(len(ids) + 1, slack=0)
            # The next step is given to the device before this token is read, so the device never waits for the host. When this token
            # ends the turn the step was still needed: it is what writes the token into the cache.
            self._cache, following = self._programs.decode(self._cache, drawn, knobs, method=method)
            token = int(np.asarray(drawn.token)[0])
            ids.append(token)
            logprobs.append(drawn.logprob)
            text, stop = watch.push(token)
            if on_token is not None:
                on_token(token, text)
            if stop is not None:
                break
            drawn = following
        self.context.append_ids(ids)
        self.context.mark_cached(len(ids))
        self.counts.sampled += len(ids)
        values = tuple(float(x[0]) for x in jax.device_get(logprobs))
        return SampledTurn(tuple(ids), values, stop)

    def _prefill(self, part: Tokens, bucket: int) -> None:
        count = len(part)
        rows = self._programs.blank(bucket)
        for features in self.context.features:
            local = part.rows - features.start
            local = np.where((local >= 0) & (local < features.count), local, -1)
            if (local >= 0).any():
                rows = self._programs.place(rows, features.array, _pad(local, bucket, -1))
        index = np.where(part.rows >= 0, np.arange(count, dtype=np.int32), np.int32(-1))
        self._cache, self._logits = self._programs.prefill(
            self._cache,
            _pad(part.ids, bucket, 0)[None],
            _pad(part.positions, bucket, 0)[:, None],
            np.full(1, count, np.int32),
            rows,
            _pad(index, bucket, -1)[None],
        )

    def _capacity(self, tokens: int) -> int:
        table = self._buckets.capacity
        return smallest(min(tokens, table[-1]), table, what="tokens of the context")

    def _whole(self) -> int:
        return self._capacity(len(self.context) + _SLACK)

    def _room(self, count: int, *, slack: int) -> None:
        """Makes sure that `count` more tokens fit into the cache."""
        needed = self.context.cached + count
        smallest(needed, self._buckets.capacity, what="tokens of the context")
        if self._cache is None:
            self._cache = self._programs.empty(1, self._capacity(needed + slack))
        elif self._cache.capacity < needed:
            self._cache = self._programs.resize(self._cache, self._capacity(needed + slack))


def _pad(array: np.ndarray, size: int, value: int) -> np.ndarray:
    """`array` with its last axis padded to `size`, int32."""
    width = [(0, 0)] * (array.ndim - 1) + [(0, size - array.shape[-1])]
    return np.pad(np.asarray(array, np.int32), width, constant_values=value)
