"""What can be wrong with a request to the engine. All are ValueErrors that name the thing and the remedy."""

from __future__ import annotations


class RolloutError(ValueError):
    """A request that the engine cannot carry out."""


class ContextError(RolloutError):
    """The question, with its overview, is longer than the context allows."""


class BucketError(RolloutError):
    """A size that no bucket holds."""


class OptionError(RolloutError):
    """The options of a question are not lettered A, B, C, ..."""
