"""Turns to tokens: ids, loss mask, roles, positions and Visibility, each born where the token is made.

The template is the ChatML of Qwen2.5-VL: `<|im_start|>role\\n` content `<|im_end|>\\n`; a video or image is
`<|vision_start|>` pads `<|vision_end|>`, and of a video shown frame by frame each frame is such an image. Encoding turns one at a time (`after=encoded.state`) gives exactly what
encoding them together gives, so that an engine can append.

Words of people and models never become special tokens: "<|im_end|>" in a question is tokenised as text, and only the
marks of shown turns become videos.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int8, Int32

from pallas_kernels.visibility import Visibility
from vo3.chat.positions import Grid, MropeTime, grid_tokens, mrope_positions, next_position
from vo3.chat.tdam import Policy, visibility_from_roles
from vo3.chat.tokens import Role, Specials, Tokenizer, assistant_roles, locate, tokenize
from vo3.trajectory import IMAGE_MARK, VIDEO_MARK, Observation, Turn

# What carries loss.
#   sft: the assistant's content and its <|im_end|>, in every turn
#   rl: tokens that were sampled, and nothing else: an <|im_end|> appended after a stop tag carries none, and neither
#       does a turn cut by length
Loss = Literal["sft", "rl"]

_MARKS = re.compile(f"({re.escape(VIDEO_MARK)}|{re.escape(IMAGE_MARK)})")


@dataclasses.dataclass(frozen=True)
class State:
    """Where a conversation stands, so that the next turn can be encoded alone.

    Attributes:
      length: tokens so far.
      position: M-RoPE position of the next token.
      features: rows of vision features so far.
      videos: videos so far; the first is the overview.
    """

    length: int = 0
    position: int = 0
    features: int = 0
    videos: int = 0


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Encoded turns, NumPy.

    Attributes:
      ids: token ids.
      loss_mask: tokens that are trained to be predicted (the target at its own place, not shifted).
      roles: a `Role` per token.
      positions: M-RoPE positions (time, height, width).
      visibility: who sees whom, by the TDAM policy asked for.
      feature_index: row of the vision features that stands at the token, in order of appearance; -1 for plain tokens.
      grids: (t, h, w) in patches of every video and image, in order of appearance.
      second_per_grid: seconds per step of each grid, 2 / sample fps; 0 for images.
      turn_offsets: turn i is ids[turn_offsets[i] : turn_offsets[i + 1]].
      state: what `encode(..., after=)` needs to go on.
    """

    ids: Int32[np.ndarray, "L"]
    loss_mask: Bool[np.ndarray, "L"]
    roles: Int8[np.ndarray, "L"]
    positions: Int32[np.ndarray, "3 L"]
    visibility: Visibility
    feature_index: Int32[np.ndarray, "L"]
    grids: tuple[Grid, ...]
    second_per_grid: tuple[float, ...]
    turn_offsets: Int32[np.ndarray, "N"]
    state: State

    def __len__(self) -> int:
        return self.ids.size


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A run of tokens: `ids`, their roles and loss; `observation` when they are one video's or image's pads."""

    ids: np.ndarray
    roles: np.ndarray
    loss: np.ndarray
    observation: Observation | None = None


def encode(
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    *,
    mrope_time: MropeTime = "constant",
    policy: Policy = "off",
    loss: Loss = "sft",
    spatial_merge_size: int = 2,
    after: State | None = None,
) -> Encoded:
    """Encodes whole turns.

    Args:
      turns: in order; the first of the conversation unless `after` is given.
      tokenizer: a fast tokenizer with the ChatML and vision special tokens, found by name.
      mrope_time: see `vo3.chat.positions.grid_positions`.
      policy: the TDAM policy; only `off` can be continued from `after`.
      loss: what carries loss, see `Loss`. `rl` wants the sampled ids of every assistant turn.
      spatial_merge_size: patches per token along height and width.
      after: state of what was encoded before; None at the start.

    Raises:
      ValueError: a turn that cannot be encoded, by its number and kind.
      NotImplementedError: policy `released` with a vocabulary it is not defined for.
    """
    if loss not in get_args(Loss):
        raise ValueError(f"unknown loss {loss!r}; one of {get_args(Loss)}")
    if after is not None and policy != "off":
        raise ValueError(
            f"policy {policy!r} looks at the whole conversation; encode all turns together"
        )
    state = after or State()
    specials = Specials.of(tokenizer)
    pieces: list[_Piece] = []
    offsets, videos = [0], state.videos
    for number, turn in enumerate(turns):
        try:
            new = _turn_pieces(
                turn, tokenizer, specials, loss=loss, merge=spatial_merge_size, videos=videos
            )
        except ValueError as error:
            raise ValueError(f"turn {number} ({turn.kind}): {error}") from error
        pieces += new
        videos += sum(o.media != "image" for o in turn.observations)
        offsets.append(offsets[-1] + sum(piece.ids.size for piece in new))

    ids = _join([piece.ids for piece in pieces], np.int32)
    roles = _join([piece.roles for piece in pieces], np.int8)
    shown = [piece.observation for piece in pieces if piece.observation is not None]
    grids = tuple(tuple(int(side) for side in o.grid) for o in shown)
    seconds = tuple(_second_per_grid(o) for o in shown)
    is_feature = (roles >= Role.OVERVIEW) & (roles <= Role.IMAGE)
    # A sampled pad is a word like any other: only the tokens made here for a video count as its tokens.
    layout = np.where(is_feature, ids, np.int32(-1))
    positions = mrope_positions(
        layout,
        grids,
        image_token_id=specials.image_pad,
        video_token_id=specials.video_pad,
        spatial_merge_size=spatial_merge_size,
        mrope_time=mrope_time,
        second_per_grid=seconds,
        start=state.position,
    )
    visibility = visibility_from_roles(ids, roles, tokenizer, policy)
    if state.length:
        visibility = dataclasses.replace(
            visibility, order=visibility.order + np.int32(state.length)
        )
    rows = np.cumsum(is_feature, dtype=np.int32) + np.int32(state.features - 1)
    return Encoded(
        ids=ids,
        loss_mask=_join([piece.loss for piece in pieces], bool),
        roles=roles,
        positions=positions,
        visibility=visibility,
        feature_index=np.where(is_feature, rows, np.int32(-1)),
        grids=grids,
        second_per_grid=seconds,
        turn_offsets=np.asarray(offsets, np.int32),
        state=State(
            length=state.length + ids.size,
            position=next_position(positions, start=state.position),
            features=state.features + int(is_feature.sum()),
            videos=videos,
        ),
    )


def encode_turn(
    turn: Turn, tokenizer: Tokenizer, *, after: State | None = None, **kwargs
) -> Encoded:
    """One turn, to be appended to a conversation; see `encode`."""
    return encode([turn], tokenizer, after=after, **kwargs)


def assistant_header(tokenizer: Tokenizer) -> Int32[np.ndarray, "L"]:
    """`<|im_start|>assistant\\n`: what is prefilled before the assistant's turn is sampled."""
    return _header("assistant", tokenizer, Specials.of(tokenizer)).ids


