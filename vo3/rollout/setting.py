"""What the conversations of an engine have in common, and how one begins."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from vo3.chat import Encoded, PromptPack, State, assistant_header, encode
from vo3.chat.dialects import DEFAULT, Dialect, get_dialect
from vo3.chat.positions import MropeTime
from vo3.chat.tokens import Role, Specials, Tokenizer
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.models.safetensors_io import CheckpointError
from vo3.rollout.errors import ContextError, RolloutError
from vo3.rollout.policy import RolloutPolicy
from vo3.trajectory import Observation, Strategy, Task, Turn
from vo3.video import Clip, CropPolicy


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
    def dialect(self) -> Dialect:
        """How the model calls."""
        return get_dialect(self.policy.dialect)

    @property
    def limit(self) -> int:
        """Tokens of a context in which the model may still look."""
        return self.max_length - self.policy.reserved(self.max_length)

    @functools.cached_property
    def header(self) -> Int32[np.ndarray, "L"]:
        """What opens an assistant turn."""
        return assistant_header(self.tokenizer)

    def shown(self, clip: Clip, index: int, strategy: Strategy | None = None) -> Observation:
        """What the trajectory keeps of a clip, with the pack's words before each frame where frames stand alone."""
        observation = clip.observation(index, strategy)
        labels = self.pack.labels(observation)
        return dataclasses.replace(observation, labels=labels) if labels else observation

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
          RolloutError: its text cannot be written in this vocabulary.
        """
        shown = setting.shown(overview, 0)
        system = Turn("system", setting.pack.system(task))
        question = Turn(
            "question", setting.pack.question(task, overview=shown), observations=(shown,)
        )
        try:
            encoded = setting.encode([system, question])
        except ValueError as error:
            raise RolloutError(f"the question cannot be encoded: {error}") from error
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
    most = model.config.text.max_position_embeddings
    return policy.max_length or min(policy.limits.max_length, most)


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


def own_dialect(model: Qwen2_5_VL) -> str:
    """The model's dialect, else the default one."""
    return getattr(model, "dialect", None) or DEFAULT


def own_pack(
    model: Qwen2_5_VL, pack: PromptPack | str | None, dialect: str | None = None
) -> PromptPack:
    """The given pack, else the model's, else the dialect's; a model's pack is worded for its own dialect alone."""
    dialect = dialect or own_dialect(model)
    if pack is None and dialect == own_dialect(model):
        pack = getattr(model, "prompt_pack", None)
    pack = pack or get_dialect(dialect).pack
    return pack if isinstance(pack, PromptPack) else PromptPack.load(pack)


def own_crop(model: Qwen2_5_VL, dialect: str | None = None) -> CropPolicy:
    """What the model is shown: its own policy, which is made for its own dialect alone, else the dialect's.

    Raises:
      CheckpointError: the policy plans tokens of another size than the model's.
    """
    dialect = dialect or own_dialect(model)
    own = getattr(model, "crop_policy", None) if dialect == own_dialect(model) else None
    policy = own or CropPolicy(recipe=get_dialect(dialect).recipe)
    try:
        return policy.fitting(model.config.vision.token_size)
    except ValueError as error:
        raise CheckpointError(
            f"{getattr(model, 'source', None) or 'the model'}: {error}"
        ) from error
