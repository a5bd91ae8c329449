"""Training batches of the embedded world: every batch is a pure function of (seed, step), drawn from pixels rendered on the fly.

Curriculum: the overview of a training row may be cut to `patches` neighbouring temporal patches (of the agent's 32). Short ones teach to transcribe, long ones to search.
Rows of many transcripts come first, of a patch or two to read the clock, of all patches with cards to put the cards in order: little text around what there is to learn.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vo3.chat import Encoded, PromptPack, encode
from vo3.chat.tdam import CLIP, OVERVIEW
from vo3.chat.tokens import Role
from vo3.clueworld import tasks, trajectories
from vo3.clueworld.scales import AGENT, get_scale
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.clueworld.views import cut_overview, noisy, observe, render, sightings
from vo3.clueworld.world import COLORS, HELD_OUT, Card, World, make_world
from vo3.train.batch import Batch, Example, pack_rows
from vo3.trajectory import VIDEO_MARK, Observation, Trajectory, Turn


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
      tdam: the TDAM policy of the trajectories; see `masked`.
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


# Clips that a question of a quadrant looks at, at most.
_CLIPS = {tasks.SINGLE_TOOL: 1, tasks.MULTI_TOOL: 2}


class Stream:
    """`batch(step)` gives the training batch of a step."""

    def __init__(self, config: DataConfig, tokenizer, pack: PromptPack):
        self.config, self.tokenizer, self.pack = config, tokenizer, pack
        self.scale = get_scale(config.scale)
        self.policy = self.scale.view(config.view)
        self.one_look = config.view != AGENT
        self._weights = evidence_weights(tokenizer, config.emphasis)
        self._letters = [tokenizer.convert_tokens_to_ids(letter) for letter in tasks.LETTERS]

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
                row += [self._text(rng) for _ in range(config.lookups)]
                rows.append(fitted(row, config.length, asks=False))
                continue
            world, overview, over_frames = self._overview(self._world(rng), rng)
            for _ in range(config.transcripts):
                row.append(self._transcript(world, overview, i, rng))
            row += [self._text(rng) for _ in range(config.lookups)]
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
        return make_world(HELD_OUT + int(rng.integers(2**40)), config=self.scale.world)

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
        return self._weighted(turns, (("overview", number),))

    def _text(self, rng: np.random.Generator) -> Example:
        """What a last think does once, without anything to see."""
        stated = self.config.stated
        if not self.config.options_share and not stated:
            return self._arithmetic(rng)
        if self.config.ordered and rng.random() < self.config.ordered:
            return self._stated(tasks.OVERVIEW_KINDS, rng) if stated else self._ordered(rng)
        if rng.random() < self.config.matched:
            return self._lookup(rng)
        if not stated:
            return self._arithmetic(rng)
        two = tuple(tasks.QUADRANTS[tasks.MULTI_TOOL])
        return self._stated(two if stated == "digits" else tasks.TOOL_KINDS, rng)

    def _stated(self, kinds: Sequence[str], rng: np.random.Generator) -> Example:
        """A question and the last think on it. What earlier turns say stands before it, where no loss is."""
        trajectory = self._spoken(self._world(rng), kinds, rng)
        asked, *between, last = [t.text.replace(VIDEO_MARK, "") for t in trajectory.turns[1:]]
        if self.config.stated == "digits":
            # Of calls only what was seen in them, except for what the last think says itself.
            between = re.findall(r"the \w+ card shows \d\.", " ".join(between))
            last = last.partition("\n")[0]
        return self._weighted(
            (Turn("question", "\n".join([asked, *between])), Turn("text", last)), ()
        )

    def _ordered(self, rng: np.random.Generator) -> Example:
        """A list of cards, and which comes after one of them."""
        colors = [str(c) for c in rng.permutation(list(COLORS))[: rng.integers(3, 6)]]
        i = int(rng.integers(len(colors) - 1))
        said = f"cards {' '.join(colors)}. after {colors[i]} {colors[i + 1]}."
        turns = (Turn("question", ""), Turn("text", f"<think>{said}</think>"))
        return self._weighted(turns, ())

    def _arithmetic(self, rng: np.random.Generator) -> Example:
        """Sums and comparisons of two digits, as the questions on two cards end."""
        said = []
        while len(said) < 4:
            (a, b), (p, q) = rng.integers(0, 10, 2), rng.permutation(list(COLORS))[:2]
            cards = [Card(str(c), int(d), 0, 1, (0, 0)) for c, d in ((p, a), (q, b))]
            if len(said) % 2 == 0 and a + b <= 9:
                question = tasks.added(*cards)
            elif len(said) % 2 and a != b:
                question = tasks.compared(*cards)
            else:
                continue
            said.append(f"{question.said} {question.answer}.")
        turns = (Turn("question", ""), Turn("text", f"<think>{' '.join(said)}</think>"))
        return self._weighted(turns, ())

    def _lookup(self, rng: np.random.Generator) -> Example:
        """Options and, in another order, the letter of each: what a last think does once, without anything to see.

        Under "sentences" earlier turns stand between, and each text ends a sentence of a last think: bare ones next to their options teach neither distance nor sentences.
        """
        sets = (list(COLORS), [str(d) for d in range(10)], ("yes", "no"))
        texts = rng.permutation(sets[rng.choice(3, p=(0.4, 0.4, 0.2))])[: len(tasks.LETTERS)]
        options = dict(zip(tasks.LETTERS, texts, strict=False))
        listed = "\n".join(f"{letter} {text}" for letter, text in options.items())
        order = [str(letter) for letter in rng.permutation(list(options))]
        if self.config.stated == "sentences":
            listed = "\n".join([listed, *self._between(rng)])
            # The last letter would follow from the others.
            said = " ".join(f"{_sentence(options[k], rng)}, {k}." for k in order[:3])
        else:
            said = " " + " ".join(f"{options[k]}, {k}." for k in order)
        turns = (Turn("question", listed), Turn("text", f"<think>{said}</think>"))
        example = self._weighted(turns, ())
        if self.config.stated == "sentences":
            # What a sentence says is made up, and contradicts what stands before it.
            letters = np.isin(example.encoded.ids, self._letters)
            example = dataclasses.replace(example, weight=example.weight * letters)
        return example

    def _between(self, rng: np.random.Generator) -> list[str]:
        """What stands between a question and the last think of a trajectory with calls."""
        trajectory = self._spoken(self._world(rng), tasks.TOOL_KINDS, rng)
        return [turn.text.replace(VIDEO_MARK, "") for turn in trajectory.turns[2:-1]]

    def _spoken(self, world: World, kinds: Sequence[str], rng: np.random.Generator) -> Trajectory:
        """A trajectory of one of these kinds, for its words: the agent's, whose overview shows every card, in a baseline too."""
        question = tasks.KINDS[str(rng.choice(kinds))](world, rng)
        options = bool(rng.random() < self.config.options_share)
        task = tasks.make_task(world, question, video="-", task_id="-", rng=rng, options=options)
        policy = self.scale.policy
        return trajectories.make_trajectory(world, question, task, pack=self.pack, policy=policy)

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
        return self._weighted(turns, (("clip", len(clips) - 1),))

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
        return self._weighted(trajectory.turns, shown)

    def _weighted(self, turns: Sequence[Turn], shown: tuple[tuple[str, int], ...]) -> Example:
        encoded = masked(encode(turns, self.tokenizer), turns, self.tokenizer, self.config.tdam)
        weight = np.where(encoded.loss_mask, self._weights[encoded.ids], 0).astype(np.float32)
        return Example(encoded, weight, shown)


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


