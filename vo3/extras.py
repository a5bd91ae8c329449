"""Packages that only some commands need, and the extra of `pip install -e '.[...]'` that brings each."""

from __future__ import annotations

# Top-level module -> extra.
EXTRAS = {
    "pyarrow": "eval",
    "grain": "data",
    "tensorflow_datasets": "data",
    "array_record": "data",
    "gcsfs": "gcs",
    "tensorboardX": "train",
    "wandb": "wandb",
}


def remedy(error: ImportError) -> str | None:
    """One line for a missing package of `EXTRAS`, with what installs it; None for any other import that failed."""
    name = (error.name or "").partition(".")[0]
    if not name:  # fsspec raises a sentence of its own
        name = next((package for package in EXTRAS if package in str(error)), "")
    if name not in EXTRAS:
        return None
    return f"{name} is not installed; pip install -e '.[{EXTRAS[name]}]' in the checkout of vo3"
