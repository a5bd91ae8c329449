"""The README of the kernels says what is so: its drawings are the masks, its example runs, its table names what there is."""

import operator
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.splash import tpu
from pallas_kernels.visibility import CLIP, OVERVIEW

README = (pathlib.Path(pk.__file__).parent / "README.md").read_text()

# Under the title of each drawing.
DRAWN = {
    "causal": (pk.Visibility.causal(4, valid=3), True),
    "packed [2, 3]": (pk.Visibility.packed([2, 3]), True),
    "windows [2, 1, 2]": (pk.Visibility.windows([2, 1, 2]), False),
    "tree: prefix 2,": (pk.Visibility.tree(2, [1, 2]), True),
    "task-decoupled:": (
        pk.Visibility.causal(5).with_kinds(
            np.array([OVERVIEW, CLIP, 0, 0, 0]), np.array([0, 0, CLIP, OVERVIEW, 0])
        ),
        True,
    ),
}


def drawings():
    """Title -> the 0/1 matrix below it: columns of text that begin where the titles do."""
    lines = README.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("causal   "))
    starts = [lines[at].index(title) for title in DRAWN]
    block = lines[
        at + 1 : next(i for i in range(at, len(lines)) if not lines[i].strip() and i > at + 3)
    ]
    found = {}
    for title, start, stop in zip(DRAWN, starts, [*starts[1:], None], strict=True):
        cells = [
            re.findall(r"\b[01]\b", re.sub(r"[^01 ].*", "", line[start:stop])) for line in block
        ]
        found[title] = np.array([row for row in cells if len(row) > 1], int)
    return found


@pytest.mark.parametrize("title", DRAWN)
def test_the_drawing_is_the_mask(title):
    vis, causal = DRAWN[title]
    np.testing.assert_array_equal(drawings()[title], vis.dense(causal=causal).astype(int))


def example():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [
        line for line in code.splitlines() if line.strip() and not line.startswith(("#", "import"))
    ]
    assert len(lines) <= 10, "ten lines in somebody else's model"
    made = {}
    exec(code, made)
    return made


def test_the_example_runs_in_another_model():
    """Documents of a packed row come out as each does alone, by plain dense attention; gradients follow."""
    made = example()
    vis, length = made["vis"], made["vis"].order.size
    rng = np.random.default_rng(0)
    shapes = {"q": (32, 4, 16), "k": (32, 2, 16), "v": (32, 2, 16), "o": (4, 16, 32)}
    weights = {
        n: jnp.asarray(rng.normal(size=(2, *s)), jnp.float32) * 0.2 for n, s in shapes.items()
    }
    x = jnp.asarray(rng.normal(size=(1, length, 32)), jnp.float32)

    def dense(x, w):
        q, k, v = (jnp.einsum("bld,dnh->bnlh", x, w[n]) for n in "qkv")
        k, v = jnp.repeat(k, 2, axis=1), jnp.repeat(v, 2, axis=1)
        scores = jnp.einsum("bnlh,bnsh->bnls", q, k) / 4
        scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -jnp.inf)
        out = jnp.einsum("bnls,bnsh->bnlh", jax.nn.softmax(scores, axis=-1), v)
        return x + jnp.einsum("bnlh,nhd->bld", out, w["o"])

    got = jax.jit(made["model"])(x, weights)
    for document in np.unique(vis.enter[vis.enter >= 0]):
        mine = np.flatnonzero(vis.enter == document)
        want = x[:, mine]
        for layer in (jax.tree.map(operator.itemgetter(i), weights) for i in range(2)):
            want = dense(want, layer)
        np.testing.assert_allclose(got[:, mine], want, atol=2e-4)
    gradient = jax.jit(jax.grad(lambda w: made["model"](x, w).sum()))(weights)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradient.values())


def test_the_table_of_what_is_supported():
    row = next(line for line in README.splitlines() if line.startswith("| `splash` |"))
    dims = [int(n) for n in re.findall(r"head dim ([\d, ]+)", row)[0].split(",")]
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float16):
        named = bool(re.search(rf"\b{jnp.dtype(dtype).name}\b", row))
        assert (tpu.unsupported(jnp.dtype(dtype), 128) is None) == named
    assert [
        d for d in range(8, 520, 8) if tpu.unsupported(jnp.dtype(jnp.bfloat16), d) is None
    ] == dims
