"""What a run exports, loaded by transformers: the same logits."""

import jax
import numpy as np
import torch
import transformers
from tiny_rows import MODEL, fresh, layout

from vo3.models import hf_io
from vo3.train.finished import export
from vo3.train.lora import merge_adapters


def logits(folder, ids):
    theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    )
    with torch.no_grad():
        return theirs.eval()(input_ids=torch.tensor(ids).long()).logits.numpy()


def ours(run, params, ids):
    from vo3.models.running import run as forward

    return np.stack([np.asarray(forward(run.merge(params, {}), row)) for row in ids])


def test_transformers_computes_the_same_from_a_run_with_adapters(tmp_path):
    run, plain = layout(**{"lora.rank": 2}), layout()
    state, frozen = fresh(run)
    rng = np.random.default_rng(0)
    # As after training: B is not zero.
    trained = {
        n: x + 0.05 * rng.normal(size=x.shape).astype(np.float32) for n, x in state.params.items()
    }
    params = {n: jax.numpy.asarray(v) for n, v in {**trained, **frozen}.items()}
    export(run, params, tmp_path)
    ids = rng.integers(0, 250, (2, 9)).astype(np.int32)
    merged = merge_adapters(params, rank=2, alpha=16.0)
    expected = ours(plain, merged, ids)
    assert np.abs(expected - ours(plain, frozen, ids)).max() > 1e-2
    np.testing.assert_allclose(logits(tmp_path, ids), expected, atol=1e-4)
    assert hf_io.read_config(tmp_path).text == MODEL.text
