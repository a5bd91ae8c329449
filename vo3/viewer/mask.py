"""Who sees whom in a conversation, as a picture: rows are the tokens that look, columns those that are looked at.

A conversation may have tens of thousands of tokens, and the picture has a few hundred points a side: of neighbouring tokens it shows one,
and where any of them hides something, such a one. So nothing of L x L is made.
"""

from __future__ import annotations

import base64
import io
import itertools

import jax
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from pallas_kernels.visibility import Visibility, visible
from vo3.chat import Encoded
from vo3.chat.tdam import CLIP, OVERVIEW
from vo3.trajectory import Trajectory
from vo3.viewer.markup import Markup, tag

# RGBA of what is seen, by what it is; of what TDAM hides; of what comes later.
TEXT, SHOWN, LOOKED = (128, 128, 128, 110), (58, 110, 200, 255), (222, 140, 40, 255)
HIDDEN, LATER = (200, 40, 60, 255), (0, 0, 0, 0)
SIDE = 420  # points


def chosen(vis: Visibility, side: int = SIDE) -> Int[np.ndarray, " n"]:
    """The tokens that stand for their neighbours, at most `side`; one that hides something before one that does not."""
    length = len(vis.order)
    edges = np.linspace(0, length, min(side, length) + 1).astype(int)
    hides = np.asarray(vis.hide) > 0
    return np.array([a + int(hides[a:b].argmax()) for a, b in itertools.pairwise(edges)])


def matrix(vis: Visibility, side: int = SIDE) -> UInt8[np.ndarray, "n n 4"]:
    """The picture's points, RGBA."""
    at = chosen(vis, side)
    some = jax.tree.map(lambda field: np.asarray(field)[at], vis)
    q, k = (jax.tree.map(lambda f, a=axis: np.expand_dims(f, a), some) for axis in (1, 0))
    free = Visibility(q.order, q.enter, q.leave, q.kind, np.zeros_like(q.hide))
    seen, allowed = visible(q, k, causal=True), visible(free, k, causal=True)
    points = np.empty((len(at), len(at), 4), np.uint8)
    points[:] = TEXT
    points[:, (some.kind & OVERVIEW) > 0] = SHOWN
    points[:, (some.kind & CLIP) > 0] = LOOKED
    points[allowed & ~seen] = HIDDEN
    points[~allowed] = LATER
    return points


def draw(trajectory: Trajectory, encoded: Encoded, *, side: int = SIDE) -> Markup:
    """The picture with the names of the turns beside it, and what the colours mean.

    Args:
      trajectory: a conversation.
      encoded: all of its turns, encoded under the TDAM policy that is to be shown.
      side: points, at most.

    Raises:
      ValueError: `encoded` has another number of turns.
    """
    turns, offsets = trajectory.turns, encoded.turn_offsets
    if len(offsets) != len(turns) + 1:
        raise ValueError(
            f"{len(turns)} turns, but {len(offsets) - 1} were encoded; encode all of this trajectory"
        )
    points = matrix(encoded.visibility, side)
    buffer = io.BytesIO()
    Image.fromarray(points, "RGBA").save(buffer, "PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    scale, margin = SIDE / len(encoded.ids), 110
    lines, below = [], -12.0
    for turn, start, end in zip(turns, offsets, offsets[1:], strict=False):
        y = float(start) * scale
        line = f"M{margin - 6} {y:.1f}H{margin + SIDE}"
        lines.append(tag("path", d=line, stroke="currentColor", stroke_opacity=0.25))
        below = max(below + 12, float(start + end) / 2 * scale + 4)
        name = f"{turn.kind} {int(end - start):,}"
        lines.append(tag("text", name, x=margin - 10, y=f"{below:.1f}", text_anchor="end"))
    picture = tag(
        "svg",
        tag("title", f"Who sees whom among {len(encoded.ids):,} tokens"),
        tag("image", href=uri, x=margin, y=0, width=SIDE, height=SIDE, style="image-rendering: pixelated"),
        lines,
        width=margin + SIDE + 2,
        height=max(SIDE, round(below)) + 4,
        font_size=11,
        fill="currentColor",
        role="img",
    )  # fmt: skip
    names = {"text": TEXT, "overview": SHOWN, "clips": LOOKED, "hidden by TDAM": HIDDEN}
    legend = [
        tag("span", tag("b", "\u25a0 ", style=f"color: rgb{color[:3]}"), name, style="margin-right: 1em")
        for name, color in names.items()
    ]  # fmt: skip
    note = "A row is a token that looks, a column one that is looked at; what comes later is blank."
    return tag("figure", picture, tag("figcaption", legend, tag("br"), note), style="margin: 0")
