"""A backend that answers from the synthetic world's truth, with a set error rate and faults planted by kind.

It makes the pipeline run and be measured without any endpoint: which rows are sound is known, so what each stage catches and
what it loses can be counted. It reads a request's `inputs`, not its wording.

Faults, each in a share of the triplets that follows from the triplet's id alone:
  window    stage 1 points at a part that does not show the evidence
  times     stage 3 cites a time outside the parts looked at
  audio     stage 3 leans on something heard
  circular  stage 3 gives the answer as its own reason, or speaks of given clues
  slip      stage 3 ends in another answer than the known one
(`answer`, a wrong known answer, is the source's fault: `data_prep.sources.clueworld`.)
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from data_prep.jsonish import clock_text
from data_prep.keys import content_key, draw
from data_prep.models.base import Client, ModelError, RawReply, Request
from data_prep.sources import clueworld
from vo3.clueworld import tasks

FAULTS = ("window", "times", "audio", "circular", "slip")

_AUDIO = (
    "the narrator says so.", "you can hear it being counted.", "the voice-over confirms it.",
    "the music gets louder here.", "as the host explains aloud, this is it.", "a loud bang marks it.",
    "judging by the soundtrack, this is the place.", "someone shouts the number.",
    "the commentary mentions it.", "her humming gives it away.", "it is spoken in the background.",
    "the applause shows that it matters.",
)  # fmt: skip
_CIRCULAR = (
    "the answer is {answer} because {answer} is the answer.",
    "since the given answer is {answer}, it must be {answer}.",
    "as the provided clue says, this is where to look.",
    "the hint points here.",
    "{answer} is right, so it has to be {answer}.",
    "we were told that it is {answer}.",
    "according to the annotation, this is the part.",
    "it is {answer}, as we know that {answer} is correct.",
)


@dataclasses.dataclass(frozen=True)
class OracleSettings:
    """How good the oracle is.

    Attributes:
      seed: decides every chance.
      error_rate: share of answers and verdicts that are wrong by chance.
      guess: share of questions answered by a guess when the pictures do not show the answer.
      mess: share of replies written untidily (fences, prose, odd time formats, reversed ends).
      delay: seconds that every reply takes.
      faults: share of triplets with each planted fault, by kind.
    """

    seed: int = 0
    error_rate: float = 0.0
    guess: float = 0.2
    mess: float = 0.0
    delay: float = 0.0
    faults: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.faults) - set(FAULTS):
            raise ValueError(f"unknown faults {sorted(unknown)}; there are {FAULTS}")


class OracleClient(Client):
    """See the module's text."""

    def __init__(self, settings: OracleSettings = OracleSettings()):
        self.settings = settings

    def identity(self) -> list[Any]:
        """See `Client`. The delay decides no reply."""
        fields = dataclasses.asdict(self.settings)
        return ["clueworld-oracle", {k: v for k, v in fields.items() if k != "delay"}]

    def planted(self, fault: str, name: str) -> bool:
        """Whether this triplet has this fault, where it can have it."""
        rate = self.settings.faults.get(fault, 0.0)
        if draw("fault", fault, self.settings.seed, name) >= rate:
            return False
        case = clueworld.case(name)
        # Grounding rows bring their window; where every part of a video says the same, no window is the wrong one.
        return fault != "window" or (case.kind != "grounding" and bool(case.shows))

    async def complete(self, request: Request, *, key: str) -> RawReply:
        """See `Client`."""
        if self.settings.delay:
            await asyncio.sleep(self.settings.delay)
        name = request.inputs.get("id")
        try:
            case = clueworld.case(str(name))
        except ValueError as error:
            raise ModelError("request", str(error)) from None
        answer = {
            "localise": self._localise,
            "verify": self._verify,
            "ground": self._ground,
            "generate": self._generate,
            "judge": self._judge,
            "caption": self._caption,
            "material": self._material,
            "equivalent": self._equivalent,
        }[request.stage](case, request, key)
        text = self._written(answer, key)
        words = len(request.system) + len(request.text)
        frames = 64 if request.media is not None else 0
        return RawReply(text, words // 4 + frames, len(text) // 4, False, "clueworld-oracle")

    def _errs(self, key: str) -> bool:
        return draw("error", self.settings.seed, key) < self.settings.error_rate

    def _localise(self, case: clueworld.Case, request: Request, key: str) -> Any:
        detail = "high" if case.needs else "low"
        if not case.shows:  # a card that is not there: all of the video says so
            whole = [[0.0, case.triplet.info.duration]]
            return {"clues": _clues(whole), "detail": "low"}
        windows = [[s.start, s.end] for s in clueworld.seen(case.world, case.shows)]
        if self.planted("window", case.triplet.id):
            windows = [_elsewhere(case)]
        return {"clues": _clues(windows), "detail": detail}

    def _verify(self, case: clueworld.Case, request: Request, key: str) -> Any:
        windows = request.inputs["windows"] or [[0.0, case.triplet.info.duration]]
        close = bool(request.inputs["windows"])
        visible = {
            c
            for c in case.world.cards
            if any(min(c.end, b) - max(c.start, a) > 0.25 for a, b in windows)
        }
        right = self._seen_answer(case, visible, close)
        if self._errs(key):
            right = None
        if right is None:
            if draw("guess", self.settings.seed, key) >= self.settings.guess:
                return {"seen": "nothing that decides it", "answer": "unknown"}
            choices = list(case.triplet.options or {str(n): "" for n in range(10)})
            pick = draw("pick", self.settings.seed, key)
            return {"seen": "a guess", "answer": choices[int(pick * len(choices))]}
        return {"seen": case.said, "answer": right}

    def _seen_answer(self, case: clueworld.Case, visible: set, close: bool) -> str | None:
        """The answer that these pictures give, as letter or words; None when they do not show it."""
        if case.needs:
            words = _true_words(case) if close and set(case.needs) <= visible else None
        elif case.asked == "exists":
            # Nobody who sees a part of a video knows what is not in it.
            whole = len(visible) == len(case.world.cards)
            words = (
                "yes" if set(case.shows) & visible else "no" if whole and not case.shows else None
            )
        else:
            cards = sorted(visible, key=lambda c: c.start)
            words = {
                "count": str(len(cards)),
                "first": cards[0].color if cards else None,
                "last": cards[-1].color if cards else None,
                "next": _following(case, [c.color for c in cards]),
            }[case.asked]
        if words is None or not case.triplet.options:
            return words
        return next((k for k, text in case.triplet.options.items() if text == words), None)

    def _ground(self, case: clueworld.Case, request: Request, key: str) -> Any:
        if self._errs(key):
            return {"segment": None}
        sight = clueworld.seen(case.world, case.shows)[0]
        return {"segment": [clock_text(sight.start), clock_text(sight.end)]}

    def _generate(self, case: clueworld.Case, request: Request, key: str) -> Any:
        name, answer = case.triplet.id, case.triplet.answer
        windows = request.inputs["windows"] if request.inputs["tool"] else ()
        *looks, last = clueworld.thinks(case, windows)
        turns: list[dict[str, Any]] = [
            {"think": think, "grounding": list(window)}
            for think, window in zip(looks, windows, strict=True)
        ]
        if self.planted("times", name):
            last = f"{last} {self._cited(case, request, bool(turns))}"
        if self.planted("audio", name):
            last = f"{last} {self._pick(_AUDIO, 'audio', name)}"
        if self.planted("circular", name):
            phrase = self._pick(_CIRCULAR, "circular", name)
            last = f"{last} {phrase.format(answer=answer or 'this interval')}"
        if self.planted("slip", name):
            answer = clueworld.spoiled(case.triplet).answer or "nothing"
        turns.append({"think": last, "answer": answer})
        if case.kind == "grounding":
            clue = case.triplet.clues[0]
            turns[-1]["answer"] = {"temporal_segment": [clue.start, clue.end]}
            if self.planted("slip", name):
                shifted = clueworld.spoiled(case.triplet).clues[0]
                turns[-1]["answer"] = {"temporal_segment": [shifted.start, shifted.end]}
        return {"turns": turns}

    def _cited(self, case: clueworld.Case, request: Request, looked: bool) -> str:
        """A sentence with a time that no part looked at holds."""
        duration = case.triplet.info.duration
        at = duration + 95.0
        if looked:
            windows = request.inputs["windows"]
            at = next(
                t for t in (duration * n / 41 for n in range(41))
                if all(t < a - 20 or t > b + 20 for a, b in windows)
            )  # fmt: skip
        forms = (f"at {clock_text(at)} it is clear.", f"at {at:.0f} seconds it shows again.",
                 f"it is back at {at:.1f}s.", f"see {clock_text(at)}-{clock_text(at + 4)} too.")  # fmt: skip
        return self._pick(forms, "times", case.triplet.id)

    def _judge(self, case: clueworld.Case, request: Request, key: str) -> Any:
        """Knows what it planted, and is wrong about it at the set rate."""
        faults = [f for f in FAULTS if f != "window" and self.planted(f, case.triplet.id)]
        valid = not faults
        if self._errs(key):
            valid = not valid
        said = "every step rests on what is seen" if valid else f"unsound: {', '.join(faults)}"
        return {"analysis": said, "is_valid": valid}

    def _caption(self, case: clueworld.Case, request: Request, key: str) -> Any:
        sights = clueworld.seen(case.world)
        texts = [f"a {s.card.color} card with the digit {s.card.digit}" for s in sights]
        pairs = [[clock_text(s.start), clock_text(s.end)] for s in sights]
        rows = [{"timestamp": p, "text": t} for p, t in zip(pairs, texts, strict=True)]
        return {"captions": rows}

    def _material(self, case: clueworld.Case, request: Request, key: str) -> Any:
        questions = []
        for sight in clueworld.seen(case.world)[: request.inputs["count"]]:
            question = tasks.digit_question(sight.card)
            options = [question.answer, *question.choices[:3]]
            turn = int(draw("turn", self.settings.seed, case.triplet.id, sight.card.color) * 4)
            options = options[-turn:] + options[:-turn] if turn else options
            questions.append(
                {
                    "question": question.text,
                    "options": options,
                    "answer": options.index(question.answer),
                    "clue": [clock_text(sight.start), clock_text(sight.end)],
                }
            )
        return {"questions": questions}

    def _equivalent(self, case: clueworld.Case, request: Request, key: str) -> Any:
        known, given = request.inputs["known"], request.inputs["given"]
        return {"same": known.strip().lower() == given.strip().lower()}

    def _pick(self, choices: tuple[str, ...], *parts: str) -> str:
        return choices[int(draw("pick", self.settings.seed, *parts) * len(choices))]

    def _written(self, answer: Any, key: str) -> str:
        """The reply as text, untidy at the set rate."""
        if draw("mess", self.settings.seed, key) >= self.settings.mess:
            return json.dumps(answer)
        form = int(draw("form", self.settings.seed, key) * 5)
        body = json.dumps(answer, indent=1)
        if form == 0:
            return f"```json\n{body}\n```"
        if form == 1:
            return f"Here is what I found.\n{body}\nI hope this helps."
        if form == 2:
            return body.replace("\n}", ",\n}")
        if form == 3:
            return repr(answer)
        for clue in answer.get("clues", []):
            clue["timestamp"] = clue["timestamp"][::-1]
        return json.dumps(answer)


def _following(case: clueworld.Case, colors: list[str]) -> str | None:
    """The colour after the one that the question names, among those seen."""
    before = [i for i, color in enumerate(colors[:-1]) if f" {color} " in case.question.text]
    return colors[before[0] + 1] if before else None


def _true_words(case: clueworld.Case) -> str:
    options = case.triplet.options
    return options[case.triplet.answer] if options else case.triplet.answer


def _clues(windows: list[list[float]]) -> list[dict[str, Any]]:
    return [{"timestamp": [clock_text(a), clock_text(b)], "text": "a card"} for a, b in windows]


def _elsewhere(case: clueworld.Case) -> list[float]:
    """A window that shows none of the evidence."""
    duration = case.triplet.info.duration
    length = max(8.0, duration / 60)
    cards = case.shows
    step = duration / 97
    name = content_key("elsewhere", case.triplet.id)
    first = int(name[:6], 16) % 97
    for n in range(97):
        start = float(int((first + n) % 97 * step))
        end = start + int(length)
        if end <= duration and all(end < c.start or start > c.end for c in cards):
            return [start, end]
    raise AssertionError("evidence fills no video")
