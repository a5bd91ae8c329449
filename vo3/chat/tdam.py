"""Task-Decoupled Attention Masking: what decides a tool call sees the overview, what answers sees the clips.

A policy turns a conversation into a `Visibility`: overview tokens carry the kind bit `OVERVIEW`, clip tokens `CLIP`,
and some assistant tokens, as queries, hide one of them. Everything else stays causal, and a conversation with one
video is causal throughout. Tokens of a video are those strictly between its vision start and vision end.

* `off`: causal.
* `released`: what the published code does, on token ids of Qwen2.5's vocabulary alone. The queries run from the token
  after `<answer` or `<grounding` up to, and not including, the last token of `</answer` or `}</grounding`. With
  one-letter answers the token that predicts the letter is not among them.
* `predictor`: the queries that predict the content tokens of every answer and call.
* `turn`: every token of a turn that answers or calls, think text and header included.

In `predictor` and `turn` an answer given before any clip was seen keeps its view of the overview.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int, Int8

from pallas_kernels.visibility import Visibility
from vo3.chat.tokens import Role, Specials, Tokenizer, assistant_roles, locate

Policy = Literal["off", "released", "predictor", "turn"]

# Bits of Visibility.kind and Visibility.hide.
OVERVIEW = 1
CLIP = 2

# The published code's token sequences, and what they must decode to in the tokenizer at hand.
_ANSWER_OPEN, _ANSWER_CLOSE = (27, 9217), (522, 9217)
_CALL_OPEN, _CALL_CLOSE = (27, 1951, 287), (5361, 1951, 287)
_RELEASED_TEXT = {27: "<", 9217: "answer", 522: "</", 1951: "ground", 287: "ing", 5361: "}</"}


def visibility_from_ids(
    ids: Int[np.ndarray, "L"],
    assistant: Bool[np.ndarray, "L"],
    tokenizer: Tokenizer,
    policy: Policy = "released",
) -> Visibility:
    """The Visibility of one unpadded conversation, from its token ids.

    Args:
      ids: token ids, video pads expanded.
      assistant: which tokens are the assistant's content.
      tokenizer: the tokenizer of `ids`.
      policy: see the module.

    Raises:
      ValueError: shapes differ, or the policy is unknown.
      NotImplementedError: policy `released` with another vocabulary than Qwen2.5's.
    """
    ids, assistant = np.asarray(ids), np.asarray(assistant)
    if ids.ndim != 1 or assistant.shape != ids.shape or assistant.dtype != bool:
        raise ValueError(
            f"ids must be [L] and assistant bool [L], got {ids.shape} and {assistant.dtype} {assistant.shape}"
        )
    specials = Specials.of(tokenizer)
    roles = np.full(ids.shape, Role.CONTROL, np.int8)
    for number, (start, end) in enumerate(_videos(ids, specials)):
        roles[start:end] = Role.CLIP if number else Role.OVERVIEW
    if policy == "released":
        roles[assistant] = Role.TEXT
    elif policy in ("predictor", "turn"):
        for start, end in _runs(assistant):
            roles[start:end] = assistant_roles(locate(ids[start:end], tokenizer), specials)
    return visibility_from_roles(ids, roles, tokenizer, policy)


def visibility_from_roles(
    ids: Int[np.ndarray, "L"], roles: Int8[np.ndarray, "L"], tokenizer: Tokenizer, policy: Policy
) -> Visibility:
    """The Visibility of one unpadded conversation whose roles are known from encoding; see `visibility_from_ids`."""
    if policy not in get_args(Policy):
        raise ValueError(f"unknown TDAM policy {policy!r}; one of {get_args(Policy)}")
    if policy == "released":
        _check_vocabulary(tokenizer)
    causal = Visibility.causal(ids.size)
    clips = roles == Role.CLIP
    if policy == "off" or not clips.any():
        return causal
    if policy == "released":
        answering, calling = _released(ids, roles >= Role.TEXT)
    else:
        answering, calling = (
            _predictor(roles, role)
            if policy == "predictor"
            else _turn(ids, roles, role, Specials.of(tokenizer))
            for role in (Role.ANSWER, Role.CALL)
        )
        answering &= np.cumsum(clips) > 0
    kind = np.where(roles == Role.OVERVIEW, OVERVIEW, 0) + np.where(clips, CLIP, 0)
    hide = np.where(answering, OVERVIEW, 0) + np.where(calling, CLIP, 0)
    return dataclasses.replace(causal, kind=kind.astype(np.int32), hide=hide.astype(np.int32))


def _released(ids: np.ndarray, assistant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    answers = _pairs(ids, assistant, _ANSWER_OPEN, _ANSWER_CLOSE)[-1:]
    calls = _pairs(ids, assistant, _CALL_OPEN, _CALL_CLOSE)[1:]
    masks = []
    for pairs, opening, closing in (
        (answers, _ANSWER_OPEN, _ANSWER_CLOSE),
        (calls, _CALL_OPEN, _CALL_CLOSE),
    ):
        mask = np.zeros(ids.shape, bool)
        for first, last in pairs:
            mask[first + len(opening) : last + len(closing) - 1] = True
        masks.append(mask)
    return masks[0], masks[1]


def _pairs(
    ids: np.ndarray, assistant: np.ndarray, opening: tuple[int, ...], closing: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Places of openings and closings, each opening with the first later closing that is not yet used."""
    closings = iter(_find(ids, assistant, closing))
    pairs, close = [], next(closings, None)
    for first in _find(ids, assistant, opening):
        while close is not None and close <= first:
            close = next(closings, None)
        if close is None:
            break
        pairs.append((first, close))
        close = next(closings, None)
    return pairs


