"""What every stage has: a name, a way to ask, and a way to end a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from data_prep import prompts, videos
from data_prep.keys import content_key
from data_prep.models.base import VERDICTS, Media, ModelError, Request
from data_prep.models.calling import Answer, Caller, UnusableReply
from data_prep.prompts import fenced
from data_prep.schema import Record, Triplet, VideoInfo
from data_prep.settings import StageSettings
from vo3.chat import PromptPack
from vo3.video import CropPolicy


@dataclasses.dataclass(frozen=True)
class Context:
    """What the stages share in one process.

    Attributes:
      caller: asks the model.
      settings: what each stage accepts.
      pack: wording of the trajectories.
      policy: geometry of the trajectories' observations.
      root: folder of the videos.
      prompts: folder of the prompt files; empty for the package's own.
    """

    caller: Caller
    settings: StageSettings
    pack: PromptPack
    policy: CropPolicy
    root: str = ""
    prompts: str = ""

    def prompt(self, name: str) -> prompts.Prompt:
        """A prompt file."""
        return prompts.load(name, self.prompts)

    def media(self, triplet: Triplet, windows: tuple[tuple[float, float], ...] = ()) -> Media:
        """What of the triplet's video a model is shown.

        Raises:
          videos.PathError: the path leaves the root.
          ModelError: kind `storage`: the file cannot be read.
        """
        path = videos.below(self.root, triplet.video)
        return Media(triplet.video, path, videos.identity(path), windows, triplet.frame_fps)


class Stage(Protocol):
    """A typed transform of records."""

    name: str

    async def run(self, record: Record, context: Context) -> Record:
        """The record with this stage's output, or rejected.

        Raises:
          ModelError: the endpoint or the storage failed; the row has no verdict and is tried again by the next run.
        """


class Rejected(Exception):
    """Ends a row inside a stage: `record` is the rejected one."""

    def __init__(self, record: Record):
        super().__init__(str(record.rejection))
        self.record = record


async def ask(
    context: Context,
    record: Record,
    stage: str,
    prompt: str,
    *,
    media: Media | None,
    inputs: Mapping[str, Any],
    draw: int = 0,
    temperature: float = 0.0,
    max_tokens: int = 2048,
    **fields: str,
) -> tuple[Record, Answer]:
    """Asks with a prompt file; the calls are noted on the record.

    Raises:
      Rejected: no usable reply, or the endpoint refuses this request or this video.
      ModelError: the endpoint or the storage failed in a way that another run may not meet.
    """
    template = context.prompt(prompt)
    request = Request(
        stage=prompt,
        prompt=template.hash,
        system=template.system,
        text=template.fill(**fields),
        schema=template.reply,
        media=media,
        inputs={"id": record.triplet.id, **inputs},
        draw=draw,
        temperature=temperature,
        max_tokens=max_tokens,
    )
    try:
        answer = await context.caller.ask(request)
    except UnusableReply as error:
        noted = dataclasses.replace(record, calls=record.calls + error.notes)
        raise Rejected(noted.rejected(stage, f"reply_{error.kind}", str(error))) from error
    except ModelError as error:
        if error.kind in VERDICTS:
            raise Rejected(
                record.rejected(stage, f"endpoint_{error.kind}", error.message)
            ) from error
        raise
    return dataclasses.replace(record, calls=record.calls + answer.notes), answer


def options_text(triplet: Triplet) -> str:
    """The options as a prompt shows them, fenced; a line that says there are none for open questions."""
    if not triplet.options:
        return "There are no options; answer in a few words."
    return "Options: " + fenced("\n".join(f"{k}. {v}" for k, v in triplet.options.items()))


def known_answer(triplet: Triplet) -> str:
    """The known answer in words, fenced."""
    text = triplet.answer
    if triplet.options and text in triplet.options:
        text = f"{text}. {triplet.options[text]}"
    return fenced(text)


def record_key(triplet: Triplet, fingerprint: str) -> str:
    """A record's key: the triplet's content and everything that decides what becomes of it."""
    return content_key(triplet.to_json(), fingerprint)


def info_of(record: Record) -> VideoInfo:
    """The video's grid, which stage 1 puts on the record."""
    if record.info is None:
        raise ValueError(f"record {record.triplet.id} has not been localised")
    return record.info
