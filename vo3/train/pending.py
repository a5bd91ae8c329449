"""Rollouts of a step that was interrupted before its update."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from etils import epath

from vo3.trajectory import Trajectory


class Pending:
    """Rollouts of a step that was interrupted before its update: WORKDIR/pending/PROCESS.jsonl.

    The first line says which step they are of; they are used only if the run goes on right there.
    """

    def __init__(self, workdir: epath.PathLike):
        self._file = epath.Path(workdir) / "pending" / f"{jax.process_index()}.jsonl"

    def write(self, header: str, lines: Sequence[str]) -> None:
        """Keeps them."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_name(f"{self._file.name}.part")
        part.write_text("\n".join([header, *lines]) + "\n")
        part.rename(self._file)

    def read(self, header: str) -> list[Trajectory] | None:
        """Those of this very step; None when there are none."""
        if not self._file.exists():
            return None
        # Not `splitlines`: a model may write U+2028, which JSON leaves as it is.
        first, *lines = self._file.read_text().removesuffix("\n").split("\n")
        return [Trajectory.loads(line) for line in lines] if first == header else None

    def drop(self) -> None:
        """Forgets them."""
        if self._file.exists():
            self._file.unlink()