def masked(encoded: Encoded, turns: Sequence[Turn], tokenizer, policy: str) -> Encoded:
    """With the visibility of a TDAM policy.

    `released` is defined on Qwen's ids, which this tokenizer has not; here it is what it comes to there: the queries *at* the content of the last answer and of
    all calls but the first, so that the token that predicts the first of the content is not among them.
    """
    if policy == "off" or not (encoded.roles == Role.CLIP).any():
        return encoded
    if policy != "released":
        return encode(turns, tokenizer, policy=policy)
    roles = encoded.roles
    kind = np.where(roles == Role.OVERVIEW, OVERVIEW, 0) + np.where(roles == Role.CLIP, CLIP, 0)
    answers, calls = _runs(roles == Role.ANSWER), _runs(roles == Role.CALL)
    hide = np.zeros(len(roles), np.int32)
    for start, end in answers[-1:]:
        hide[start:end] = OVERVIEW
    for start, end in calls[1:]:
        hide[start:end] = CLIP
    seen = dataclasses.replace(encoded.visibility, kind=kind.astype(np.int32), hide=hide)
    return dataclasses.replace(encoded, visibility=seen)


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Maximal runs of True as [start, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _stack(videos: list[np.ndarray], most: int = 0) -> np.ndarray:
    """Videos of one size, [N, T, h, w, 3], filled up to `most` with black ones that no row looks at: the shape is every step's.

    Where a stage shows none, one black token stands in.
    """
    if not videos:
        return np.zeros((1, 2, 28, 28, 3), np.uint8)
    black = [np.zeros_like(videos[0])] * (most - len(videos))
    return np.stack([*videos, *black])


def _sentence(text: str, rng: np.random.Generator) -> str:
    """A sentence of a last think that ends with this text."""
    color = rng.choice([c for c in COLORS if c != text])
    if text in ("yes", "no"):
        return f"{color}: {text}"
    if text in COLORS:
        begun = ("first is", "last is", f"after {color}", f"2 {color} 5 {text} higher 5")
        return f"{begun[rng.integers(len(begun))]} {text}"
    first = int(rng.integers(int(text) + 1))
    begun = (
        f"the {color} card shows",
        f"the sum of {first} and {int(text) - first} is",
        "there are",
    )
    return f"{begun[rng.integers(len(begun))]} {text}"


def evidence_weights(tokenizer, emphasis: float) -> Float[np.ndarray, "V"]:
    """Loss weight by token id: `emphasis` for digits, colours, letters, yes and no; 1 for the rest."""
    weights = np.ones(len(tokenizer), np.float32)
    numbers = [*map(str, range(10)), *(f"{n:02d}" for n in range(100))]
    words = [
        *numbers,
        *COLORS,
        *(f"{c}:" for c in COLORS),
        *tasks.LETTERS,
        "yes",
        "no",
        "-",
        ".",
        ", ",
    ]
    for word in words:
        for form in (word, " " + word):
            index = tokenizer.convert_tokens_to_ids(form)
            if index != tokenizer.unk_token_id:
                weights[index] = emphasis
    return weights


def make_stream(config: DataConfig) -> Stream:
    """The stream with the embedded tokenizer and prompt pack; built in every worker process."""
    return Stream(config, build_tokenizer(), PromptPack.load("clueworld"))
