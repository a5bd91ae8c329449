"""From a reply's text to an option letter or a verdict, by the rules of the official scorers.

Each rule is written from the published script named beside it and behaves as it does, oddities included; the tests hold cases worked out by hand
from those scripts. Two departures, both in favour of a number that can be repeated: where a script draws a random option for a reply that it
cannot read, the reply is unread here (and wrong); where it leaves failed items out of the count, they count as wrong.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

# (text of the answer, option letters, option texts) -> letter, or None when the rule finds none.
LetterRule = Callable[[str, Sequence[str], Sequence[str]], str | None]
# (text of the answer, true answer) -> right.
OpenRule = Callable[[str, str], bool]


@dataclasses.dataclass(frozen=True)
class Scorer:
    """How answers become right or wrong.

    Attributes:
      name: where the rule comes from.
      version: revision of that source.
      letter: for multiple choice.
      open: for questions answered in words; None: those need a judge.
    """

    name: str
    version: str
    letter: LetterRule
    open: OpenRule | None = None


# ---------------------------------------------------------------- plain letters


def plain_letter(text: str, letters: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """The reward's rule: the letter alone, or a text that begins with `(A)` or `A.`."""
    if text.strip() in letters:
        return text.strip()
    return next((x for x in letters if text.startswith((f"({x})", f"{x}."))), None)


# "A force acts ...", and not "A is right" or "A because ...".
_ARTICLE = re.compile(
    r"(?:^|(?<=[.!?:]\s)|(?<=\n))\s*A(?=\s+(?!(?:is|was|would|seems|fits|matches|because|since|as|and|or)\b)[a-z])"
)


def standalone_letter(text: str, letters: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """The option letter that the reply begins with, else the last one that stands alone; an article that begins a sentence only where there is no other."""
    first = re.match(r"\s*\(?([A-Z])(?![A-Za-z0-9'])", text)
    alone = list(re.finditer(r"(?<![A-Za-z0-9'])([A-Z])(?![A-Za-z0-9'])", text))
    articles = {match.end() for match in _ARTICLE.finditer(text)}
    found = [first] if first and first.end() not in articles else []
    found += [match for match in alone[::-1] if match.end() not in articles]
    found += [match for match in alone[::-1] if match.end() in articles]
    return next((match[1] for match in found if match[1] in letters), None)


# The published script lacks two commas, which glues two pairs of phrases together; the glued ones never occur.
_VIDEO_MME = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)
_LONG_VIDEO_BENCH = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


def _first_capital(text: str, phrases: Sequence[str], alphabet: str) -> str | None:
    for phrase in phrases:
        text = text.replace(phrase, "")
    found = re.search(f"[{alphabet}]", text)
    return found[0] if found else None


