"""Fixtures of the model tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tiny_models import CONFIGS, Pair, Sample, hf_model, make_sample


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Callable[[str], Pair]:
    """Pair by name of `CONFIGS`, made once."""
    import vo3.models

    made: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            theirs = hf_model(CONFIGS[name])
            theirs.save_pretrained(folder)
            made[name] = Pair(vo3.models.load(folder), theirs, folder)
        return made[name]

    return get


@pytest.fixture(scope="session")
def sample() -> Callable[..., Sample]:
    return make_sample
