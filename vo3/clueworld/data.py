"""Training batches of the embedded world: every batch is a pure function of (seed, step), drawn from pixels rendered on the fly.

Curriculum: the overview of a training row may be cut to `patches` neighbouring temporal patches (of the agent's 32). Short ones teach to transcribe, long ones to search.
Rows of many transcripts come first, of a patch or two to read the clock, of all patches with cards to put the cards in order: little text around what there is to learn.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vo3.chat import PromptPack
from vo3.clueworld import tasks, trajectories
from vo3.clueworld.loss import LossWeights
from vo3.clueworld.scales import AGENT, get_scale
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.clueworld.views import cut_overview, noisy, observe, render, sightings
from vo3.clueworld.words import Words
from vo3.clueworld.world import World, training_world
from vo3.train.batch import Batch, Example, pack_rows
from vo3.trajectory import VIDEO_MARK, Observation, Trajectory, Turn

# What may stand before a last think in words alone, see `DataConfig.stated`.
STATED = ("", "digits", "turns", "sentences")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a training batch holds.

    Attributes:
      seed: of the stream.
      worlds: worlds a step; each gives a row of questions on a shared overview, see `asked`.
      patches: temporal patches of the overview; 0: all that the view shows, as in evaluation.
      length: tokens of a packed row (one row a world).
      options_share: share of questions with lettered options.
      noise: standard deviation of pixel noise, in grey levels, drawn up to this.
      transcripts: transcripts of overviews a row.
      lookups: examples a row of text alone: the letters of options, and sums and comparisons of two digits.
      ordered: share of those that ask which card of a list comes after another.
      matched: share of the others that give options their letters; the rest are sums and comparisons.
      stated: what lists, sums and comparisons stand behind: "" nothing; "digits" a question, and the list of cards or the two cards' digits;
        "turns" all that a trajectory's earlier turns say; "sentences" the same, and options' letters too stand in sentences behind such turns.
      trajectories: whether rows hold trajectories; if so, the transcripts are of the trajectories' overview, else of one each, and of a clip.
        Without either a row is lookups alone: text.
      asked: what a row of trajectories asks, one question each: quadrants of `vo3.clueworld.tasks`, or several joined by "|" to draw from.
      dense: cut to the patches with cards and some others, not to neighbouring ones.
      emphasis: loss weight of tokens that carry evidence (digits, colours, letters), against 1 for the rest.
      scale: of `vo3.clueworld.scales`.
      view: "agent", or a one-turn baseline of the scale: uniform frames at one resolution, and no clips.
      tdam: the TDAM policy of the trajectories; see `vo3.clueworld.loss.masked`.

    Raises:
      ValueError: `stated` is none of these.
    """

    seed: int = 0
    worlds: int = 16
    patches: int = 0
    length: int = 512
    options_share: float = 0.6
    noise: float = 5.0
    transcripts: int = 1
    lookups: int = 0
    trajectories: bool = True
    ordered: float = 0.0
    matched: float = 0.6
    stated: str = ""
    asked: tuple[str, ...] = (
        tasks.SINGLE_TOOL,
        tasks.MULTI_TOOL,
        f"{tasks.SINGLE_SEEN}|{tasks.MULTI_SEEN}",
        f"{tasks.SINGLE_SEEN}|{tasks.MULTI_SEEN}|{tasks.GROUNDING}",
    )
    dense: bool = False
    emphasis: float = 4.0
    scale: str = "clueworld"
    view: str = AGENT
    tdam: str = "off"

    def __post_init__(self) -> None:
        if self.stated not in STATED:
            raise ValueError(
                f"data.stated is {self.stated!r}; one of {', '.join(map(repr, STATED))}"
            )


# Clips that a question of a quadrant looks at, at most.
_CLIPS = {tasks.SINGLE_TOOL: 1, tasks.MULTI_TOOL: 2}


