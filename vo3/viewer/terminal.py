"""A rollout in the terminal, as it happens: think text token by token, windows on a line, what each turn cost."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from vo3.rollout import events
from vo3.trajectory import Trajectory, Turn
from vo3.viewer.pictures import clock, rate, window

COLORS = ("red", "cyan", "magenta", "green", "yellow", "blue")
LABEL = 10  # columns of the margin
_OPEN, _CLOSE = "<think>", "</think>"


def think_so_far(text: str) -> str:
    """What is certain to be think text in an unfinished turn: no tag, nor the beginning of one, is part of it."""
    start = text.find(_OPEN)
    if start < 0:
        return ""
    rest = text[start + len(_OPEN) :]
    end = rest.find(_CLOSE)
    if end >= 0:
        return rest[:end].strip()
    # A tag that has only begun, `</thi`, must not be shown.
    for size in range(min(len(rest), len(_CLOSE) - 1), 0, -1):
        if _CLOSE.startswith(rest[-size:]):
            rest = rest[:-size]
            break
    return rest.lstrip()


class Terminal:
    """Writes the events of one rollout to a console.

    Pass `on_event` to `VideoAgent.ask`, and the finished trajectory to `finish`.
    """

    def __init__(self, console: Console, *, duration: float):
        """Starts on a fresh line.

        Args:
          console: where to write.
          duration: seconds of the video.
        """
        self.console = console
        self.duration = duration
        self._text = ""  # of the running turn, raw
        self._shown = ""  # of its think text
        self._column = 0
        self._pending = ""  # an unfinished word
        self._looks: list[tuple[float, float]] = []
        self._turns = 0

    def begin(self, video: str, question: str, options: Mapping[str, str] | None) -> None:
        """The question, before anything runs."""
        self.console.print(Text(f"{video}, {clock(self.duration)}", style="dim"), highlight=False)
        self.console.print(Text(question, style="bold"), highlight=False)
        if options:
            line = Text()
            for letter, text in options.items():
                line.append(f"{letter} ", style="bold dim").append(f"{text}    ")
            self.console.print(line, highlight=False)
        self.console.print()

    def wrote(self, path: str) -> None:
        """Names a file that was written."""
        self._margin("wrote")
        self.console.print(Text(path), highlight=False, soft_wrap=True)

    def on_event(self, event: events.Event) -> None:
        """Shows one event."""
        match event:
            case events.TurnStart():
                self._turns += 1
                self._text = self._shown = ""
                self._margin("answer" if event.forced else f"turn {self._turns}")
            case events.Token():
                self._text += event.text
                think = think_so_far(self._text)
                if think.startswith(self._shown):
                    self._stream(think[len(self._shown) :])
                    self._shown = think
            case events.Observation():
                self._observed(event)
            case events.TurnEnd():
                self._ended(event.turn)

    def finish(self, trajectory: Trajectory, *, right: bool | None = None) -> None:
        """The answer and what the whole question cost."""
        options = trajectory.task.options or {}
        answer = trajectory.answer
        line = Text()
        if answer is None:
            line.append(f"no answer ({trajectory.outcome})", style="bold yellow")
        else:
            line.append(answer, style="bold")
            if answer in options:
                line.append(f"  {options[answer]}")
            if trajectory.outcome != "answered":
                line.append(f"  ({trajectory.outcome})", style="yellow")
        if right is not None:
            line.append(
                "   \u2713 right" if right else "   \u2717 wrong",
                style="bold green" if right else "bold red",
            )
        self.console.print()
        self._margin("answer")
        self.console.print(line, highlight=False)
        shown = trajectory.observations
        overview = sum(o.tokens for o in shown if o.index == 0)
        clips = sum(o.tokens for o in shown if o.index > 0)
        written = sum(len(t.ids) for t in trajectory.turns if t.ids is not None)
        seconds = sum(t.seconds for t in trajectory.turns if t.seconds is not None)
        self._margin("spent")
        self.console.print(
            f"{overview:,} overview + {clips:,} clip + {written:,} written tokens, {seconds:.1f} s", style="dim",
            highlight=False,
        )  # fmt: skip

    def _observed(self, event: events.Observation) -> None:
        o = event.observation
        tokens = f"{o.tokens:,} tokens"
        size = f"{o.width} \u00d7 {o.height}"
        if o.index == 0:
            self._margin("overview")
            what = f"{clock(o.end)} in {len(o.times)} frames of {size}, {rate(o.fps)}"
        else:
            self._looks.append((o.start, o.end))
            self._margin("")
            self.console.print(self._line(), highlight=False)
            self._margin("shown")
            what = f"{len(o.times)} frames of {size}, {rate(o.fps)}"
        self.console.print(
            f"{what}  [dim]{tokens}, read in {event.seconds:.2f} s[/dim]", highlight=False
        )

    def _ended(self, turn: Turn) -> None:
        if turn.kind == "error":
            self._margin("refused")
            self._stream(turn.error or turn.text, style="yellow")
            self._flush("yellow")
            self.console.print()
            return
        if turn.kind == "forced":
            self._margin("")
            self.console.print(
                "no looks left: an answer is asked for", style="yellow", highlight=False
            )
            return
        if turn.role != "assistant":
            return
        if not self._shown and turn.kind == "text":
            self._stream(turn.text)
        self._flush()
        if self._column > LABEL:
            self.console.print()
            self._margin("")
        if turn.call is not None:
            self.console.print(
                f"[bold]\u2192 looks at {window(turn.call.start, turn.call.end)}[/bold]{', ' if turn.call.how else ''}{turn.call.how}",
                end="", highlight=False,
            )  # fmt: skip
        elif turn.answer is not None:
            self.console.print(
                f"[bold]\u2192 answers {escape(turn.answer)}[/bold]", end="", highlight=False
            )
        elif turn.kind == "call":
            self.console.print(
                "\u2192 a call that cannot be carried out", end="", style="yellow", highlight=False
            )
        cost = f"{len(turn.ids or ()):,} tokens, {turn.seconds or 0.0:.2f} s"
        cut = ", cut by the length limit" if turn.stop == "length" else ""
        self.console.print(f"  [dim]{cost}{cut}[/dim]", highlight=False)
        self._column = 0

    def _line(self) -> Text:
        """The video as a line, with every window looked at so far on it."""
        end = clock(self.duration)
        width = max(20, min(self.console.width - LABEL - len(end) - 8, 72))
        line = Text("0:00 ", style="dim")
        cells: list[int | None] = [None] * width
        for number, (start, stop) in enumerate(self._looks):
            first = min(int(start / self.duration * width), width - 1)
            last = min(max(int(stop / self.duration * width), first + 1), width)
            cells[first:last] = [number] * (last - first)
        for cell in cells:
            if cell is None:
                line.append("\u2500", style="dim")
            else:
                line.append("\u2501", style=f"bold {COLORS[cell % len(COLORS)]}")
        return line.append(f" {end}", style="dim")

    def _margin(self, label: str) -> None:
        self.console.print(f"{label:<{LABEL}}", end="", style="dim", highlight=False, markup=False)
        self._column = LABEL

    def _stream(self, text: str, style: str | None = None) -> None:
        """Writes text word by word, broken at the console's width."""
        for character in text:
            if character.isspace():
                self._flush(style)
                if self._column > LABEL:
                    self._pending = " "
            else:
                self._pending += character

    def _flush(self, style: str | None = None) -> None:
        word, self._pending = self._pending, ""
        if not word.strip():
            return
        if self._column + len(word) > max(self.console.width - 2, LABEL + 20):
            self.console.print()
            self._margin("")
            word = word.lstrip()
        self._column += len(word)
        self.console.print(word, end="", style=style, highlight=False, markup=False, soft_wrap=True)
