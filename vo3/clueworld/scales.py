"""The sizes that ClueWorld comes in, and what each shows: `clueworld`, which the embedded model is trained on, and `micro`, a small one for ablations.

A scale fixes the worlds, the quotas of VideoCrop, the architecture, and the views of the one-turn baselines: uniform frames at one of three resolutions,
as many as cost the visual tokens of an agent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from vo3.clueworld.config import micro_model_config, model_config
from vo3.clueworld.views import crop_policy
from vo3.clueworld.world import HEIGHT, WorldConfig
from vo3.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from vo3.video import CropPolicy

AGENT = "agent"
# Frames of the baselines, (height, width): a sixth, a third and a half of the native size.
RESOLUTIONS: dict[str, tuple[int, int]] = {
    "coarse": (28, 56),
    "middle": (56, 112),
    "fine": (84, 168),
}
# As many coarse frames as the tokens of an agent with one clip hold: what the overview's resolution tells.
COARSE_ONLY = "coarse-only"
VIEWS = (AGENT, *RESOLUTIONS, COARSE_ONLY)
CLIPS = 2  # a baseline sees the tokens of an agent that looks at both cards of a question on two


@dataclasses.dataclass(frozen=True)
class Scale:
    """One size of ClueWorld.

    Attributes:
      name: of the scale.
      world: how worlds are drawn.
      policy: the agent's quotas.
      model: its architecture, made when asked for.
    """

    name: str
    world: WorldConfig
    policy: CropPolicy
    model: Callable[[], Qwen2_5_VLConfig]

    def tokens(self, clips: int) -> int:
        """Visual tokens of an agent that looks at so many fine clips."""
        return self.policy.overview_quota + clips * self.policy.fine_quota

    def view(self, name: str) -> CropPolicy:
        """How a view samples and resizes the whole video.

        Raises:
          ValueError: an unknown view.
        """
        if name == AGENT:
            return self.policy
        if name == COARSE_ONLY:
            return uniform(self.policy, *RESOLUTIONS["coarse"], tokens=self.tokens(1))
        if name not in RESOLUTIONS:
            raise ValueError(f"unknown view {name!r}; one of {', '.join(VIEWS)}")
        return uniform(self.policy, *RESOLUTIONS[name], tokens=self.tokens(CLIPS))

    def alike(self, name: str) -> bool:
        """Whether every digit lies alike in its token: of the agent's clips, or of a baseline's frames."""
        if name == AGENT:
            return True
        height, _ = RESOLUTIONS["coarse" if name == COARSE_ONLY else name]
        return self.world.pitch % (HEIGHT * 28 // height) == 0


def frozen(view: str) -> tuple[str, ...]:
    """Patterns of the parameters that fine-tuning leaves as they are (`config.frozen`): a baseline's vision tower.

    Muon's steps are as long where little is learned: before the decoder asks for the digits of uniform frames, 200 steps of transcripts take them out of the tower (a linear head reads 97 % before,
    12 % after), and what is left teaches the decoder none. An agent's tower trains along: with one seed of two it learns to read its clips.
    """
    return () if view == AGENT else (r"^vision\.",)


def uniform(policy: CropPolicy, height: int, width: int, *, tokens: int) -> CropPolicy:
    """Uniform frames of a size, at `tokens` visual tokens or, where that is no whole number of frames, up to a pair of frames more."""
    pair = height * width // 28**2
    pairs = -(-tokens // pair)
    return dataclasses.replace(
        policy, max_frames=2 * pairs, overview_quota=pairs * pair, overview_min=pairs * pair
    )


def _micro_policy() -> CropPolicy:
    """An overview of 24 frames in 24 tokens, fine clips of 4 frames at a third of the native size, 112 x 56, in 16."""
    return dataclasses.replace(
        crop_policy(), max_frames=24, overview_quota=24, medium_quota=8, fine_quota=16
    )


MICRO_WORLD = WorldConfig(
    shortest=60,
    longest=90,  # two digits on the clock
    colors=("red", "yellow", "green", "blue", "white"),
    fewest=3,
    most=4,
    visible=(0.04, 0.045),
    overview=23,
    gap=0.085,
    pitch=84,  # a token of a 112 x 56 frame: no digit is cut by the border of a patch
)

SCALES = {
    "clueworld": Scale("clueworld", WorldConfig(), crop_policy(), model_config),
    "micro": Scale("micro", MICRO_WORLD, _micro_policy(), micro_model_config),
}


def get_scale(name: str) -> Scale:
    """The scale of a name.

    Raises:
      ValueError: there is none.
    """
    if name not in SCALES:
        raise ValueError(f"unknown scale {name!r}; one of {', '.join(SCALES)}")
    return SCALES[name]
