"""Trajectories by number."""

from __future__ import annotations

from typing import Protocol

from vo3.trajectory import Trajectory


class TrajectorySource(Protocol):
    """Random access to trajectories, the same in every process.

    Attributes:
      fingerprint: a hash of the contents.
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Trajectory: ...
