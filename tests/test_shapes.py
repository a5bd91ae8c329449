"""The shape checks themselves: they are on, and they refuse what is wrong."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float, Int, TypeCheckError, jaxtyped
from shapes import checked

from pallas_kernels.visibility import Visibility
from vo3.video import patchify

pytestmark = pytest.mark.quick


@jaxtyped(typechecker=checked)
def project(
    x: Float[np.ndarray, "L D"],
    w: Float[np.ndarray, "D F"],
    rows: Int[np.ndarray, "L"] | None = None,
) -> Float[np.ndarray, "L F"]:
    return x @ w if rows is None else (x @ w)[: len(rows) - 1]


def test_right_shapes_pass():
    assert project(np.zeros((3, 4)), np.zeros((4, 5))).shape == (3, 5)


@pytest.mark.parametrize(
    ("x", "w", "rows"),
    [
        (np.zeros((3, 4)), np.zeros((5, 4)), None),  # D differs
        (np.zeros((3, 4), np.int32), np.zeros((4, 5)), None),  # not float
        (np.zeros(4), np.zeros((4, 5)), None),  # rank
        (np.zeros((3, 4)), np.zeros((4, 5)), np.zeros(2, np.int32)),  # L differs
        (np.zeros((3, 4)), np.zeros((4, 5)), np.zeros(3, np.int32)),  # the result is wrong
    ],
)
def test_wrong_shapes_are_refused(x, w, rows):
    with pytest.raises(TypeCheckError):
        project(x, w, rows)


def test_the_packages_are_checked():
    with pytest.raises(TypeCheckError):
        Visibility.segments(jnp.zeros(3, jnp.float32))
    with pytest.raises(TypeCheckError):
        patchify(np.zeros((2, 28, 28, 4), np.uint8))
