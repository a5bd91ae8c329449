"""CropPolicy: every number that decides which frames a video shows and at what size.

The published recipes are presets of plain fields; any field may be overridden by name, in the constructor or with
`dataclasses.replace` (which keeps the other numbers as they stand, so change the recipe in the constructor).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from vo3.trajectory import STRATEGIES

Recipe = Literal["rl", "sft", "eval", "qwen3_vl", "longvt", "videozoomer"]

# How frame numbers are laid over the range [first, last].
#   round     n from clamping, round(linspace) in float32
#   truncate  n = floor(seconds * rate) without a minimum, int(linspace), the last one doubled when n is odd and two share a patch
#   stride    int(i * fps / rate); above the maximum int(i * total / (maximum + 1)), i = 1, 2, ...; as round where the video has
#             fewer frames a second than `rate`, and no more than the maximum
Rule = Literal["round", "truncate", "stride"]

_RL: dict[str, Any] = {
    "sample_fps": 2.0,
    "max_frames": 768,
    "min_frames": 4,
    "crop_fps": 2.0,
    "max_crop_frames": 768,
    "min_crop_frames": 4,
    "overview_quota": 16384,
    "overview_min": 512,
    "coarse_quota": 2048,
    "medium_quota": 4096,
    "fine_quota": 6144,
    "crop_min": 512,
    "patch_max": 768,
    "patch_min": 0,
    "floor_patch_quota": True,
    "token_size": 28,
    "max_aspect": 200.0,
    "min_seconds": 1.0,
    "overview_rule": "round",
    "crop_rule": "round",
    "frames_per_patch": 2,
}
_RECIPES: dict[str, dict[str, Any]] = {
    "rl": _RL,
    "sft": _RL
    | {
        "overview_min": 1024,
        "patch_min": 32,
        "overview_rule": "truncate",
        "crop_rule": "truncate",
    },
    "eval": _RL
    | {
        "overview_min": 0,
        "crop_min": 0,
        "patch_min": 20,
        "floor_patch_quota": False,
        "overview_rule": "stride",
    },
    "qwen3_vl": _RL
    | {
        "max_frames": 128,
        "min_frames": 128,
        "overview_quota": 6144,
        "coarse_quota": 1024,
        "medium_quota": 2048,
        "fine_quota": 3072,
        "token_size": 32,
    },
    # Other agents' tools, every frame a picture of its own (see vo3.chat.dialects). LongVT: 1 fps, at most 768 frames and 128 in a
    # look, at most 224 x 224 pixels each.
    "longvt": _RL
    | {
        "frames_per_patch": 1,
        "sample_fps": 1.0,
        "crop_fps": 1.0,
        "max_crop_frames": 128,
        "min_frames": 2,
        "min_crop_frames": 2,
        "overview_quota": 768 * 64,
        "overview_min": 0,
        "crop_min": 0,
        "patch_max": 64,
        "patch_min": 1,
        "min_seconds": 0.0,
    },
    # VideoZoomer: one frame in two seconds, at most 64; a look has the rate it asks for, at most 16; 25,088 to 100,352 pixels each.
    "videozoomer": _RL
    | {
        "frames_per_patch": 1,
        "sample_fps": 0.5,
        "max_frames": 64,
        "min_frames": 2,
        "max_crop_frames": 16,
        "min_crop_frames": 1,
        "overview_quota": 64 * 128,
        "overview_min": 0,
        "crop_min": 0,
        "patch_max": 128,
        "patch_min": 32,
        "min_seconds": 0.0,
        "overview_rule": "truncate",
        "crop_rule": "truncate",
    },
}
RECIPES: tuple[str, ...] = tuple(_RECIPES)


@dataclasses.dataclass(frozen=True)
class CropPolicy:
    """How a video is sampled and resized. Fields left at None take the recipe's value.

    "Overview" is the whole video (observation 0), "crop" a window of it.

    Attributes:
      recipe: the preset that fills the fields not given.
      sample_fps, max_frames, min_frames: frames per second and limits of the overview.
      crop_fps, max_crop_frames, min_crop_frames: the same for a crop.
      overview_quota, overview_min: most and least tokens of the overview.
      coarse_quota, medium_quota, fine_quota, crop_min: most tokens of a crop by strategy, and the least.
      patch_max, patch_min: most and least tokens of one temporal patch. A minimum that exceeds the
        maximum yields.
      floor_patch_quota: whether the share of the quota that one temporal patch gets is floored.
      token_size: pixels per side of one token.
      max_aspect: the longer side over the shorter one, at most.
      min_seconds: windows shorter than this are refused.
      overview_rule, crop_rule: see `Rule`.
      frames_per_patch: 2: two frames share one temporal patch, as in a video; 1: every frame is a picture of its own.
    """

    recipe: Recipe = "rl"
    sample_fps: float = None  # type: ignore[assignment]
    max_frames: int = None  # type: ignore[assignment]
    min_frames: int = None  # type: ignore[assignment]
    crop_fps: float = None  # type: ignore[assignment]
    max_crop_frames: int = None  # type: ignore[assignment]
    min_crop_frames: int = None  # type: ignore[assignment]
    overview_quota: int = None  # type: ignore[assignment]
    overview_min: int = None  # type: ignore[assignment]
    coarse_quota: int = None  # type: ignore[assignment]
    medium_quota: int = None  # type: ignore[assignment]
    fine_quota: int = None  # type: ignore[assignment]
    crop_min: int = None  # type: ignore[assignment]
    patch_max: int = None  # type: ignore[assignment]
    patch_min: int = None  # type: ignore[assignment]
    floor_patch_quota: bool = None  # type: ignore[assignment]
    token_size: int = None  # type: ignore[assignment]
    max_aspect: float = None  # type: ignore[assignment]
    min_seconds: float = None  # type: ignore[assignment]
    overview_rule: Rule = None  # type: ignore[assignment]
    crop_rule: Rule = None  # type: ignore[assignment]
    frames_per_patch: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.recipe not in _RECIPES:
            raise ValueError(f"unknown crop recipe {self.recipe!r}; one of {list(RECIPES)}")
        for name, value in _RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        for name in ("sample_fps", "crop_fps", "max_aspect"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"CropPolicy.{name} must be a positive number, not {value!r}")
        if self.token_size < 2 or self.token_size % 2:
            raise ValueError(f"CropPolicy.token_size must be even, not {self.token_size!r}")
        for name in ("max_frames", "max_crop_frames"):
            value = getattr(self, name)
            if value < 2 or value % 2:
                raise ValueError(
                    f"CropPolicy.{name} must be even and at least 2 (two frames share a patch), not {value!r}"
                )
        if self.frames_per_patch not in (1, 2):
            raise ValueError(
                f"CropPolicy.frames_per_patch is 1 or 2, not {self.frames_per_patch!r}"
            )
        pairs = (
            ("overview_quota", "max_frames"),
            ("coarse_quota", "max_crop_frames"),
            ("medium_quota", "max_crop_frames"),
            ("fine_quota", "max_crop_frames"),
        )
        for quota, frames in pairs:
            need = getattr(self, frames) // self.frames_per_patch
            if getattr(self, quota) < need:
                raise ValueError(
                    f"CropPolicy.{quota} = {getattr(self, quota)} cannot hold {frames} = {getattr(self, frames)}: "
                    f"one token per temporal patch needs {need}; raise the quota or lower {frames}"
                )
        for rule in (self.overview_rule, self.crop_rule):
            if rule not in ("round", "truncate", "stride"):
                raise ValueError(f"unknown sampling rule {rule!r}; round, truncate or stride")

    def quota(self, strategy: str) -> int:
        """Most tokens of a crop with this strategy."""
        if strategy not in STRATEGIES:
            raise ValueError(f"unknown sampling strategy {strategy!r}; one of {STRATEGIES}")
        return int(getattr(self, f"{strategy}_quota"))

    def fitting(self, token_size: int) -> CropPolicy:
        """This policy, for a vision tower whose tokens are `token_size` pixels a side (`VisionConfig.token_size`).

        Raises:
          ValueError: it plans tokens of another size.
        """
        if self.token_size != token_size:
            fit = [name for name, values in _RECIPES.items() if values["token_size"] == token_size]
            raise ValueError(
                f"the crop recipe {self.recipe!r} plans tokens of {self.token_size} pixels a side, those of this checkpoint "
                f"are {token_size}; take a recipe that is made for it ({', '.join(fit) or 'none is'}), or set token_size={token_size}"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CropPolicy:
        """Inverse of `to_json`; fields that are left out take the recipe's value.

        Raises:
          ValueError: an unknown field.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"unknown CropPolicy fields {unknown}; known are {sorted(known)}")
        return cls(**data)
