"""This project inside other people's evaluators. Nothing here imports them before they ask for it."""

from __future__ import annotations

from typing import Any


def lmms_eval_models() -> Any:
    """What lmms-eval's entry point group `lmms_eval.models` is answered with."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vo3", simple_class_path="vo3.plugins.lmms_eval.VO3")
