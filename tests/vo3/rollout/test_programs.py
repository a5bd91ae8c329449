"""What the compiled programs hold in memory."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from vo3.rollout import weights as weights_lib
from vo3.rollout.programs import Programs
from vo3.rollout.sampler import Drawn, Knobs, Sampling


def _temporaries(model: Qwen2_5_VL) -> int:
    """Bytes that one decoding step holds beside its arguments and results."""
    programs = Programs(model)
    one = np.ones(1, np.int32)
    drawn = Drawn(one, one.astype(np.float32), one, one, one.astype(np.uint32), one > 0)
    lowered = programs._decode.lower(
        programs._weights.leaves,
        programs.empty(1, 64),
        drawn,
        Knobs.of(Sampling()),
        method="greedy",
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_a_decoded_token_copies_no_weights(monkeypatch):
    """A layer's slice of stacked weights is a copy on CPU; small models are therefore split into layers."""
    config = Qwen2_5_VLConfig.tiny(64, text={"num_hidden_layers": 3, "intermediate_size": 1024})
    model = Qwen2_5_VL(config, rngs=nnx.Rngs(0))
    layer = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model.decoder.layers))) // 3
    assert _temporaries(model) < layer / 4
    monkeypatch.setattr(weights_lib, "_SPLIT_BYTES", 0)
    assert _temporaries(model) > layer / 4


def test_an_update_must_be_of_the_same_architecture(model):
    programs = Programs(model)
    programs.update(model)
    other = Qwen2_5_VL(Qwen2_5_VLConfig.tiny(64), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="another architecture"):
        programs.update(other)
