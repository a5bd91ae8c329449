"""The reward again, written from the formulas alone: one regex per turn, overlaps measured on elementary segments."""

from __future__ import annotations

import json
import re

import numpy as np

D = 0.05


def parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def letter(text: str, answer: str) -> int:
    blocks = re.findall(r"(?s)<answer>(.*?)</answer>", text)
    if not blocks:
        return 0
    last = blocks[-1]
    if last.strip() == answer:
        return 1
    match = re.match(r"\(([A-Z])\)|([A-Z])\.", last)
    return int(match is not None and answer in match.groups())


def form(turns: list[str]) -> float:
    faults = 0
    for i, text in enumerate(turns):
        tag = "answer" if i == len(turns) - 1 else "grounding"
        match = re.fullmatch(rf"(?s)\n?<think>.*?</think>\n?<{tag}>(.*?)</{tag}>\n?\n?", text)
        if match is None:
            return 0.0
        if tag == "answer":
            continue
        data = parsed(match.group(1))
        if data is None:
            faults += 1
            continue
        faults += data.get("sampling_strategy") not in ("coarse", "medium", "fine")
        pair = data.get("temporal_segment")
        faults += not (isinstance(pair, list) and len(pair) == 2)
    return max(0.0, 1 - faults / len(turns))


def covered(intervals, points):
    """Bool per elementary segment [points[i], points[i + 1]]: is it inside any interval."""
    middle = (points[1:] + points[:-1]) / 2
    return np.any([(a <= middle) & (middle <= b) for a, b in intervals], axis=0)


def g_values(turns: list[str], clues) -> tuple[float, float]:
    """(g1, g2)."""
    predicted = []
    for text in turns:
        for block in re.findall(r"(?s)<grounding>(.*?)</grounding>", text):
            data = parsed(block)
            pair = data.get("temporal_segment") if isinstance(data, dict) else None
            if isinstance(pair, list) and len(pair) == 2:
                predicted.append(sorted(map(float, pair)))
    true = [c for c in clues if c[0] < c[1]]
    if not predicted or not true:
        return 0.0, 0.0
    points = np.unique(np.array(predicted + [list(c) for c in true], np.float64))
    size = np.diff(points)
    p, t = covered(predicted, points), covered(true, points)

    def ratio(a, b):
        return a / b if b > 1e-6 else 0.0

    both = size[p & t].sum()
    iou, iop, iog = (
        ratio(both, size[p | t].sum()),
        ratio(both, size[p].sum()),
        ratio(both, size[t].sum()),
    )
    hull_p = np.min(predicted), np.max(predicted)
    hull_t = np.min(true), np.max(true)
    gap = abs(sum(hull_p) - sum(hull_t)) / 2
    enclosing = max(hull_p[1], hull_t[1]) - min(hull_p[0], hull_t[0])
    diou = iou - (gap / enclosing) ** 2
    return (iou + iop + iog + (diou + 1) / 2) / 4, (2 * iou + iop + iog) / 4


def total(turns: list[str], answer: str, clues, source: str, recipe: str) -> float:
    """Reward of a rollout on a row of one of the four quadrants."""
    acc, fmt = letter(turns[-1], answer), form(turns)
    n, m = len(turns) - 1, len(clues)
    g1, g2 = g_values(turns, clues)
    new = recipe == "qwen3_vl"
    multiplier = 0.0
    if acc == 1 and fmt == 1:
        if source == "clue_single_w_tool" and n:
            multiplier = (
                (1 - D * (n - 1)) * (g1 + 1) / 2 if new else (1 - D * max(0, n - m)) * (g2 + 1) / 2
            )
        elif source == "clue_multi_w_tool" and n:
            multiplier = (g2 + 1) / 2
        elif source == "clue_single_wo_tool":
            multiplier = (1 - (2 * D if new else D) * n) * 0.75
        elif source == "clue_multi_wo_tool":
            multiplier = 0.5
    return acc * (1 + multiplier) + fmt