class Stream:
    """`batch(step)` gives the training batch of a step."""

    def __init__(self, config: DataConfig, tokenizer, pack: PromptPack):
        self.config, self.tokenizer, self.pack = config, tokenizer, pack
        self.scale = get_scale(config.scale)
        self.policy = self.scale.view(config.view)
        self.one_look = config.view != AGENT
        self._weigh = LossWeights(tokenizer, emphasis=config.emphasis, tdam=config.tdam)
        self._words = Words(config, tokenizer, pack, self._weigh)

    def batch(self, step: int) -> Batch:
        """Rows of the step, one of each world of `worlds`: its trajectories packed, or transcripts."""
        config = self.config
        rows, overviews, clips = [], [], []
        for i in range(config.worlds):
            rng = np.random.default_rng([config.seed, step, i])
            row = []
            if not config.trajectories:
                for _ in range(config.transcripts):
                    world, overview, frames = self._overview(self._world(rng), rng)
                    row.append(self._transcript(world, overview, len(overviews), rng))
                    overviews.append(frames)
                if config.transcripts and not self.one_look:
                    row.append(self._reading(self._world(rng), clips, rng))
                row += [self._words.draw(rng) for _ in range(config.lookups)]
                rows.append(fitted(row, config.length, asks=False))
                continue
            world, overview, over_frames = self._overview(self._world(rng), rng)
            for _ in range(config.transcripts):
                row.append(self._transcript(world, overview, i, rng))
            row += [self._words.draw(rng) for _ in range(config.lookups)]
            for asked in config.asked:
                trajectory = self._trajectory(
                    world, str(rng.choice(asked.split("|"))), overview, rng
                )
                row.append(self._example(trajectory, i, len(clips)))
                for clip in trajectory.observations[1:]:
                    clips.append(noisy(render(world, clip, scale=1), rng, config.noise))
            rows.append(fitted(row, config.length, asks=True))
            overviews.append(over_frames)
        most = config.worlds * sum(
            max(_CLIPS.get(quadrant, 0) for quadrant in asked.split("|")) for asked in config.asked
        )
        return pack_rows(
            rows, length=config.length, overviews=_stack(overviews), clips=_stack(clips, most)
        )

    def _world(self, rng: np.random.Generator) -> World:
        return training_world(rng, self.scale.world)

    def _transcript(
        self, world: World, overview: Observation, number: int, rng: np.random.Generator
    ) -> Example:
        """Some patches, and without question or prompt what can be said of them: cards in order, their times, two answers.

        A baseline's frames may miss cards, which are passed over, and tell digits.
        """
        if self.one_look:
            seen = sightings(world, overview, missing=True)
            world = dataclasses.replace(world, cards=tuple(s.card for s in seen))
        if not world.cards:
            return self._said(overview, number, [trajectories.named(world)])
        kinds = rng.permutation(tasks.OVERVIEW_KINDS)[:2]
        asked = [tasks.KINDS[kind](world, rng) for kind in kinds]
        said = [
            " ".join(trajectories.timed(world, overview)) + ".",
            *(f"{question.said} {question.answer}." for question in asked),
        ]
        if self.one_look:
            said.append(" ".join(trajectories.digits(card) for card in world.cards))
        sentences = [trajectories.named(world), *(said[i] for i in rng.permutation(len(said)))]
        return self._said(overview, number, sentences)

    def _said(self, overview: Observation, number: int, sentences: list[str]) -> Example:
        turns = (
            Turn("question", VIDEO_MARK, observations=(overview,)),
            Turn("text", f"<think>{' '.join(sentences)}</think>"),
        )
        return self._weigh(turns, (("overview", number),))

    def _reading(self, world: World, clips: list, rng: np.random.Generator) -> Example:
        """A fine clip and the digit on its card."""
        card = world.cards[rng.integers(len(world.cards))]
        question = tasks.digit_question(card)
        window = (float(card.start), float(card.end))
        clip = observe(world, 0, policy=self.policy, window=window, strategy="fine")
        clips.append(noisy(render(world, clip, scale=1), rng, self.config.noise))
        turns = (
            Turn("question", VIDEO_MARK, observations=(clip,)),
            Turn("text", f"<think>{question.said} {question.answer}.</think>"),
        )
        return self._weigh(turns, (("clip", len(clips) - 1),))

    def _overview(
        self, world: World, rng: np.random.Generator
    ) -> tuple[World, Observation, np.ndarray]:
        """The overview, cut to `patches` around some card, and the world with only the cards that are seen in it."""
        full = observe(world, 0, policy=self.policy)
        count = self.config.patches or full.grid[0]
        if count < full.grid[0]:
            times = np.asarray(full.times).reshape(-1, 2)
            if self.config.dense:
                # Every patch with a card, filled up with others: all that there is to find, in a third of the tokens.
                shown = [i for i, pair in enumerate(times) if any(map(world.card_at, pair))]
                others = rng.permutation([i for i in range(len(times)) if i not in shown])
                picks = sorted([*shown, *others][:count])
            else:
                card = world.cards[rng.integers(len(world.cards))]
                at = int(np.searchsorted(full.times, card.start)) // 2
                first = int(np.clip(at - rng.integers(0, count), 0, len(times) - count))
                picks = range(first, first + count)
            full = cut_overview(full, picks)
            times = np.asarray(full.times)
            seen = tuple(c for c in world.cards if ((times >= c.start) & (times < c.end)).any())
            if not seen:  # the card stood on the border: draw again
                # Uniform frames of a baseline may miss every card of a world.
                return self._overview(self._world(rng) if self.one_look else world, rng)
            world = dataclasses.replace(world, cards=seen)
        # Frames of a sixth of the native size may be drawn at half of it.
        scale = 2 if full.height <= 28 else 1
        return world, full, noisy(render(world, full, scale=scale), rng, self.config.noise)

    def _trajectory(self, world: World, quadrant: str, overview: Observation, rng) -> Trajectory:
        kinds = tasks.QUADRANTS[quadrant]
        question = kinds[str(rng.choice(list(kinds)))](world, rng)
        options = bool(rng.random() < self.config.options_share)
        task = tasks.make_task(world, question, video="-", task_id="-", rng=rng, options=options)
        if self.one_look:
            return trajectories.make_one_look(world, question, task, pack=self.pack, shown=overview)
        return trajectories.make_trajectory(
            world, question, task, pack=self.pack, policy=self.policy, overview=overview
        )

    def _example(self, trajectory: Trajectory, overview: int, clip: int) -> Example:
        looks = len(trajectory.observations) - 1
        shown = (("overview", overview), *(("clip", clip + i) for i in range(looks)))
        return self._weigh(trajectory.turns, shown)