def assistant_tail(ids: Sequence[int], tokenizer: Tokenizer) -> Int32[np.ndarray, "L"]:
    """What follows the sampled `ids` of a turn before the next one: `<|im_end|>` unless it was sampled, and a newline."""
    specials = Specials.of(tokenizer)
    ended = len(ids) > 0 and int(ids[-1]) == specials.im_end
    newline = tokenize("\n", tokenizer, specials).ids
    return newline if ended else np.concatenate([np.asarray([specials.im_end], np.int32), newline])


def _turn_pieces(
    turn: Turn, tokenizer: Tokenizer, specials: Specials, *, loss: Loss, merge: int, videos: int
) -> list[_Piece]:
    if turn.role == "assistant":
        return _assistant_pieces(turn, tokenizer, specials, loss=loss)
    if turn.ids is not None:
        raise ValueError("ids are for sampled turns, and this one was shown; leave them out")
    words = Role.SYSTEM if turn.role == "system" else Role.USER
    header = f"{turn.role}\n"
    pieces = [_control([specials.im_start])]
    # The header's text and the content are one stretch of text to the tokenizer, as in the reference template.
    for number, part in enumerate(_parts(header + turn.text, turn.observations, videos)):
        if isinstance(part, _Picture):
            pieces.append(_control([specials.vision_start]))
            pieces.append(_media(part, specials, merge=merge))
            pieces.append(_control([specials.vision_end]))
        elif part:
            tokens = tokenize(part, tokenizer, specials)
            framing = (
                (tokens.ends <= len(header)) if number == 0 else np.zeros(tokens.ids.shape, bool)
            )
            roles = np.where(framing, Role.CONTROL, words).astype(np.int8)
            pieces.append(_Piece(tokens.ids, roles, np.zeros(tokens.ids.shape, bool)))
    return [*pieces, _control([specials.im_end, *tokenize("\n", tokenizer, specials).ids])]