def video_mme(text: str, letters: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """`eval_your_results.py`: the first capital A to D once some opening phrases are taken out, in a word or not."""
    return _first_capital(text.strip(), _VIDEO_MME, "ABCD")


def long_video_bench(text: str, letters: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """As the authors' task in lmms-eval: the first capital A to E. Its random choice for unread replies is left out."""
    return _first_capital(text.strip(), _LONG_VIDEO_BENCH, "ABCDE")


def mlvu(text: str, letters: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """`choice_bench.py`: the character before the first `)`, or the whole text where there is none."""
    end = text.find(")")
    given = text if end < 0 else text[max(end - 1, 0) : end]
    return given if given in letters else None


def lvbench(text: str, letters: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """`answer_util.py`: what stands before the first `)`, after its first `(`, up to a space; the first character of that."""
    given = text.strip().split(")")[0].strip()
    if "(" in given:
        given = given.split("(")[1].strip()
    given = given.split(" ")[0][:1]
    return given if given in letters else None


def video_holmes(text: str, letters: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """`evaluate.py`: the first of A to F that is followed by a space or colon or follows `[`, else the first that occurs at all.

    First in the alphabet, not in the text.
    """
    for letter in "ABCDEF":
        if any(mark in text for mark in (f"{letter} ", f"{letter}:", f"[{letter}")):
            return letter
    return next((letter for letter in "ABCDEF" if letter in text), None)


# ---------------------------------------------------------------- the MMMU family


def _trimmed(text: str) -> str:
    for mark in ",.!?;:'":
        text = text.strip(mark)
    return f" {text} "


def _by_wording(padded: str, letters: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Letters of the options whose words a reply of more than five words repeats."""
    if len(padded.split()) <= 5 or not texts:
        return []
    lower = padded.lower()
    return [x for x, words in zip(letters, texts, strict=True) if words.lower() in lower]


def _last(found: Sequence[str], places: Sequence[int]) -> str:
    return found[max(range(len(found)), key=lambda i: places[i])]


def video_mmmu(text: str, letters: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """VideoMMMU's multiple-choice parser: `A.` and `A:` first, then `(A)`, then `A `, then the option's words; the last one wins."""
    if not text:
        return None
    padded = _trimmed(text)
    with_period = [x for x in letters if f"{x}." in padded]
    with_colon = [x for x in letters if f"{x}:" in padded]
    forms = (
        (with_period + with_colon, "{}." if with_period else "{}:"),
        ([x for x in letters if f"({x})" in padded], "({})"),
        ([x for x in letters if f"{x} " in padded], " {} "),
    )
    for found, form in forms:
        if found:
            return _last(found, [padded.rfind(form.format(x)) for x in found])
    found = _by_wording(padded, letters, texts)
    words = dict(zip(letters, texts, strict=True)) if texts else {}
    return _last(found, [padded.lower().rfind(words[x].lower()) for x in found]) if found else None


def mmmu(text: str, letters: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """MMMU's parser, as lmms-eval's Video-Holmes uses it: `(A)`, then `A `, then `A.`, then the option's words; the last one wins."""
    padded = _trimmed(text)
    forms = ("({})", "{} ", "{}.")
    for form in forms:
        found = [x for x in letters if form.format(x) in padded]
        if found:
            place = "({})" if form == "({})" else " {} "
            return _last(found, [padded.rfind(place.format(x)) for x in found])
    found = _by_wording(padded, letters, texts)
    words = dict(zip(letters, texts, strict=True)) if texts else {}
    return _last(found, [padded.lower().rfind(words[x].lower()) for x in found]) if found else None


# ---------------------------------------------------------------- lmms-eval's shared rule

_PHRASES = tuple(
    f"{the}{which}{what} is"
    for what in ("answer", "option", "choice")
    for the in ("the ", "")
    for which in ("", "correct ", "best ")
    # lmms-eval lists neither a bare "option is" nor a best choice.
    if not (what == "option" and not which) and not (what == "choice" and which == "best ")
) + ("i choose", "i select", "i pick", "my answer is", "my choice is")
_FOREIGN = ("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは")
# Position in the list is the rank: the best form wins, and within a form the occurrence nearest to the end.
_RANKS = {"start": 10, "end": 9, "phrase": 7, "({})": 6, "{}.": 5, "{}:": 4, "{})": 3, "{} ": 2}


def lmms_eval(text: str, letters: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """lmms-eval's `extract_mcq_answer`: forms by rank, the last occurrence of the best form."""
    if not text.strip():
        return None
    bare = text.strip()
    for mark in (*",.!?;:'", '"'):
        bare = bare.strip(mark)
    padded = f" {bare} "
    found = [
        (rank, padded.rfind(form.format(x)), x)
        for form, rank in _RANKS.items()
        if "{}" in form
        for x in letters
        if form.format(x) in padded
    ]
    lower = padded.lower()
    for phrase in (*_PHRASES, *_FOREIGN):
        if (at := lower.find(phrase)) >= 0:
            after = at + len(phrase)
            found += [
                (_RANKS["phrase"], padded.find(x, after), x) for x in letters if x in padded[after:]
            ]
    core = padded.strip()
    for x in letters:
        if core.startswith(x) and not core[1:2].isalpha():
            found.append((_RANKS["start"], 0, x))
        if core.endswith(x) and (len(core) == 1 or not core[-2].isalpha()):
            found.append((_RANKS["end"], len(padded) - 1, x))
    if not found:
        found = [(0, padded.rfind(x), x) for x in letters if x in padded]
    return max(found, key=lambda item: item[:2])[2] if found else None


# ---------------------------------------------------------------- words

# With thousands separators, in scientific notation, plain: looked for one after the other, as MMMU does.
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
# Words after which MMMU's rule expects the answer.
_BEFORE_ANSWER = (
    "could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are ", "in total ",
    "total ", "identify ", "recognize ", "calculated as ", "counted as ", "measured as ", "observed as ",
    "concluded as ", "found to be ", "equals ", "determined to be ", "number of ", "value is ",
    "adds up to ", "have ", "has ",
)  # fmt: skip


def _normal(text: str) -> list[str | float]:
    """A number to two decimals, or lower-case text; a single character is kept from matching inside words."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def video_mmmu_open(text: str, answer: str) -> bool:
    """VideoMMMU's rule for open answers (MMMU's): the true text stands in a key phrase of the reply, or a number of it is equal."""
    if not text:
        return False
    parts = re.split(r"\.\s(?=[A-Z])|\n", text.strip().strip(".").lower())
    keys: list[str] = []
    for number, part in enumerate(parts):
        marks = (*_BEFORE_ANSWER, "=") if number == len(parts) - 1 else _BEFORE_ANSWER
        tails = [part.split(mark)[-1].strip() for mark in marks if mark in part]
        # An empty tail ends the search for a shorter one, and is then no key.
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            keys.append(shortest)
    keys = keys or [text.strip().strip(".").lower()]
    numbers = [n for key in keys for pattern in _NUMBERS for n in re.findall(pattern, key)]
    said = [value for key in (*keys, *numbers) for value in _normal(key)]
    true = _normal(answer)
    return any(
        any(isinstance(t, str) and t in value for t in true)
        if isinstance(value, str)
        else value in true
        for value in said
    )


_SUPERSCRIPTS = str.maketrans({c: f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")})


def containment(text: str, answer: str) -> bool:
    """Normalised containment: the true answer's words, in order and without case or punctuation, stand in the reply."""

    def plain(value: str) -> str:
        kept = re.sub(r"[^\w^.+-]+", " ", value.lower().translate(_SUPERSCRIPTS))
        return " " + " ".join(word.strip(".-") for word in kept.split()).strip() + " "

    return bool(answer.strip()) and plain(answer) in plain(text)


# ---------------------------------------------------------------- the scorers

LETTER = Scorer("letter match (as the reward)", "1", plain_letter)
LMMS_EVAL = Scorer("lmms-eval extract_mcq_answer", "75571cfe", lmms_eval)
