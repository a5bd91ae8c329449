"""What the notebooks say a runtime holds."""

from __future__ import annotations

import importlib.util
import os
import types

import pytest

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from vo3.evals import compile_check, runtimes
from vo3.evals import config as config_lib
from vo3.evals.commands import parse_settings
from vo3.evals.runtimes import COMPILED, FITS, GIB
from vo3.train.chips import topology
from vo3.train.config import override

ROWS = [fit for fit in FITS if fit.basis == COMPILED]


def device(kind: str, platform: str, gib: float | None = None):
    stats = None if gib is None else {"bytes_limit": gib * GIB}
    return types.SimpleNamespace(device_kind=kind, platform=platform, memory_stats=lambda: stats)


def config_of(fit: runtimes.Fit):
    """The evaluation's configuration and the slice that a row's flags name."""
    words = [word.removeprefix("--") for word in fit.flags.split()]
    where = next(w.removeprefix("topology=") for w in words if w.startswith("topology="))
    settings = parse_settings([w.removeprefix("config.") for w in words if w.startswith("config.")])
    return override(config_lib.defaults(), **settings), where


@pytest.mark.parametrize(
    ("found", "holds", "not_held"),
    [
        (device("cpu", "cpu"), "holds clueworld", "7B"),
        (device("TPU v5 lite", "tpu", 15.7), "holds 7B (int8) with a context of 32,768", "73,728"),
        (device("TPU v6 lite", "tpu", 31.2), "holds 7B (bfloat16)", "arithmetic"),
        (device("NVIDIA L4", "gpu", 16.5), "holds 7B (int8)", "bfloat16"),
        (device("NVIDIA A100-SXM4-40GB", "gpu", 30.0), "holds 7B (bfloat16)", "compiled"),
        (device("Tesla T4", "gpu", 11.0), "not in the table", "holds"),
        (device("TPU v9", "tpu", 99.0), "not in the table", "holds"),
    ],
)
def test_a_runtime_is_told_what_it_holds(found, holds, not_held):
    told = runtimes.describe([found, found])
    assert told.startswith(f"2 x {found.device_kind}")
    assert holds in told and not_held not in told


@pytest.mark.parametrize("fit", ROWS, ids=lambda fit: f"{fit.runtime}-{fit.weights}-{fit.context}")
def test_a_row_says_what_its_flags_say(fit):
    config, where = config_of(fit)
    assert (config.quantize or "bfloat16") == fit.weights
    assert (config.max_length or 32_768) == fit.context
    assert fit.checkpoint in config.checkpoint
    assert fit.gib * GIB <= topology(where).chip.hbm_bytes
    assert where in (f"{fit.runtime}", "v5litepod-1")


@pytest.mark.soak
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("fit", ROWS, ids=lambda fit: f"{fit.runtime}-{fit.weights}-{fit.context}")
def test_the_compilers_figure_is_the_tables(fit, no_compilation_cache):
    found = compile_check.check(*config_of(fit))
    most = max(part.total for part in found.parts) / GIB
    assert most == pytest.approx(fit.gib, abs=0.1)
