"""What a run would cost, before it is run: calls, tokens and money by stage, as an upper bound (every row goes all the way)."""

from __future__ import annotations

import dataclasses

import ml_collections

from data_prep.models.calling import Price
from data_prep.stages.base import Context
from data_prep.store import Store

# Text tokens of a filled prompt beyond its template, and of replies, by prompt; measured on the oracle's runs, rounded up.
_REPLY = {
    "caption": 1500,
    "material": 500,
    "localise": 120,
    "verify": 60,
    "ground": 40,
    "generate": 500,
    "judge": 80,
}
_FILLED = 250
# Endpoints differ; about what 512 px frames cost at most of them.
_PER_FRAME = 300


@dataclasses.dataclass(frozen=True)
class Line:
    """One stage's calls."""

    stage: str
    calls: int
    prompt_tokens: int
    reply_tokens: int
    cost: float


def estimate(
    store: Store,
    context: Context,
    config: ml_collections.ConfigDict,
    *,
    videos: int = 0,
    without_captions: int = 0,
) -> list[Line]:
    """A line a prompt. Rows that are finished are not counted again: only what is to do is.

    Args:
      store: holds what is admitted.
      context, config: of the run.
      videos: that stage 0 makes questions of.
      without_captions: of them; these have to be described first.
    """
    verify = context.settings.verify
    frames = config.model.frames
    price = Price(config.model.price.prompt, config.model.price.reply)
    counts = {"qa": 0, "grounding": 0}
    for _, triplet in store.todo():
        counts[triplet.kind] += 1
    both = counts["qa"] + counts["grounding"]
    plan = [
        ("caption", without_captions, frames.whole),
        ("material", videos, 0),
        ("localise", counts["qa"], frames.whole),
        ("verify", counts["qa"] * verify.votes, frames.clip),
        ("verify", counts["qa"] * verify.overview_votes, frames.whole),
        ("ground", counts["grounding"] * verify.votes, frames.whole),
        ("generate", both, frames.whole),
        ("judge", both if context.settings.check.judge else 0, frames.clip),
    ]
    lines: dict[str, Line] = {}
    for name, calls, shown in plan:
        if not calls:
            continue
        prompt = context.prompt(name)
        text = (len(prompt.system) + len(prompt.user)) // 4 + _FILLED
        before = lines.get(name, Line(name, 0, 0, 0, 0.0))
        tokens, reply = calls * (text + shown * _PER_FRAME), calls * _REPLY[name]
        lines[name] = Line(
            name,
            before.calls + calls,
            before.prompt_tokens + tokens,
            before.reply_tokens + reply,
            before.cost + price.of(tokens, reply),
        )
    return list(lines.values())


def table(lines: list[Line]) -> str:
    """The estimate as text, with a total."""
    total = Line(
        "all",
        sum(x.calls for x in lines),
        sum(x.prompt_tokens for x in lines),
        sum(x.reply_tokens for x in lines),
        sum(x.cost for x in lines),
    )
    head = (
        f"{'stage':10s} {'calls':>10s} {'prompt tokens':>15s} {'reply tokens':>13s} {'cost':>12s}"
    )
    rows = [
        f"{x.stage:10s} {x.calls:10,d} {x.prompt_tokens:15,d} {x.reply_tokens:13,d} {x.cost:12,.2f}"
        for x in [*lines, total]
    ]
    return "\n".join(
        ["At most, with no reply stored yet and no row rejected on the way:", head, *rows]
    )
