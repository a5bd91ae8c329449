"""The picture of a mask: point by point against the dense mask where every token has one, and what it shows where not."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import vo3.models
from vo3.chat import PromptPack, encode
from vo3.chat.tdam import CLIP, OVERVIEW
from vo3.clueworld import tasks, trajectories
from vo3.clueworld.views import crop_policy
from vo3.clueworld.world import make_world
from vo3.models.loading import load_tokenizer
from vo3.trajectory import Trajectory
from vo3.viewer import mask


@pytest.fixture(scope="module")
def conversation():
    """A trajectory of two looks, encoded under TDAM."""
    source = vo3.models.NAMES["clueworld"]
    world, rng = make_world(2031), np.random.default_rng(0)
    question = tasks.KINDS["sum"](world, rng)
    task = tasks.make_task(world, question, video="", task_id="", rng=rng, options=True)
    said = trajectories.make_trajectory(
        world, question, task, pack=PromptPack.load("clueworld"), policy=crop_policy()
    )
    return said, encode(list(said.turns), load_tokenizer(source), policy="predictor")


def test_every_point_is_what_the_mask_says(conversation):
    _, encoded = conversation
    vis = encoded.visibility
    points = mask.matrix(vis, side=len(encoded.ids))
    seen = np.asarray(vis.dense(causal=True))
    causal = np.tril(np.ones(seen.shape, bool))
    colors = np.array([mask.LATER, mask.HIDDEN, mask.TEXT, mask.SHOWN, mask.LOOKED], np.uint8)
    kind = np.broadcast_to(np.asarray(vis.kind), seen.shape)
    wanted = np.where(kind == OVERVIEW, 3, np.where(kind == CLIP, 4, 2))
    wanted = np.where(seen, wanted, np.where(causal, 1, 0))
    assert (points == colors[wanted]).all()
    assert all((wanted == i).any() for i in range(5))


def test_few_points_still_show_what_is_hidden(conversation):
    _, encoded = conversation
    points = mask.matrix(encoded.visibility, side=60)
    assert points.shape == (60, 60, 4)
    hidden = (points == np.array(mask.HIDDEN, np.uint8)).all(-1)
    assert hidden.any() and not np.triu(hidden, 1).any()


def test_the_picture_names_every_turn(conversation):
    said, encoded = conversation
    html = mask.draw(said, encoded)
    for turn, start, end in zip(
        said.turns, encoded.turn_offsets, encoded.turn_offsets[1:], strict=False
    ):
        assert f">{turn.kind} {end - start:,}</text>" in html
    data = re.search(r'href="data:image/png;base64,([^"]+)"', html).group(1)
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (mask.SIDE, mask.SIDE) or image.size == (len(encoded.ids),) * 2
    assert html.count("hidden by TDAM") == 1


def test_another_conversation_is_refused(conversation):
    said, encoded = conversation
    other = Trajectory(said.task, said.turns[:-1], "exceeded")
    with pytest.raises(ValueError, match="encode all of this trajectory"):
        mask.draw(other, encoded)
