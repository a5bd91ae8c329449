"""The published table of 7B models, for the row beside a result."""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import Any

# What a reproduction is compared with first.
OURS = "Video-o3 (SFT+RL)"


@functools.cache
def _table() -> dict[str, Any]:
    text = importlib.resources.files("vo3.evals").joinpath("published.json").read_text("utf-8")
    return json.loads(text)


def row(benchmark: str) -> dict[str, Any] | None:
    """The published figures of a benchmark: {"metric", "source", "models": {name: percent}}; None where there are none."""
    table = _table()
    if benchmark not in table["metrics"]:
        return None
    models = {r["model"]: r[benchmark] for r in table["rows"] if benchmark in r}
    return {"metric": table["metrics"][benchmark], "source": table["source"], "models": models}
