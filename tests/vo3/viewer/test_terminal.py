"""The terminal's view of a rollout."""

from __future__ import annotations

import io

import pytest
import viewer_samples
from rich.console import Console

from vo3.rollout import events
from vo3.trajectory import Turn
from vo3.viewer.terminal import Terminal, think_so_far

pytestmark = pytest.mark.quick


def test_think_text_only_ever_grows():
    text = "<think> The <b>card</b> is red, a < b </th </think>\n<answer>B</answer>"
    seen = ""
    for end in range(len(text) + 1):
        now = think_so_far(text[:end])
        # What was shown stays; white space at the end may still turn out to be the last.
        assert now.startswith(seen.rstrip()) or seen.startswith(now)
        assert "</think>" not in now
        assert "answer" not in now
        seen = now if len(now) >= len(seen) else seen
    assert think_so_far(text) == "The <b>card</b> is red, a < b </th"
    assert think_so_far("no tag") == ""


def play(width: int = 80, **sample) -> str:
    """What a terminal shows of a sample trajectory, replayed as events, one character a token."""
    trajectory, clips = viewer_samples.sample((95.0, 119.0), **sample)
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=width, force_terminal=False), duration=600.0)
    terminal.begin("long.mp4", trajectory.task.question, trajectory.task.options)
    for number, turn in enumerate(trajectory.turns):
        if turn.role == "assistant":
            terminal.on_event(events.TurnStart(number))
            for character in turn.text:
                terminal.on_event(events.Token(number, 0, character))
        for shown in turn.observations:
            terminal.on_event(events.Observation(number, shown, clips[shown.index], 0.01))
        terminal.on_event(events.TurnEnd(number, turn))
    terminal.finish(trajectory, right=True)
    return out.getvalue()


def test_the_terminal_tells_the_story():
    text = play(error="too short")
    for words in (
        "Which digit is on the red card?", "A six", "overview  10:00 in 64 frames of 56 \u00d7 28, one every 9.38",
        "turn 1    I look closer.", "\u2192 looks at 1:35 \u2013 1:59, fine", "3 tokens, 1.00 s",
        "\u2192 a call that cannot be carried out", "refused   too short", "\u2192 answers B", "answer    B  seven   \u2713 right",
        "64 overview + 36 clip + 6 written tokens, 2.5 s",
    ):  # fmt: skip
        assert words in text, words
    assert "<think>" not in text
    assert "<grounding>" not in text
    # The window stands at its place: 95 to 119 of 600 s.
    line = next(line for line in text.splitlines() if "\u2501" in line)
    bar = line[line.index("0:00 ") + 5 : line.rindex(" 10:00")]
    assert bar.index("\u2501") == int(95 / 600 * len(bar))
    assert bar.count("\u2501") == int(119 / 600 * len(bar)) - int(95 / 600 * len(bar))


def test_long_thoughts_are_broken_between_words():
    think = "word " * 60 + "an-unbroken-word"
    lines = play(width=50, think=think).splitlines()
    assert all(len(line) <= 80 for line in lines)
    told = [line for line in lines if "word word" in line]
    assert len(told) > 5
    assert all(len(line) <= 50 for line in told)
    assert all(line.startswith((" " * 10, "turn 1    ", "turn 2    ")) for line in told)


def test_markup_of_rich_in_model_text_is_shown_as_it_is():
    text = play(think="[bold]not bold[/bold] [/]", error="[red]x[/]", question="[link]q[/link]?")
    assert "[bold]not bold[/bold] [/]" in text
    assert "[red]x[/]" in text
    assert "[link]q[/link]?" in text


def test_a_turn_without_tags_is_shown_raw():
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=80), duration=10.0)
    turn = Turn("text", "plain words", ids=(1, 2), seconds=0.1, stop="length")
    terminal.on_event(events.TurnStart(2, forced=True))
    terminal.on_event(events.Token(2, 1, "plain words"))
    terminal.on_event(events.TurnEnd(2, turn))
    assert "answer    plain words" in out.getvalue()
    assert "cut by the length limit" in out.getvalue()
