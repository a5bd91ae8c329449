"""Runs in lmms-eval's environment: its own scorers on replies given as JSON on standard input, verdicts as JSON on standard output."""

from __future__ import annotations

import importlib
import json
import random
import sys

UNREAD = "unread"


def task(name):
    return importlib.import_module(f"lmms_eval.tasks.{name}.utils")


def letter(name, case):
    """What a task's rule reads; a random choice for what it cannot read is told from a real one by drawing twice."""
    letters, texts = case["letters"], case["texts"]
    utils = task(name)
    if name in ("videomme", "mlvu", "lvbench"):
        return utils.extract_characters_regex(case["reply"]) or UNREAD
    read = lambda: utils.parse_multi_choice_response(
        case["reply"], letters, dict(zip(letters, texts, strict=True))
    )
    if name == "videommmu":
        found = read()
        return found if found in letters else UNREAD
    drawn = set()
    for pick in (lambda some: some[0], lambda some: some[-1]):
        random.choice = pick
        drawn.add(read())
    return drawn.pop() if len(drawn) == 1 else UNREAD


def right(name, case):
    """Whether a task's rule calls an answer in words, or a letter, right."""
    if name == "videommmu":
        utils = task(name)
        # An empty reply is a text there, over whose letters the comparison then runs.
        return utils.eval_open(case["answer"], utils.parse_open_response(case["reply"]))
    doc = {"answer": case["answer"], "question_type": case["kind"], "choices": case.get("choices", {})}  # fmt: skip
    return task("mmvu").evaluate_with_rule_based(doc, case["reply"])


if __name__ == "__main__":
    given = json.load(sys.stdin)
    told = {
        "letters": {n: [letter(n, c) for c in cases] for n, cases in given["letters"].items()},
        "right": {n: [right(n, c) for c in cases] for n, cases in given["right"].items()},
    }
    json.dump(told, sys.__stdout__)