def fitted(row: list[Example], length: int, *, asks: bool) -> list[Example]:
    """The row without the last of its examples where it is longer than `length`, which is seldom: of its texts, and of its transcripts where nothing is asked.

    Raises:
      ValueError: a row that `asks` is longer without any text.
    """
    over = sum(len(example.encoded.ids) for example in row) - length
    kept = []
    for example in reversed(row):
        if over > 0 and not (asks and example.shown):
            over -= len(example.encoded.ids)
        else:
            kept.append(example)
    if over > 0:
        raise ValueError(
            f"data.length is {length}: a row's videos and what is asked of them take {length + over} tokens; raise the row length"
        )
    return kept[::-1]


def _stack(videos: list[np.ndarray], most: int = 0) -> np.ndarray:
    """Videos of one size, [N, T, h, w, 3], filled up to `most` with black ones that no row looks at: the shape is every step's.

    Where a stage shows none, one black token stands in.
    """
    if not videos:
        return np.zeros((1, 2, 28, 28, 3), np.uint8)
    black = [np.zeros_like(videos[0])] * (most - len(videos))
    return np.stack([*videos, *black])


def make_stream(config: DataConfig) -> Stream:
    """The stream with the embedded tokenizer and prompt pack; built in every worker process."""
    return Stream(config, build_tokenizer(), PromptPack.load("clueworld"))
