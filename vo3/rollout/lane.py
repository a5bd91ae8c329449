"""A batch of groups on the device: which program runs next, and what its results mean to the leaves.

The device is given the next token's step before the last one's tokens are read, so it does not wait for the host; clips are read on
host threads meanwhile, and leaves that wait for one are rows that stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from vo3.rollout.buckets import GroupBuckets, smallest
from vo3.rollout.chunk import Chunk, Lengths
from vo3.rollout.group import Group
from vo3.rollout.group_counts import GroupCounts
from vo3.rollout.group_places import GroupState
from vo3.rollout.group_programs import GroupPrograms
from vo3.rollout.leaf import Leaf
from vo3.rollout.lockstep import Need
from vo3.rollout.sampler import Knobs, Method, Sampling, host_knobs
from vo3.rollout.stream import FeatureBuffer, Stream

# Slots kept free when a suffix cache is chosen, so that it does not grow with every clip.
_SLACK = 128


class Lane:
    """Groups side by side in `slots`.

    Attributes:
      slots: the group in each, None where it is free.
    """

    def __init__(
        self,
        programs: GroupPrograms,
        buckets: GroupBuckets,
        *,
        sampling: Sampling | None,
        counts: GroupCounts,
        agree: Callable[[Need], Need],
        steps: int = 1,
    ):
        """An empty lane.

        Args:
          programs: of the model.
          buckets: static shapes.
          sampling: how tokens are drawn; None: as each leaf says.
          counts: where work is counted.
          agree: makes one need of every process's.
          steps: tokens decoded between two agreements.
        """
        self.slots: list[Group | None] = [None] * programs.groups
        self._programs, self._buckets = programs, buckets
        self._drawing = None if sampling is None else (host_knobs(sampling), sampling.method)
        self._counts, self._agree, self._steps = counts, agree, steps
        self._state: GroupState | None = None
        self._buffers = [FeatureBuffer(buckets.features) for _ in range(programs.shards)]
        self._refit = False

    def put(self, slot: int, group: Group | None) -> None:
        """Places a group that has begun, or clears the slot; of a group that had not ended nothing is left."""
        standing = self.slots[slot]
        if standing is not None:
            for stream in (standing.prompt, *(leaf.stream for leaf in standing.leaves)):
                stream.drop(self._buffer(slot))
        self.slots[slot] = group
        self._refit = True

    def leaves(self, *stages: str) -> Iterator[tuple[int, int, Leaf]]:
        """(slot, number, leaf) of the leaves in one of these stages."""
        for slot, group in enumerate(self.slots):
            if group is not None:
                for number, leaf in enumerate(group.leaves):
                    if leaf.stage in stages:
                        yield slot, number, leaf

    def step(self, *, busy: bool) -> Need:
        """Runs what is due next, if anything; returns what all processes agreed on."""
        need = self._agree(self._need(busy))
        if need.idle:
            return need
        self._fit(need)
        if need.encode:
            self._encode(need.encode)
        elif need.prompt:
            self._prompt(need.prompt)
        elif need.extend:
            self._extend(need.extend)
        else:
            for _ in range(self._steps):
                self._decode()
        return need

    # What is due.

    def _need(self, busy: bool) -> Need:
        groups = [group for group in self.slots if group is not None]
        calls = [call for call in self._calls() if call is not None]
        tokens = self._buckets.tokens[-1]
        prompts = [min(group.prompt.ready(), tokens) for group in groups]
        rows = [0] * len(self.slots)
        suffix = 1
        for slot, _, leaf in self.leaves("tokens", "live", "clip"):
            stream = leaf.stream
            waiting = len(stream.context.waiting()) if leaf.stage == "tokens" else self._steps
            suffix = max(suffix, stream.used + waiting)
            if leaf.stage == "tokens":
                rows[slot] += stream.ready()
        return Need(
            busy=int(busy or bool(groups)),
            encode=max((len(call.patches) for _, call in calls), default=0),
            prompt=max(prompts, default=0),
            extend=min(max(rows), tokens),
            decode=int(any(True for _ in self.leaves("live"))),
            prefix=max((len(group.prompt.context) for group in groups), default=1),
            suffix=suffix,
            refit=int(self._refit),
        )

    def _calls(self) -> list[tuple[Stream, object] | None]:
        """For each shard the next call of the vision tower whose features there is room for."""
        found: list = []
        per_shard = len(self.slots) // self._programs.shards
        for shard, buffer in enumerate(self._buffers):
            inside = self.slots[shard * per_shard : (shard + 1) * per_shard]
            streams = [group.prompt for group in inside if group is not None]
            streams += [
                leaf.stream for group in inside if group is not None for leaf in group.leaves
            ]
            due = (s for s in streams if s.calls and buffer.fits(s.calls[0].count))
            stream = next(due, None)
            found.append(None if stream is None else (stream, stream.calls[0]))
        return found

    def _fit(self, need: Need) -> None:
        """Gives the caches the slots that everybody needs; fewer than they have only where groups come and go."""
        table = self._buckets
        prefix = smallest(need.prefix, table.prefix, what="tokens of a prefix")
        suffix = smallest(
            min(need.suffix + _SLACK, max(table.suffix[-1], need.suffix)),
            table.suffix,
            what="tokens of a leaf",
        )
        if self._state is None:
            self._state = self._programs.empty(prefix, suffix, table.features)
        state = self._state
        grown = lambda old, new, wanted: new if need.refit or old < wanted else old
        prefix = grown(state.prefix.capacity, prefix, need.prefix)
        suffix = grown(state.suffix.capacity, suffix, need.suffix)
        if prefix != state.prefix.capacity:
            state.prefix = self._programs.resize(state.prefix, prefix)
        if suffix != state.suffix.capacity:
            state.suffix = self._programs.resize(state.suffix, suffix)
        self._refit = False

    # What is done.

    def _encode(self, patches: int) -> None:
        bucket = smallest(patches, self._buckets.patches, what="patches")
        found = self._calls()
        offsets = []
        for item, buffer in zip(found, self._buffers, strict=True):
            offsets.append(0 if item is None else buffer.take(item[1].count))
        calls = [None if item is None else item[1] for item in found]
        self._state.features = self._programs.encode(self._state.features, calls, offsets, bucket)
        for item, offset in zip(found, offsets, strict=True):
            if item is not None:
                stream, call = item
                stream.calls.popleft()
                stream.encoded(call, offset)
                self._counts.patches += call.used

    def _prompt(self, tokens: int) -> None:
        """A chunk of every prompt that is on its way into its prefix; behind the last one its leaves begin their turns."""
        chunk = self._chunk(tokens)
        begun: list[Leaf] = []
        for slot, group in enumerate(self.slots):
            if group is None or not (count := min(group.prompt.ready(), tokens)):
                continue
            self._fill(chunk, slot, 0, 0, group.prompt, count)
            if not len(group.prompt.context.waiting()):
                for number, leaf in enumerate(group.leaves):
                    self._begin(chunk, slot, number, count - 1, leaf)
                    begun.append(leaf)
        state, (knobs, method) = self._state, self._draws()
        state.prefix, state.drawn = self._programs.prompt(
            state.prefix, state.drawn, chunk, state.features, knobs, method=method
        )
        for leaf in begun:
            leaf.prefilled()

    def _extend(self, tokens: int) -> None:
        """A chunk of the leaves' new tokens, those of a group's leaves one after the other in its row."""
        chunk = self._chunk(tokens)
        begun: list[Leaf] = []
        filled = [0] * len(self.slots)
        for slot, number, leaf in list(self.leaves("tokens")):
            start = filled[slot]
            count = min(leaf.stream.ready(), tokens - start)
            if not count:
                continue
            self._fill(chunk, slot, number, start, leaf.stream, count)
            filled[slot] = start + count
            if not len(leaf.stream.context.waiting()):
                self._begin(chunk, slot, number, filled[slot] - 1, leaf)
                begun.append(leaf)
        state, (knobs, method) = self._state, self._draws()
        state.suffix, state.drawn = self._programs.extend(
            state.prefix,
            state.suffix,
            state.drawn,
            self._lengths().prefix,
            chunk,
            state.features,
            knobs,
            method=method,
        )
        for leaf in begun:
            leaf.prefilled()

    def _decode(self) -> None:
        """One token of every live leaf; those drawn before are read meanwhile."""
        state, live = self._state, list(self.leaves("live"))
        lengths = self._lengths()
        for slot, number, _ in live:
            lengths.active[slot, number] = True
        drawn, (knobs, method) = state.drawn, self._draws()
        state.suffix, state.drawn = self._programs.decode(
            state.prefix, state.suffix, drawn, lengths, knobs, method=method
        )
        shape = lengths.active.shape
        tokens = self._programs.local(drawn.token).reshape(shape)
        logprobs = self._programs.local(drawn.logprob).reshape(shape)
        for slot, number, leaf in live:
            leaf.stream.used += 1
            leaf.token(int(tokens[slot, number]), float(logprobs[slot, number]))
        self._counts.steps += 1
        self._counts.sampled += len(live)

    def _chunk(self, tokens: int) -> Chunk:
        bucket = smallest(tokens, self._buckets.tokens, what="new tokens")
        self._counts.slots += bucket * len(self.slots)
        return Chunk.empty(len(self.slots), self._programs.leaves, bucket)

    def _fill(
        self, chunk: Chunk, slot: int, number: int, start: int, stream: Stream, count: int
    ) -> None:
        """Puts the first `count` waiting tokens of a stream into its row."""
        first = stream.used
        tokens, rows = stream.take(count, self._buffer(slot))
        part = slice(start, start + count)
        chunk.ids[slot, part] = tokens.ids
        chunk.positions[slot, :, part] = tokens.positions
        chunk.rows[slot, part] = rows
        chunk.leaf[slot, part] = number
        chunk.slots[slot, part] = np.arange(first, first + count)
        self._counts.prefilled += count

    def _begin(self, chunk: Chunk, slot: int, number: int, last: int, leaf: Leaf) -> None:
        """A leaf's turn follows on the token at `last`."""
        chunk.last[slot, number] = last
        chunk.position[slot, number] = leaf.stream.context.state.position
        chunk.count[slot, number] = leaf.stream.counts.sampled
        chunk.seed[slot, number] = leaf.sampling.seed

    def _buffer(self, slot: int) -> FeatureBuffer:
        return self._buffers[slot * self._programs.shards // len(self.slots)]

    def _draws(self) -> tuple[Knobs, Method]:
        """How tokens are drawn: for all alike, or a row of knobs for each leaf."""
        if self._drawing is not None:
            return self._drawing
        leaves = self._programs.leaves
        samplings = [Sampling()] * (len(self.slots) * leaves)
        for slot, group in enumerate(self.slots):
            if group is not None:
                own = [leaf.sampling for leaf in group.leaves]
                samplings[slot * leaves : (slot + 1) * leaves] = own
        greedy = all(sampling.temperature == 0 for sampling in samplings)
        return Knobs.rows(samplings), "greedy" if greedy else "mixed"

    def _lengths(self) -> Lengths:
        lengths = Lengths.empty(len(self.slots), self._programs.leaves)
        for slot, group in enumerate(self.slots):
            if group is not None:
                lengths.prefix[slot] = group.prompt.used
                lengths.suffix[slot] = [leaf.stream.used for leaf in group.leaves]
        return lengths
