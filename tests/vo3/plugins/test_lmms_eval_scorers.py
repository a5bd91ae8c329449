"""Our rules against the functions of the installed lmms-eval, reply by reply; what differs is counted and said why."""

from __future__ import annotations

import itertools
import json
import pathlib
import subprocess

import hosts
import pytest

from vo3.evals import extraction
from vo3.evals.benchmarks import BENCHMARKS

pytestmark = pytest.mark.soak
VERDICTS = pathlib.Path(__file__).parent / "lmms_eval_verdicts.py"

LETTERS = "ABCDE"
TEXTS = (
    "a red kite over the lake",
    "the man leaves",
    "Because of rain",
    "none of the above",
    "an Apple",
)
FORMS = (
    "{x}", "{x}.", "({x})", "({x}) {t}", "{x}. {t}", "{x}: {t}", "{x}) {t}", " {x} ", "{x}\n", "**{x}**", "`{x}`", "\\boxed{{{x}}}",
    "The answer is {x}.", "The correct answer is ({x}).", "Answer: {x}", "answer: {x}", "The best option is {x}", "Best answer: {x}",
    "I choose {x}", "My answer is {x}, not {y}.", "It is {x} and not {y}", "Not {y}. Rather {x}.", "({y}) is wrong, ({x}) is right",
    "{y}. {u}\n{x}. {t}", "Option {x}", "option {x} fits best because the man leaves", "I think that it shows {t}.", "{t}", "{x}{y}",
    "Clearly the video shows {t}, so the answer is {x}", "A bird is seen, hence {x}", "Final answer {x}!", "{x} {y}", "'{x}'", '"{x}".',
    "정답은 {x}", "答案是{x}", "Both {x} and {y} could be, but the best choice is {x}", "In frame 3 Dana appears. {x}", "{x}, because",
)  # fmt: skip
# The same in longer replies.
AROUND = ("{r}", "Sure! {r}", "{r}\nThat is what Dana saw, at least in part.")
PLAIN = (
    "",
    " ",
    "?",
    "no idea",
    "it is yes",
    "I cannot tell from the video",
    "f",
    "Z",
    "1",
    "the second one",
    "none",
    "unknown.",
)
ANSWERS = (
    "5",
    "3.14",
    "1,200",
    "depth-first search",
    "O(n^2)",
    "entropy",
    "C",
    "benzene ring",
    "0.5 m/s",
)
WORDS = (
    "{a}", "The answer is {a}.", "It is {a}", "so the total is = {a}", "We count 3 and 4, thus {a}", "{a} seconds", "not {a} but 7",
    "The result equals {a}", "first.\nThe final answer {a}", "", "I do not know", "{a}{a}", "approximately {a}", "An example of {a}!",
)  # fmt: skip


def letter_cases(letters: str) -> list[dict]:
    texts = TEXTS[: len(letters)]
    made = [
        form.format(x=letters[i], y=letters[j], t=texts[i], u=texts[j])
        for form in FORMS
        for i, j in itertools.permutations(range(len(letters)), 2)
        if j == (i + 1) % len(letters) or "{y}" in form
    ]
    return [
        {"reply": reply, "letters": list(letters), "texts": list(texts)}
        for reply in dict.fromkeys(around.format(r=r) for around in AROUND for r in (*made, *PLAIN))
    ]


def word_cases() -> list[dict]:
    replies = [
        (form.format(a=said), true) for form in WORDS for said in ANSWERS for true in ANSWERS
    ]
    return [{"reply": r, "answer": a, "kind": "open-ended"} for r, a in dict.fromkeys(replies)]


FOUR, FIVE = letter_cases(LETTERS[:4]), letter_cases(LETTERS)
GIVEN = {
    "letters": {
        **dict.fromkeys(("videomme", "mlvu", "lvbench", "videommmu"), FOUR),
        "longvideobench": FIVE,
        "video_holmes": FIVE,
    },
    "right": {
        "videommmu": word_cases(),
        "mmvu": word_cases(),
        "mmvu choice": [
            c | {"answer": "B", "kind": "multiple-choice", "choices": dict(zip(c["letters"], c["texts"], strict=True))}
            for c in FIVE
        ],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> dict:
    python = hosts.environment("lmms-eval")
    done = subprocess.run(
        [str(python), str(VERDICTS)],
        input=json.dumps(GIVEN),
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path_factory.mktemp("hf")), **hosts.OFFLINE},
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def read(rule, cases) -> list[str]:
    return [rule(c["reply"], c["letters"], c["texts"]) or "unread" for c in cases]


def differing(ours, theirs, cases) -> list[tuple]:
    return [(c["reply"], a, b) for a, b, c in zip(ours, theirs, cases, strict=True) if a != b]


@pytest.mark.parametrize("name", ["videomme", "mlvu", "lvbench", "videommmu"])
def test_the_shared_rule_is_theirs(theirs, name):
    """The card's second scorer: tasks of lmms-eval read multiple choice by one rule, where the benchmarks' scripts have their own."""
    assert len(FOUR) > 600
    assert differing(read(extraction.lmms_eval, FOUR), theirs["letters"][name], FOUR) == []


@pytest.mark.parametrize(
    ("name", "rule"),
    [("longvideobench", extraction.long_video_bench), ("video_holmes", extraction.mmmu)],
)
def test_rules_of_their_own_are_theirs(theirs, name, rule):
    """Where they draw a letter at random, ours is unread; an answer is the same otherwise."""
    told = differing(read(rule, FIVE), theirs["letters"][name], FIVE)
    assert told == [] and "unread" in theirs["letters"][name]


def test_words_are_judged_as_theirs(theirs):
    cases = GIVEN["right"]["videommmu"]
    ours = [extraction.video_mmmu_open(c["reply"], c["answer"]) for c in cases]
    told = differing(ours, theirs["right"]["videommmu"], cases)
    # Of an empty reply they compare with the letters of "API Error": "c" is not among them, "r" would be.
    assert told == [] and sum(ours) > 50


def test_where_the_published_rules_and_lmms_evals_part(theirs, capsys):
    """How much the rule alone makes, over these replies; the figures stand in docs/evaluation.md."""
    parted = {}
    for name in ("videomme", "mlvu", "lvbench", "videommmu"):
        ours = read(BENCHMARKS[name].scorer.letter, FOUR)
        parted[name] = differing(ours, theirs["letters"][name], FOUR)
    cases = GIVEN["right"]["mmvu"]
    ours = [extraction.containment(c["reply"], c["answer"]) for c in cases]
    parted["mmvu, words"] = differing(ours, theirs["right"]["mmvu"], cases)
    cases = GIVEN["right"]["mmvu choice"]
    ours = [x == "B" for x in read(BENCHMARKS["mmvu"].scorer.letter, cases)]
    parted["mmvu, choice"] = differing(ours, theirs["right"]["mmvu choice"], cases)
    with capsys.disabled():
        for name, told in parted.items():
            print(f"\n{name}: {len(told)} differ; first {told[:6]}")
    # MLVU's script takes `B` or `(B) ...` alone; theirs reads every usual form.
    assert all(a == "unread" or a != b for _, a, b in parted["mlvu"]) and parted["mlvu"]
    assert all(told for told in parted.values())
