"""Answers in OpenAI's words: a whole completion, or the chunks of a stream."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from vo3.chat.dialects import get_dialect
from vo3.chat.dialects.base import Dialect
from vo3.rollout import Rollout
from vo3.serve.request import Ask
from vo3.trajectory import Trajectory
from vo3.viewer.story import think_of


def content_of(trajectory: Trajectory) -> str:
    """The answer, or nothing where there is none."""
    return trajectory.answer or ""


def finish_of(trajectory: Trajectory) -> str:
    """`length` where a limit cut the answer off, else `stop`."""
    cut = trajectory.outcome == "exceeded" or trajectory.turns[-1].stop == "length"
    return "length" if cut and trajectory.outcome != "answered" else "stop"


def usage_of(trajectory: Trajectory) -> dict[str, Any]:
    """Tokens: what was shown (question, overview, clips), and what was written."""
    tokens = trajectory.meta["tokens"]
    written = tokens["sampled"]
    return {
        "prompt_tokens": tokens["context"] - written,
        "completion_tokens": written,
        "total_tokens": tokens["context"],
    }


def public(trajectory: Trajectory, model: str) -> Trajectory:
    """The trajectory with the model's name as clients know it."""
    return dataclasses.replace(trajectory, model=model)


class Reply:
    """The answer to one request.

    Attributes:
      id: of the request.
      model: name of the model.
      ask: the question.
    """

    def __init__(self, name: str, model: str, ask: Ask, *, dialect: str):
        self.id, self.model, self.ask = name, model, ask
        self._created = int(time.time())
        self._splitter = Splitter(get_dialect(dialect))
        self._content = ""  # as far as it was sent

    def completion(self, rollout: Rollout) -> dict[str, Any]:
        """A whole answer."""
        trajectory = rollout.trajectory
        thought = "\n".join(filter(None, map(think_of, trajectory.turns)))
        message = {
            "role": "assistant",
            "content": content_of(trajectory),
            "refusal": None,
            "reasoning_content": thought or None,
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_of(trajectory)}  # fmt: skip
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage_of(trajectory),
            "vo3": self._extension(trajectory),
        }

    # A stream.

    def opening(self) -> dict[str, Any]:
        """The first chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def token(self, number: int, text: str) -> dict[str, Any] | None:
        """The chunk of a token's text; None where it adds nothing that is shown."""
        kind, piece = self._splitter.push(number, text)
        if not piece:
            return None
        if kind == "answer":
            self._content += piece
            return self._chunk({"content": piece})
        return self._chunk({"reasoning_content": piece})

    def empty(self) -> dict[str, Any]:
        """A chunk without a piece of the answer, to carry an event."""
        return self._chunk({})

    def closing(self, rollout: Rollout, html: dict[str, str] | None = None) -> list[dict[str, Any]]:
        """The last chunks: what of the answer is still to be sent, why it ends, and what it took; `html`: pieces of a page."""
        trajectory = rollout.trajectory
        content = content_of(trajectory)
        # What was sent before is the beginning of the answer, unless the model opened one twice.
        rest = content.removeprefix(self._content)
        chunks = [self._chunk({"content": rest})] if rest else []
        told = self._extension(trajectory) | ({} if html is None else {"html": html})
        chunks.append(self._chunk({}, finish=finish_of(trajectory)) | {"vo3": told})
        if self.ask.include_usage:
            head = self._head("chat.completion.chunk")
            chunks.append({**head, "choices": [], "usage": usage_of(trajectory)})
        return chunks

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self.model}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _extension(self, trajectory: Trajectory) -> dict[str, Any]:
        found: dict[str, Any] = {"outcome": trajectory.outcome, "answer": trajectory.answer}
        if self.ask.extension.trajectory:
            found["trajectory"] = public(trajectory, self.model).to_json()
        return found


class Splitter:
    """Turns as they are written, split into what is thought and what is answered; tags and calls are left out.

    What may still become a tag, and white space at an answer's ends, is held back.
    """

    def __init__(self, dialect: Dialect):
        # An answer that the dialect rewrites cannot be shown before it is whole.
        self._live = type(dialect).read_answer is Dialect.read_answer
        self._number = -1
        self._text, self._at = "", 0
        self._inside: str | None = None
        self._begun = False
        self._thought = False

    def push(self, number: int, text: str) -> tuple[str, str]:
        """(kind, text) that may be shown now; kind is `think` or `answer`."""
        if number != self._number:
            self._number, self._text, self._at, self._inside = number, "", 0, None
            self._begun = False
        self._text += text
        while True:
            if self._inside is None:
                opened = self._next("<think>", "<answer>")
                if opened is None:
                    return "think", ""
                self._inside = opened[1:-1]
            kind, closing = self._inside, f"</{self._inside}>"
            end = self._text.find(closing, self._at)
            if end >= 0:
                piece, self._at, self._inside = self._text[self._at : end], end + len(closing), None
                return kind, self._trim(kind, piece, whole=True)
            keep = self._held(closing, "<answer>") if kind == "answer" else self._held(closing)
            stop = len(self._text) - keep
            piece, self._at = self._text[self._at : stop], stop
            return kind, self._trim(kind, piece, whole=False)

    def _next(self, *tags: str) -> str | None:
        """Goes behind the first of the tags that is there."""
        found = [(at, tag) for tag in tags if (at := self._text.find(tag, self._at)) >= 0]
        if not found:
            return None
        at, tag = min(found)
        self._at = at + len(tag)
        return tag

    def _held(self, *tags: str) -> int:
        """Letters at the end that may be the beginning of a tag, and the white space before them."""
        tail = self._text[self._at :]
        most = max(
            size
            for tag in tags
            for size in range(len(tag))
            if tail.endswith(tag[:size]) or not size
        )
        kept = tail[: len(tail) - most]
        return most + len(kept) - len(kept.rstrip())

    def _trim(self, kind: str, piece: str, *, whole: bool) -> str:
        if kind == "answer" and not self._live:
            return ""
        if not self._begun:
            piece = piece.lstrip()
            if piece and kind == "think":  # on a line of its own, as in a whole answer
                piece, self._thought = ("\n" if self._thought else "") + piece, True
        if whole:
            piece = piece.rstrip()
            self._begun = False
        elif piece:
            self._begun = True
        return piece
