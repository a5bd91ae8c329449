from __future__ import annotations

import functools

import pytest
import rollout_fakes as fakes

from vo3.rollout.programs import Programs
from vo3.video import VideoCrop


@pytest.fixture(scope="session")
def tokenizer():
    return fakes.byte_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer):
    return fakes.random_model(tokenizer)


@pytest.fixture(scope="session")
def programs(model):
    """Shared by the tests, so that each compiles only what is new."""
    return Programs(model)


@pytest.fixture(scope="session")
def scripted(model, tokenizer, programs):
    """Makes engines that follow a script."""
    return functools.partial(fakes.scripted_engine, model, tokenizer, programs)


@pytest.fixture(scope="session")
def mp4(tmp_path_factory) -> str:
    return fakes.write_mp4(tmp_path_factory.mktemp("video") / "blocks.mp4")


@pytest.fixture
def crop(mp4) -> VideoCrop:
    return VideoCrop(mp4, fakes.CROP)
