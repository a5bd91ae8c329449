"""The three ways to ask: `tools`, the agent; `direct`, one look and the answer alone; `think`, one look and reasoning before the answer.

All run on the one rollout engine. In the one-look modes no clip is ever shown: a model that calls nevertheless is asked once for its answer.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from typing import Any

import yaml

from vo3.chat import PromptPack
from vo3.rollout.policy import RolloutPolicy
from vo3.train.config import ConfigError
from vo3.video import CropPolicy

# One video in the context: the overview. A call then meets the limit and is answered by the demand for an answer.
_ONE_TURN = {"max_turns": 1, "max_videos": 1}


@dataclasses.dataclass(frozen=True)
class Mode:
    """A way to ask.

    Attributes:
      name: tools, direct or think.
      crop: what videos are shown as.
      rollout: limits.
      pack: prompts.
      quota: the overview quota of a sweep; 0 outside of one.
    """

    name: str
    crop: CropPolicy
    rollout: RolloutPolicy
    pack: PromptPack
    quota: int = 0

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{self.name}-{self.quota}" if self.quota else self.name


def with_overview(crop: CropPolicy, tokens: int) -> CropPolicy:
    """The policy with another overview quota at the same tokens a frame: frames go with the quota.

    Raises:
      ConfigError: too few tokens for two frames.
    """
    frames = 2 * max(int(crop.max_frames * tokens / crop.overview_quota) // 2, 1)
    try:
        return dataclasses.replace(
            crop,
            overview_quota=tokens,
            max_frames=frames,
            min_frames=min(crop.min_frames, frames),
            overview_min=min(crop.overview_min, tokens),
        )
    except ValueError as error:
        raise ConfigError(f"an overview of {tokens} tokens: {error}") from error


def prepare(
    name: str,
    *,
    crop: CropPolicy,
    rollout: RolloutPolicy,
    pack: PromptPack,
    quota: int = 0,
    direct_quota: int = 0,
) -> Mode:
    """A mode from the settings of `tools`.

    Args:
      name: tools, direct or think.
      crop, rollout, pack: as the agent is asked.
      quota: overview tokens; 0: the policy's.
      direct_quota: tokens of one look; 0: the overview's, -1: those and one fine clip's. Not together with `quota`.
    """
    if name == "tools":
        return Mode(name, with_overview(crop, quota) if quota else crop, rollout, pack, quota)
    tokens = quota or {0: 0, -1: crop.overview_quota + crop.fine_quota}.get(
        direct_quota, direct_quota
    )
    return Mode(
        name,
        with_overview(crop, tokens) if tokens else crop,
        dataclasses.replace(rollout, **_ONE_TURN),
        one_look_pack(pack, name),
        quota,
    )


def one_turn(mode: Mode) -> Mode:
    """The mode where a time window is asked for: grounding is one turn without looks, whatever the mode."""
    return dataclasses.replace(mode, rollout=dataclasses.replace(mode.rollout, **_ONE_TURN))


def one_look_pack(pack: PromptPack, mode: str) -> PromptPack:
    """The pack with the system prompts of a one-look mode, and a name that says so."""
    wording = _wordings().get(pack.name, _wordings()["*"])[mode]
    if wording == "own":
        return pack
    if wording == "single":
        single = pack.templates["system.single"]
        wording = {"choice": single, "open": single}
    changes = {"system.tool": wording["choice"], "system.open": wording["open"]}
    return dataclasses.replace(
        pack, name=f"{pack.name}+{mode}", templates={**pack.templates, **changes}
    )


@functools.cache
def _wordings() -> dict[str, Any]:
    text = importlib.resources.files("vo3.evals").joinpath("modes.yaml").read_text("utf-8")
    return yaml.safe_load(text)
