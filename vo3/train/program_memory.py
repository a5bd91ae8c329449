"""What programs hold on a device, as a table: the common part of the compile checks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax

from vo3.train import ahead_of_time as aot
from vo3.train.chips import GIB, Chip


@dataclasses.dataclass(frozen=True)
class Part:
    """One program on one device, bytes.

    Attributes:
      name: of the program, with its sizes.
      arguments: what it is given: parameters, caches, batch.
      temporaries: the compiler's.
      resident: what else lies on the device while it runs.
      seconds: of compilation.
    """

    name: str
    arguments: float
    temporaries: float
    resident: float
    seconds: float

    @property
    def total(self) -> float:
        """The peak."""
        return self.arguments + self.temporaries + self.resident


def compiled(name: str, lowered: jax.stages.Lowered, *, resident: float) -> Part:
    """Compiles a program for the devices that it was lowered for.

    Raises:
      DoesNotFit: the compiler gave up for lack of memory.
    """
    begin = time.monotonic()
    memory, _ = aot.compile_lowered(lowered, None)
    given = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return Part(
        name,
        float(given - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes),
        float(memory.temp_size_in_bytes),
        resident,
        time.monotonic() - begin,
    )


def table(parts: Sequence[Part], chip: Chip) -> list[str]:
    """A line for each program, and what the chip has."""
    lines = [f"{'per device, GiB':<76}{'given':>9}{'temporary':>11}{'beside':>9}{'total':>9}"]
    for part in parts:
        numbers = (part.arguments, part.temporaries, part.resident, part.total)
        text = "".join(f"{x / GIB:>{w}.2f}" for x, w in zip(numbers, (9, 11, 9, 9), strict=True))
        lines.append(f"  {part.name:<74}{text}")
    return [*lines, f"  {'usable on ' + chip.name:<74}{chip.hbm_bytes / GIB:>38.2f}"]
