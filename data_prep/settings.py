"""What each stage accepts; the defaults of `configs/data_prep.py`, as typed structs."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class MaterialSettings:
    """Stage 0.

    Attributes:
      questions: asked for per video, at most.
      max_clue_share: of the video; a question that needs more is not decided by one short part.
    """

    questions: int = 4
    max_clue_share: float = 0.25


@dataclasses.dataclass(frozen=True)
class LocaliseSettings:
    """Stage 1.

    Attributes:
      gap: seconds between intervals that count as one.
      least: seconds of an interval; shorter ones are widened.
      most: intervals; more are no localisation.
    """

    gap: float = 3.0
    least: float = 2.0
    most: int = 6


@dataclasses.dataclass(frozen=True)
class VerifySettings:
    """Stage 2.

    Attributes:
      votes: answers from the clips alone.
      needed: of them right.
      overview_votes: answers from the overview alone.
      overview_needed: of them right, to call a look unnecessary.
      temperature: of the votes, so that they differ.
      max_clue_share: of the video; evidence spread wider cannot be looked at (rows that need no look may keep it).
      iou: for grounding, of a vote with the known interval.
      judge_open: whether a model compares open answers that differ in words.
    """

    votes: int = 3
    needed: int = 2
    overview_votes: int = 3
    overview_needed: int = 3
    temperature: float = 0.7
    max_clue_share: float = 0.5
    iou: float = 0.5
    judge_open: bool = True


@dataclasses.dataclass(frozen=True)
class GenerateSettings:
    """Stage 3.

    Attributes:
      max_calls: looks in one row.
      inside: share of a call's window that must lie in a clue, or of the clue in the window.
      tokens_low, tokens_medium, tokens_high: video tokens a pair of frames should have, by the detail needed.
      max_tokens: of the reply.
    """

    max_calls: int = 6
    inside: float = 0.5
    tokens_low: int = 64
    tokens_medium: int = 160
    tokens_high: int = 320
    max_tokens: int = 4096


@dataclasses.dataclass(frozen=True)
class CheckSettings:
    """Stage 4.

    Attributes:
      slack: seconds by which a cited time may miss its window.
      max_think: characters of one think text.
      judge: whether a model judges what the rules let pass.
    """

    slack: float = 2.0
    max_think: int = 4000
    judge: bool = True


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """Of all stages."""

    material: MaterialSettings = MaterialSettings()
    localise: LocaliseSettings = LocaliseSettings()
    verify: VerifySettings = VerifySettings()
    generate: GenerateSettings = GenerateSettings()
    check: CheckSettings = CheckSettings()
