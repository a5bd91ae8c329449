"""What the conversations of an engine have in common, and how one begins."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from vo3.chat import Encoded, PromptPack, State, assistant_header, encode
from vo3.chat.positions import MropeTime
from vo3.chat.tokens import Role, Specials, Tokenizer
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.rollout.errors import ContextError
from vo3.rollout.policy import RolloutPolicy
from vo3.trajectory import Task, Turn
from vo3.video import Clip

DEFAULT_MAX_LENGTH = 32_768


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a model is talked to.

    Attributes:
      tokenizer, pack, policy: of the engine.
      ends: tokens that end a turn.
      max_length: tokens of the longest context.
      mrope_time, merge: how positions and grids are counted; see `vo3.chat.encode`.
      model: name for the records.
    """

    tokenizer: Tokenizer
    pack: PromptPack
    policy: RolloutPolicy
    ends: frozenset[int]
    max_length: int
    mrope_time: MropeTime
    merge: int
    model: str | None

    @classmethod
    def of(
        cls, model: Qwen2_5_VL, tokenizer: Tokenizer, pack: PromptPack, policy: RolloutPolicy
    ) -> Setting:
        """The setting of a model under a policy."""
        source = getattr(model, "source", None)
        return cls(
            tokenizer=tokenizer,
            pack=pack,
            policy=policy,
            ends=turn_ends(model, tokenizer),
            max_length=longest(model, policy),
            mrope_time=model.config.mrope_time,
            merge=model.config.vision.spatial_merge_size,
            model=None if source is None else str(source),
        )

    @property
    def limit(self) -> int:
        """Tokens of a context in which the model may still look."""
        return self.max_length - self.policy.reserved(self.max_length)

    @functools.cached_property
    def header(self) -> Int32[np.ndarray, "L"]:
        """What opens an assistant turn."""
        return assistant_header(self.tokenizer)

    def encode(self, turns: Sequence[Turn], after: State | None = None) -> Encoded:
        """Turns to tokens, to be appended behind `after`."""
        return encode(
            turns,
            self.tokenizer,
            mrope_time=self.mrope_time,
            spatial_merge_size=self.merge,
            after=after,
        )


@dataclasses.dataclass(frozen=True)
class Opening:
    """The beginning of a conversation: the system turn, and the question with the overview.

    Attributes:
      task: the question.
      turns: the two turns.
      encoded: their tokens.
      overview: what is shown.
      shared: tokens up to the one that closes the overview; they do not depend on the question.
      seconds: time to read the overview.
    """

    task: Task
    turns: tuple[Turn, Turn]
    encoded: Encoded
    overview: Clip
    shared: int
    seconds: float

    @classmethod
    def of(cls, task: Task, overview: Clip, setting: Setting, *, seconds: float) -> Opening:
        """The opening of a task.

        Raises:
          ContextError: it is longer than the context.
        """
        shown = overview.observation(0)
        system = Turn("system", setting.pack.system(task))
        question = Turn(
            "question", setting.pack.question(task, overview=shown), observations=(shown,)
        )
        encoded = setting.encode([system, question])
        if len(encoded) + len(setting.header) >= setting.limit:
            raise ContextError(
                f"the question takes {len(encoded)} tokens, {shown.tokens} of them the overview, and the context of "
                f"{setting.max_length} must keep {setting.max_length - setting.limit} free; "
                "shorten the question, lower CropPolicy.overview_quota or raise max_length"
            )
        shared = int((encoded.roles == Role.OVERVIEW).nonzero()[0][-1]) + 2
        return cls(task, (system, question), encoded, overview, shared, seconds)


def longest(model: Qwen2_5_VL, policy: RolloutPolicy) -> int:
    """Tokens of the longest context."""
    return policy.max_length or min(DEFAULT_MAX_LENGTH, model.config.text.max_position_embeddings)


def turn_ends(model: Qwen2_5_VL, tokenizer: Tokenizer) -> frozenset[int]:
    """`<|im_end|>`, what the config names, and `<|endoftext|>`: after it a model only babbles."""
    eos = model.config.eos_token_id
    ends = {Specials.of(tokenizer).im_end, *((eos,) if isinstance(eos, int) else eos or ())}
    text_end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    if text_end is not None and text_end != tokenizer.unk_token_id:
        ends.add(text_end)
    return frozenset(ends)


def own_tokenizer(model: Qwen2_5_VL, tokenizer: Tokenizer | None) -> Tokenizer:
    """The given tokenizer, else the model's.

    Raises:
      ValueError: there is neither.
    """
    tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError("the model carries no tokenizer; pass tokenizer=")
    return tokenizer


def own_pack(model: Qwen2_5_VL, pack: PromptPack | str | None) -> PromptPack:
    """The given pack, else the model's, else the default one."""
    pack = pack or getattr(model, "prompt_pack", None) or "default"
    return pack if isinstance(pack, PromptPack) else PromptPack.load(pack)
