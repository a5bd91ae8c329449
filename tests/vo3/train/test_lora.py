"""Adapters against their definition, and what trains under them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_rows import PATCHES, TOKENS, document, fresh, layout, rows

from vo3.train.lora import merge_adapters
from vo3.train.sharding import place
from vo3.train.step import Programs, loss_sums

BATCH = rows([[document(0)], [document(1)]], length=TOKENS, patches=PATCHES)
LORA = {"lora.rank": 2, "lora.alpha": 6.0, "optim.rate": 0.05}


def test_adapters_train_alone_from_the_model_as_it_is_and_merge_into_it():
    run, plain = layout(**LORA), layout()
    state, frozen = fresh(run)
    assert {n.rsplit(".", 1)[1] for n in state.params} == {"lora_a", "lora_b"}
    assert {n.split(".")[0] for n in state.params} == {"decoder"}
    assert "decoder.layers.mlp.down.lora_a" in state.params
    assert set(frozen) == set(plain.shapes)
    batch = place(BATCH, run.mesh)

    @jax.jit
    def plain_loss(params):
        sums = loss_sums(plain.merge(params, {}), batch, chunk=16)
        return sums.loss / sums.weight

    # B is zero at first: nothing has changed.
    programs, losses = Programs(run), []
    for _ in range(5):
        kept = jax.device_get(state.params)
        state, metrics = programs.update(state, frozen, batch)
        losses.append(float(metrics.loss))
    np.testing.assert_allclose(losses[0], plain_loss(frozen), rtol=1e-5)
    assert losses[-1] < losses[0]
    merged = merge_adapters({**kept, **frozen}, rank=2, alpha=6.0)
    assert set(merged) == set(plain.shapes)
    np.testing.assert_allclose(plain_loss(merged), losses[-1], rtol=1e-5)
    # W + (alpha / rank) A B, layer by layer.
    name = "decoder.layers.q"
    a, b = (np.asarray(kept[f"{name}.lora_{x}"], np.float64) for x in "ab")
    change = np.stack([3.0 * a[i] @ b[i] for i in range(len(a))])
    before = np.asarray(frozen[f"{name}.kernel"])
    np.testing.assert_allclose(merged[f"{name}.kernel"], before + change, atol=1e-6)
    assert np.abs(change).max() > 1e-3


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="matches no kernel"):
        layout(**LORA, **{"lora.targets": "nothing"})


def test_what_a_short_run_adds_is_not_rounded_away():
    kernel = jax.random.normal(jax.random.key(0), (64, 64), jnp.bfloat16)
    a, b = (1e-3 * jax.random.normal(jax.random.key(i), s) for i, s in ((1, (64, 2)), (2, (2, 64))))
    params = {"q.kernel": kernel, "q.lora_a": a, "q.lora_b": b}
    merged = merge_adapters(params, rank=2, alpha=2.0)["q.kernel"]
    np.testing.assert_allclose(merged - kernel.astype(jnp.float32), a @ b, atol=1e-6)


def test_adapters_in_half_precision_over_a_base_of_the_computations_dtype():
    run = layout(**LORA, dtype="bfloat16")
    assert {str(s.dtype) for s in run.part(frozen=True).values()} == {"bfloat16"}
    assert {str(s.dtype) for s in run.part(frozen=False).values()} == {"float32"}
    assert jnp.dtype("float32") in {x.dtype for x in jax.tree.leaves(run.state.optimizer)}