def _find(ids: np.ndarray, allowed: np.ndarray, sequence: tuple[int, ...]) -> list[int]:
    """Where `sequence` begins, with every token of it allowed."""
    places = max(ids.size - len(sequence) + 1, 0)
    hit = np.ones(places, bool)
    for offset, token in enumerate(sequence):
        hit &= (ids[offset : offset + places] == token) & allowed[offset : offset + places]
    return np.flatnonzero(hit).tolist()


def _predictor(roles: np.ndarray, role: Role) -> np.ndarray:
    """Queries whose next token has the role."""
    return np.append(roles[1:] == role, False)[: roles.size]


def _turn(ids: np.ndarray, roles: np.ndarray, role: Role, specials: Specials) -> np.ndarray:
    """Tokens of the assistant turns whose last call or answer has the role, `<|im_start|>` to `<|im_end|>`.

    The header is part of it because its last token predicts the first of the turn.
    """
    mask = np.zeros(roles.shape, bool)
    headers = np.flatnonzero(ids == specials.im_start)
    for start, end in _runs(roles >= Role.TEXT):
        said = roles[start:end]
        said = said[(said == Role.CALL) | (said == Role.ANSWER)]
        if not said.size or said[-1] != role:
            continue
        header = np.searchsorted(headers, start, side="right") - 1
        start = int(headers[header]) if header >= 0 else start
        end += end < ids.size and ids[end] == specials.im_end
        mask[start:end] = True
    return mask


def _videos(ids: np.ndarray, specials: Specials) -> list[tuple[int, int]]:
    """Tokens strictly between a vision start and its vision end, of videos, not of images."""
    ends = np.flatnonzero(ids == specials.vision_end)
    spans = []
    for start in (np.flatnonzero(ids == specials.vision_start) + 1).tolist():
        after = ends[np.searchsorted(ends, start) :]
        if after.size and start < ids.size and ids[start] == specials.video_pad:
            spans.append((start, int(after[0])))
    return spans


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Maximal runs of True as [start, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _check_vocabulary(tokenizer: Tokenizer) -> None:
    for token, text in _RELEASED_TEXT.items():
        found = tokenizer.decode([token]) if token < len(tokenizer) else None
        if found != text:
            raise NotImplementedError(
                f"TDAM policy 'released' is defined on Qwen2.5's token ids, where {token} is {text!r}; this tokenizer "
                f"has {found!r} there. Use 'predictor' or 'turn'."
            )