@dataclasses.dataclass(frozen=True)
class _Picture:
    """What stands between a vision start and a vision end."""

    observation: Observation
    role: Role


def _parts(text: str, observations: Sequence[Observation], videos: int) -> Iterator[str | _Picture]:
    """Text and pictures in order, text first and last; what stands behind `videos` others."""
    rest, words = iter(observations), ""
    for part in _MARKS.split(text):
        if part not in (VIDEO_MARK, IMAGE_MARK):
            words += part
            continue
        shown = next(rest)
        if (shown.media == "image") != (part == IMAGE_MARK):
            raise ValueError(
                f"the mark {part} stands for a {shown.media}, observation {shown.index}"
            )
        role = Role.IMAGE
        if shown.media != "image":
            role, videos = Role.CLIP if videos else Role.OVERVIEW, videos + 1
        for label, picture in _pictures(shown):
            yield words + label
            yield _Picture(picture, role)
            words = ""
    yield words


def _pictures(shown: Observation) -> Iterator[tuple[str, Observation]]:
    """The label and the observation of each run of pads: the whole, or frame by frame."""
    if shown.media != "frames":
        yield "", shown
        return
    count = shown.grid[0]
    if shown.labels and len(shown.labels) != count:
        raise ValueError(
            f"observation {shown.index} has {len(shown.labels)} labels for {count} frames"
        )
    frame = dataclasses.replace(
        shown, media="image", grid=(1, *shown.grid[1:]), tokens=shown.tokens // count, labels=()
    )
    for label in shown.labels or ("",) * count:
        yield label, frame


def _assistant_pieces(
    turn: Turn, tokenizer: Tokenizer, specials: Specials, *, loss: Loss
) -> list[_Piece]:
    if turn.ids is not None:
        tokens = locate(turn.ids, tokenizer)
        # What was sampled here needs no proof; a row may come from another model, or its text may have been edited.
        if loss == "sft" and not tokens.text.startswith(turn.text):
            raise ValueError(
                f"its ids are not its text: they read {tokens.text[:40]!r} with this tokenizer, and the text is {turn.text[:40]!r}; "
                "remove the ids, or use the tokenizer that they were sampled with"
            )
    elif loss == "rl":
        raise ValueError(
            "it has no ids, and RL trains on sampled tokens only; keep them when sampling"
        )
    else:
        tokens = tokenize(turn.text, tokenizer, specials)
    trained = loss == "sft" or turn.stop != "length"
    roles = assistant_roles(tokens, specials)
    pieces = [
        _header("assistant", tokenizer, specials),
        _Piece(tokens.ids, roles, np.full(tokens.ids.shape, trained)),
    ]
    if not (tokens.ids.size and tokens.ids[-1] == specials.im_end):
        end = np.asarray([specials.im_end], np.int32)
        pieces.append(_Piece(end, np.full(1, Role.END, np.int8), np.full(1, loss == "sft")))
    return [*pieces, _control(tokenize("\n", tokenizer, specials).ids)]


def _header(role: str, tokenizer: Tokenizer, specials: Specials) -> _Piece:
    return _control([specials.im_start, *tokenize(f"{role}\n", tokenizer, specials).ids])


def _control(ids: Sequence[int] | np.ndarray) -> _Piece:
    ids = np.asarray(ids, np.int32)
    return _Piece(ids, np.full(ids.shape, Role.CONTROL, np.int8), np.zeros(ids.shape, bool))


def _media(picture: _Picture, specials: Specials, *, merge: int) -> _Piece:
    observation = picture.observation
    size = grid_tokens(observation.grid, spatial_merge_size=merge)
    if observation.tokens != size:
        raise ValueError(
            f"observation {observation.index} says {observation.tokens} tokens, but its grid {observation.grid} has {size}"
        )
    pad = specials.image_pad if observation.media == "image" else specials.video_pad
    return _Piece(
        np.full(size, pad, np.int32),
        np.full(size, picture.role, np.int8),
        np.zeros(size, bool),
        observation,
    )


def _second_per_grid(observation: Observation) -> float:
    if observation.media == "image":
        return 0.0
    if not observation.fps > 0:
        raise ValueError(
            f"observation {observation.index} has fps {observation.fps}; it must be positive"
        )
    return 2.0 / observation.fps  # two frames share one temporal patch


def _join(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)
