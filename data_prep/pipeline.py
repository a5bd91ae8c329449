"""The chain of stages for one record, and what decides its outcome."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from data_prep import prompts
from data_prep.assemble import trajectory
from data_prep.keys import content_key
from data_prep.schema import OUTPUTS, Record, Triplet
from data_prep.stages.base import Context, Stage, record_key
from data_prep.stages.check import Check
from data_prep.stages.generate import Generate
from data_prep.stages.localise import Localise
from data_prep.stages.verify import Verify

STAGES: tuple[Stage, ...] = (Localise(), Verify(), Generate(), Check())
STAGE_NAMES = tuple(stage.name for stage in STAGES)
_PROMPTS = ("localise", "verify", "ground", "equivalent", "generate", "judge")


def fingerprint(context: Context) -> str:
    """What decides what becomes of a triplet: model, prompts, settings, schemas, wording, geometry."""
    return content_key(
        context.caller.client.identity(),
        [prompts.load(name, context.prompts).hash for name in _PROMPTS],
        dataclasses.asdict(context.settings),
        {name: output.schema for name, output in OUTPUTS.items()},
        context.pack.to_dict(),
        dataclasses.asdict(context.policy),
    )


def begin(triplet: Triplet, run: str) -> Record:
    """The record of a triplet; `run` is the fingerprint."""
    return Record(key=record_key(triplet, run), triplet=triplet)


async def process(record: Record, context: Context, stages: Sequence[Stage] = STAGES) -> Record:
    """The record through the stages, up to the one that rejects it.

    Raises:
      ModelError: the endpoint or the storage failed; the row has no verdict.
    """
    for stage in stages:
        if record.rejection is not None:
            break
        record = await stage.run(record, context)
    return record


def line(record: Record, context: Context) -> str | None:
    """An accepted record's row, one line of JSON; None for a rejected one."""
    if record.rejection is not None:
        return None
    return trajectory(record, pack=context.pack, policy=context.policy).dumps()


def dumps(record: Record) -> str:
    """A record as one line of JSON; the same record gives the same line."""
    return json.dumps(record.to_json(), ensure_ascii=False, sort_keys=True)


def loads(text: str) -> Record:
    """Inverse of `dumps`."""
    return Record.from_json(json.loads(text))
