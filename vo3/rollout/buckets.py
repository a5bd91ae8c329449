"""The static shapes that programs are compiled for."""

from __future__ import annotations

import dataclasses
import functools

from vo3.rollout.errors import BucketError
from vo3.video import CropPolicy

# Assumed of the tokens around an overview: system turn, question, options.
PROMPT = 1024
# Of what stands around a picture that is shown by itself.
_MARKS = 16
# Slots that the TPU kernels read at a time. Caches of another size would be copied into one of this kind in every layer, for every token;
# small ones are not worth the slots.
_BLOCK, _SMALL = 512, 4096


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Padded sizes, each table in rising order.

    Attributes:
      tokens: new tokens of one prefill call; longer prompts are prefilled in several.
      patches: patches of one call of the vision tower. Temporal patches do not see each other there, so a long video is
        encoded in several calls; the largest bucket must hold one temporal patch.
      capacity: slots of the key-value cache.
    """

    tokens: tuple[int, ...] = (32, 128, 512, 2048)
    patches: tuple[int, ...] = (256, 1024, 4096, 16384)
    capacity: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            sizes = getattr(self, field.name)
            if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"Buckets.{field.name} must rise from at least 1, got {sizes}")
        if any(size % 4 for size in self.patches):
            raise ValueError(f"Buckets.patches must be multiples of 4, got {self.patches}")

    def limit(self, max_length: int) -> Buckets:
        """The table with capacities up to the first that holds `max_length` tokens and that kernels read as it lies."""
        most = _aligned(max_length)
        smaller = tuple(size for size in self.capacity if size < most)
        return dataclasses.replace(self, capacity=(*smaller, most))

    def split(self, tokens: int) -> tuple[int, ...]:
        """Buckets that hold `tokens` new tokens, the padding at the end of the last one."""
        return _split(tokens, self.tokens)


@dataclasses.dataclass(frozen=True)
class GroupBuckets:
    """Padded sizes of groups of rollouts, each table in rising order. Programs are as many as there are combinations: keep tables short.

    Attributes:
      tokens: new tokens of one call, in the row of one group.
      patches: patches of one call of the vision tower, as in `Buckets`.
      prefix: slots of a group's prefix.
      suffix: slots that each leaf adds.
      features: vision features that are kept on the device until their tokens are prefilled; None: of two of the largest calls.
    """

    tokens: tuple[int, ...] = (64, 256, 2048)
    patches: tuple[int, ...] = (256, 1024, 4096, 16384)
    prefix: tuple[int, ...] = (512, 2048, 8192, 20480)
    suffix: tuple[int, ...] = (512, 2048, 8192, 32768)
    features: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name in ("tokens", "patches", "prefix", "suffix"):
            sizes = getattr(self, name)
            if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"GroupBuckets.{name} must rise from at least 1, got {sizes}")
        if any(size % 4 for size in self.patches):
            raise ValueError(f"GroupBuckets.patches must be multiples of 4, got {self.patches}")
        if self.features is None:
            object.__setattr__(self, "features", self.patches[-1] // 2)
        if self.features < self.patches[-1] // 4:
            raise ValueError(
                f"GroupBuckets.features is {self.features}; the largest call gives {self.patches[-1] // 4}"
            )

    @classmethod
    def of(cls, buckets: GroupBuckets | Buckets | None) -> GroupBuckets:
        """The given ones, with the capacities of a single conversation's for prefix and suffix; None: the defaults."""
        if isinstance(buckets, Buckets):
            return cls(buckets.tokens, buckets.patches, buckets.capacity, buckets.capacity)
        return buckets or cls()

    def limit(self, max_length: int) -> GroupBuckets:
        """The table with capacities up to `max_length`, as `Buckets.limit`; the largest suffix holds whatever a context has room for."""
        most = _aligned(max_length)
        below = lambda table: tuple(size for size in table if size < most)
        prefix = self.prefix if self.prefix[-1] < most else (*below(self.prefix), most)
        return dataclasses.replace(self, prefix=prefix, suffix=(*below(self.suffix), most))

    def showing(self, crop: CropPolicy) -> GroupBuckets:
        """The table with a prefix that holds the overviews of a crop policy and a question."""
        marks = _MARKS * crop.max_frames if crop.frames_per_patch == 1 else 0
        need = _aligned(crop.overview_quota + marks + PROMPT)
        more = () if need <= self.prefix[-1] else (need,)
        return dataclasses.replace(self, prefix=(*self.prefix, *more))


def _aligned(slots: int) -> int:
    """At least so many, and whole blocks of the kernels where they are many."""
    return slots if slots <= _SMALL else -(-slots // _BLOCK) * _BLOCK


def smallest(size: int, table: tuple[int, ...], *, what: str) -> int:
    """The smallest bucket of `table` that holds `size`.

    Raises:
      BucketError: none does.
    """
    for bucket in table:
        if size <= bucket:
            return bucket
    raise BucketError(
        f"{what}: {size} is more than the largest bucket, {table[-1]}; add a bucket that holds it"
    )


# What a call costs beside its tokens, in tokens: below this much padding one larger call beats two smaller ones.
_CALL = 48


@functools.lru_cache(maxsize=65536)
def _cost(tokens: int, table: tuple[int, ...]) -> tuple[int, int]:
    """(cost, first bucket) of the cheapest split of at most `table[-1]` tokens."""
    options = []
    for bucket in table:
        if bucket >= tokens:
            options.append((bucket + _CALL, -bucket))
            break
        rest = _cost(tokens - bucket, table)[0]
        options.append((bucket + _CALL + rest, -bucket))
    cost, bucket = min(options)
    return cost, -bucket


def _split(tokens: int, table: tuple[int, ...]) -> tuple[int, ...]:
    parts = []
    while tokens > 0:
        bucket = table[-1] if tokens >= table[-1] else _cost(tokens, table)[1]
        parts.append(bucket)
        tokens -= bucket
    return tuple(parts)
