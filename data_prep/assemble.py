"""A finished record as a `Trajectory`: what SFT and RL read. Provenance stands in `meta["synthesis"]`."""

from __future__ import annotations

import dataclasses
from typing import Any

from data_prep.schema import GROUNDING, Record, VideoInfo
from vo3.chat import PromptPack
from vo3.chat.tags import format_answer, format_call, format_turn
from vo3.trajectory import Call, Clue, Observation, Strategy, Target, Task, Trajectory, Turn
from vo3.video import CropPolicy, plan_clip

PROVENANCE_SCHEMA = 1


def trajectory(record: Record, *, pack: PromptPack, policy: CropPolicy) -> Trajectory:
    """The row of an accepted record.

    Raises:
      ValueError: the record was rejected or is not through all stages.
    """
    if record.rejection is not None or record.checked is None:
        raise ValueError(f"record {record.triplet.id} was not accepted")
    task = task_of(record)
    overview = observe(record.info, 0, policy=policy)
    turns = [
        Turn("system", pack.system(task)),
        Turn("question", pack.question(task, overview=overview), observations=(overview,)),
    ]
    looks = 0
    for step in record.generated.steps:
        if step.window is None:
            turns.append(
                Turn(
                    "answer",
                    format_turn(step.think, format_answer(step.answer)),
                    answer=step.answer,
                )
            )
            continue
        looks += 1
        call = Call(float(step.window[0]), float(step.window[1]), step.strategy)
        text = format_turn(step.think, format_call(call, decimals=pack.seconds_decimals))
        turns.append(Turn("call", text, call=call))
        clip = observe(
            record.info, looks, policy=policy, window=step.window, strategy=step.strategy
        )
        turns.append(Turn("observation", pack.observation(looks, clip), observations=(clip,)))
    return Trajectory(
        task=task,
        turns=tuple(turns),
        outcome="answered",
        answer=record.generated.steps[-1].answer,
        prompt_pack=pack.name,
        meta={"synthesis": provenance(record)},
    )


def task_of(record: Record) -> Task:
    """The record's question with its target: answer, verified clues, quadrant."""
    triplet = record.triplet
    clues = tuple(Clue(c.start, c.end, c.text) for c in record.localised.clues)
    quadrant = record.quadrant
    answer = triplet.answer
    if quadrant == GROUNDING:
        answer = record.generated.steps[-1].answer
    return Task(
        id=f"{triplet.source}/{triplet.id}" if triplet.source else triplet.id,
        video=triplet.video,
        question=triplet.question,
        options=triplet.options,
        target=Target(answer, clues, quadrant),
        frame_fps=triplet.frame_fps,
    )


def provenance(record: Record) -> dict[str, Any]:
    """Where a row comes from: every stage's output in short, every call, what it cost."""
    prompts = {call.stage: call.prompt for call in record.calls}
    return {
        "schema_version": PROVENANCE_SCHEMA,
        "key": record.key,
        "source": record.triplet.source,
        "triplet": record.triplet.id,
        "material": [dataclasses.asdict(origin) for origin in record.triplet.origin],
        "models": sorted({call.model for call in record.calls}),
        "prompts": dict(sorted(prompts.items())),
        "localised": dataclasses.asdict(record.localised),
        "votes": {
            "clip": list(record.verified.clip),
            "clip_right": record.verified.clip_right,
            "overview": list(record.verified.overview),
            "overview_right": record.verified.overview_right,
        },
        "judge": record.checked.analysis,
        "calls": len(record.calls),
        "tokens": [
            sum(call.prompt_tokens for call in record.calls),
            sum(call.reply_tokens for call in record.calls),
        ],
        "cost": round(record.cost, 9),
    }


def observe(
    info: VideoInfo,
    index: int,
    *,
    policy: CropPolicy,
    window: tuple[float, float] | None = None,
    strategy: Strategy | None = None,
) -> Observation:
    """What VideoCrop shows of a video, from the plan alone; times are those of the nominal grid."""
    plan = plan_clip(
        fps=info.fps, frames=info.frames, height=info.height, width=info.width,
        window=window, strategy=strategy, policy=policy,
    )  # fmt: skip
    start, end = window or (0.0, info.duration)
    patch = policy.token_size // 2
    return Observation(
        index=index,
        start=float(start),
        end=float(end),
        fps=float(plan.fps),
        times=tuple(float(i / info.fps) for i in plan.indices),
        indices=tuple(int(i) for i in plan.indices),
        height=plan.height,
        width=plan.width,
        grid=(len(plan.indices) // 2, plan.height // patch, plan.width // patch),
        tokens=plan.tokens,
        strategy=strategy,
    )


def rl_row(record: Record) -> dict[str, Any]:
    """The record as an RL row: question, options, answer, clues, quadrant."""
    task = task_of(record)
    return {
        "doc_id": task.id,
        "data_source": task.target.data_source,
        "problem": task.question,
        "options": task.options,
        "video": task.video,
        "frame_fps": task.frame_fps,
        "solution": {
            "answer": task.target.answer,
            "clue": [{"timestamp": [c.start, c.end], "text": c.text} for c in task.target.clues],
        },
    }
