"""The published table of 7B models, for the row beside a result."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Iterable
from typing import Any

# What a reproduction is compared with first.
OURS = "Video-o3 (SFT+RL)"


@functools.cache
def _table() -> dict[str, Any]:
    text = importlib.resources.files("vo3.evals").joinpath("published.json").read_text("utf-8")
    return json.loads(text)


def rows(benchmarks: Iterable[str]) -> list[tuple[str, list[float | None]]]:
    """(model, its percent on each of the benchmarks), of the models that have any, in the order of the table."""
    names = list(benchmarks)
    found = [(r["model"], [r.get(name) for name in names]) for r in _table()["rows"]]
    return [(model, values) for model, values in found if any(v is not None for v in values)]


def row(benchmark: str) -> dict[str, Any] | None:
    """The published figures of a benchmark: {"metric", "source", "models": {name: percent}}; None where there are none."""
    table = _table()
    if benchmark not in table["metrics"]:
        return None
    models = {r["model"]: r[benchmark] for r in table["rows"] if benchmark in r}
    return {"metric": table["metrics"][benchmark], "source": table["source"], "models": models}
