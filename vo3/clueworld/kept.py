"""What an evaluation comes to, kept in one small file: every figure with the values that it is the mean of.

`vo3.clueworld.evaluate` writes it beside the trajectories. It is a hundredth of their size and enough for intervals over questions, worlds and models and for
differences question by question, so that evaluations of one week can be held against those of another: `docs/results` has some of those that docs/clueworld.md tells.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping

from etils import epath

from vo3.clueworld.figures import Measure

FILE = "measures.json.gz"


def save(path: epath.PathLike, measures: Mapping[str, Measure]) -> None:
    """Writes measures, values to four decimals; the same measures make the same bytes."""
    plain = {
        name: {
            "share": measure.share,
            "values": {
                key: int(value) if measure.share else round(float(value), 4)
                for key, value in measure.values.items()
            },
        }
        for name, measure in measures.items()
    }
    text = json.dumps(plain, separators=(",", ":"))
    epath.Path(path).write_bytes(gzip.compress(text.encode(), mtime=0))


def load(path: epath.PathLike) -> dict[str, Measure]:
    """What `save` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else; names it.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; make it with vo3.clueworld.evaluate")
    data = path.read_bytes()
    try:
        plain = json.loads(gzip.decompress(data))
        return {name: Measure(one["values"], one["share"]) for name, one in plain.items()}
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"{path} does not hold the measures of an evaluation; make them with vo3.clueworld.evaluate"
        ) from error
