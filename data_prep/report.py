"""The run's report, one HTML file: funnel, reasons, quadrants, windows, durations, duplicates, contamination, replies, cost, people's verdicts."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from collections.abc import Sequence

from etils import epath

from data_prep import plots, stats
from data_prep.pages import document
from data_prep.pipeline import STAGE_NAMES, loads
from data_prep.schema import MATERIAL, QUADRANTS, Record
from data_prep.store import Store
from data_prep.verdicts import Verdicts, read_verdicts
from vo3.viewer.markup import Markup, tag

_WINDOWS = (0, 5, 10, 20, 40, 80, 160, 320, 10**9)
_DURATIONS = (0, 60, 180, 600, 1200, 1800, 3600, 10**9)
_SAID = {
    MATERIAL: "0 material",
    "localise": "1 clue localisation",
    "verify": "2 validity verification",
    "generate": "3 trajectory generation",
    "check": "4 logical consistency",
}
_AWAY = {
    "duplicate": "near-duplicate question",
    "repeated": "the same triplet again",
    "benchmark_question": "a benchmark's question",
    "benchmark_video": "a benchmark's video",
    "injection": "orders to a model",
    "video_path": "path out of the root",
    "malformed": "malformed",
}


@dataclasses.dataclass
class Figures:
    """What the report shows.

    Attributes:
      videos: that stage 0 read.
      unmade: videos that it could not ask about or read; the next run tries them again.
      questions: that it made of the others.
      dropped: reason -> captions, questions and videos that its rules refused.
      turned_away: reason -> triplets that admission refused.
      waiting: admitted triplets without a verdict.
      ended: (stage, reason) -> rejected rows.
      passed: stage -> rows that it let pass.
      accepted: quadrant -> rows.
      windows, durations: seconds, of the accepted rows' looks and videos.
      looks: looks of a row -> rows.
      strategies: strategy -> looks.
      mended: what was mended in replies -> replies.
      calls, prompt_tokens, reply_tokens, cost: by stage.
    """

    videos: int = 0
    unmade: int = 0
    questions: int = 0
    dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    turned_away: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    waiting: int = 0
    ended: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    passed: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    accepted: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    windows: list[float] = dataclasses.field(default_factory=list)
    durations: list[float] = dataclasses.field(default_factory=list)
    looks: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    strategies: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    mended: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    calls: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    prompt_tokens: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    reply_tokens: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    cost: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    @property
    def written(self) -> int:
        """Questions that stage 0 wrote, those that its rules refused among them."""
        kept_apart = ("video: ", "caption_")
        refused = (n for reason, n in self.dropped.items() if not reason.startswith(kept_apart))
        return self.questions + sum(refused)

    @property
    def rows(self) -> int:
        """Records with a verdict."""
        return sum(self.accepted.values()) + sum(self.ended.values())


def figures(store: Store) -> Figures:
    """Counts everything in one pass over the records."""
    found = Figures()
    for reason, count in store.rows("SELECT reason, COUNT(*) FROM turned_away GROUP BY reason"):
        found.turned_away[reason] = count
    for (count,) in store.rows("SELECT COUNT(*) FROM unmade"):
        found.unmade = count
    for made, text in store.rows("SELECT questions, record FROM material"):
        record = loads(text)
        found.videos += 1
        found.questions += made
        _count_calls(found, record)
        if record.rejection:
            found.dropped[f"video: {record.rejection.reason}"] += 1
    for reason, count in store.rows("SELECT reason, COUNT(*) FROM dropped GROUP BY reason"):
        found.dropped[reason] += count
    for record in store.records():
        _count_calls(found, record)
        stop = record.rejection
        last = STAGE_NAMES.index(stop.stage) if stop else len(STAGE_NAMES)
        for name in STAGE_NAMES[:last]:
            found.passed[name] += 1
        if stop:
            found.ended[stop.stage, stop.reason] += 1
            continue
        found.accepted[record.quadrant] += 1
        found.durations.append(record.info.duration)
        looks = [s for s in record.generated.steps if s.window is not None]
        found.looks[len(looks)] += 1
        for step in looks:
            found.windows.append(step.window[1] - step.window[0])
            found.strategies[step.strategy] += 1
    admitted, finished, _ = store.counts()
    found.waiting = admitted - finished
    return found


def _count_calls(found: Figures, record: Record) -> None:
    for call in record.calls:
        found.calls[call.stage] += 1
        found.prompt_tokens[call.stage] += call.prompt_tokens
        found.reply_tokens[call.stage] += call.reply_tokens
        found.cost[call.stage] += call.cost
        if call.repaired:
            found.mended[call.repaired] += 1


def write(store: Store) -> epath.Path:
    """Writes `WORKDIR/report.html` and, with the same figures, `report.json`."""
    found = figures(store)
    verdicts = read_verdicts(store)
    path = store.workdir / "report.html"
    path.write_text(page(found, verdicts))
    plain = {
        "material": {
            "videos": found.videos,
            "unmade": found.unmade,
            "questions": found.questions,
            "dropped": dict(found.dropped),
        },
        "rows": found.rows,
        "waiting": found.waiting,
        "turned_away": dict(found.turned_away),
        "ended": [[stage, reason, n] for (stage, reason), n in sorted(found.ended.items())],
        "accepted": dict(found.accepted),
        "calls": dict(found.calls),
        "prompt_tokens": sum(found.prompt_tokens.values()),
        "reply_tokens": sum(found.reply_tokens.values()),
        "cost": sum(found.cost.values()),
    }
    (store.workdir / "report.json").write_text(json.dumps(plain, indent=1) + "\n")
    return path


def page(found: Figures, verdicts: Verdicts) -> str:
    """The report as a whole document."""
    accepted = sum(found.accepted.values())
    calls, cost = sum(found.calls.values()), sum(found.cost.values())
    share = stats.Share(accepted, found.rows)
    facts = [
        (f"{found.rows:,}", "rows with a verdict"),
        (f"{accepted:,}", f"accepted, {100 * share.value:.1f} %"),
        (f"{sum(found.turned_away.values()):,}", "turned away before the stages"),
        (f"{calls:,}", "replies"),
        (f"{cost:,.2f}", "cost, in the currency of the prices"),
        (f"{cost / accepted:,.4f}" if accepted else "-", "cost of an accepted row"),
    ]
    if found.unmade:
        facts.insert(1, (f"{found.unmade:,}", "videos still without questions"))
    if found.waiting:
        facts.insert(1, (f"{found.waiting:,}", "still without a verdict"))
    head = tag(
        "header",
        tag("h1", "Synthesis report"),
        tag("p", "What came in, what each stage let pass, and why the rest ended.", class_="lead"),
        tag(
            "div", [tag("div", tag("b", n), tag("span", what)) for n, what in facts], class_="facts"
        ),
    )
    parts = [
        head,
        _funnel(found),
        _reasons(found),
        _admission(found),
        _quadrants(found),
        _shapes(found),
        _money(found),
    ]
    return document("Synthesis report", tag("main", *parts, _people(verdicts)))


def _section(title: str, *children: Markup | None) -> Markup:
    return tag("section", tag("h2", title), *children)


def _funnel(found: Figures) -> Markup:
    came = found.rows + sum(found.turned_away.values())
    rows = [("triplets", came, f"{came:,}"), ("admitted", found.rows, f"{found.rows:,}")]
    if found.videos:
        told = f"{found.questions:,} of {found.written:,}"
        rows.insert(0, (f"{_SAID[MATERIAL]}, {found.videos:,} videos", found.questions, told))
    rows += [(_SAID[name], found.passed[name], f"{found.passed[name]:,}") for name in STAGE_NAMES]
    return _section("Funnel", plots.bars(rows, what="rows left after each stage"))


def _reasons(found: Figures) -> Markup:
    rows = [(_SAID[MATERIAL], reason, n) for reason, n in found.dropped.most_common()]
    rows += [("admission", reason, n) for reason, n in found.turned_away.most_common()]
    order = {name: number for number, name in enumerate(STAGE_NAMES)}
    ended = sorted(found.ended.items(), key=lambda item: (order[item[0][0]], -item[1]))
    rows += [(_SAID[stage], reason, n) for (stage, reason), n in ended]
    if not rows:
        return _section("Why rows ended", tag("p", "None did.", class_="empty"))
    total = found.rows + sum(found.turned_away.values())
    whole = lambda stage: max(found.written if stage == _SAID[MATERIAL] else total, 1)
    body = [
        (stage, reason, f"{n:,}", f"{100 * n / whole(stage):.1f} %") for stage, reason, n in rows
    ]
    return _section("Why rows ended", table(("stage", "reason", "rows", "of all"), body, numbers=2))


def _admission(found: Figures) -> Markup:
    """Duplicates and contamination, with their zeros: that nothing was found is a finding."""
    rows = [
        (said, found.turned_away[name], f"{found.turned_away[name]:,}")
        for name, said in _AWAY.items()
    ]
    return _section("Turned away before the stages", plots.bars(rows, what="triplets turned away"))


def _quadrants(found: Figures) -> Markup:
    total = sum(found.accepted.values()) or 1
    rows = [
        (
            name,
            found.accepted[name],
            f"{found.accepted[name]:,}, {100 * found.accepted[name] / total:.0f} %",
        )
        for name in QUADRANTS
    ]
    return _section("Balance of the quadrants", plots.bars(rows, what="accepted rows by quadrant"))


def _shapes(found: Figures) -> Markup:
    windows = plots.columns(
        stats.histogram(found.windows, _WINDOWS), _names(_WINDOWS), what="lengths of looks"
    )
    durations = plots.columns(
        stats.histogram(found.durations, _DURATIONS),
        ["<1", "1-3", "3-10", "10-20", "20-30", "30-60", ">60"],
        what="durations of videos",
    )
    looks = [
        (f"{n} looks" if n != 1 else "1 look", c, f"{c:,}") for n, c in sorted(found.looks.items())
    ]
    used = [(name, found.strategies[name], f"{found.strategies[name]:,}") for name in ("coarse", "medium", "fine")]  # fmt: skip
    return _section(
        "Windows and videos",
        tag(
            "div",
            tag("div", tag("h3", "length of looks, seconds"), windows),
            tag("div", tag("h3", "duration of videos, minutes"), durations),
            tag("div", tag("h3", "looks in a row"), plots.bars(looks, what="looks in a row")),
            tag("div", tag("h3", "sampling strategies"), plots.bars(used, what="strategies")),
            class_="pair",
        ),
    )


def _names(edges: Sequence[float]) -> list[str]:
    names = [f"{a:g}-{b:g}" for a, b in itertools.pairwise(edges[:-1])]
    return [*names, f">{edges[-2]:g}"]


def _money(found: Figures) -> Markup:
    body = [
        (
            name,
            f"{found.calls[name]:,}",
            f"{found.prompt_tokens[name]:,}",
            f"{found.reply_tokens[name]:,}",
            f"{found.cost[name]:,.4f}",
        )
        for name in found.calls
    ]
    columns = ("prompt", "replies", "prompt tokens", "reply tokens", "cost")
    mended = None
    if found.mended:
        rows = [(what, n, f"{n:,}") for what, n in found.mended.most_common()]
        mended = tag("div", tag("h3", "replies that were mended or refused"), plots.bars(rows, what="mended replies"))  # fmt: skip
    return _section("Replies and cost", table(columns, body, numbers=4), mended)


def _people(verdicts: Verdicts) -> Markup:
    if not verdicts.by_stage:
        note = "Nobody has looked yet: python -m data_prep.review WORKDIR"
        return _section("What people say", tag("p", note, class_="empty"))
    body = [
        (stage, f"{share.hits:,} of {share.total:,}", f"{100 * share.value:.1f} %",
         "{:.1f} - {:.1f} %".format(*(100 * x for x in share.interval)))
        for stage, share in verdicts.by_stage.items()
    ]  # fmt: skip
    columns = ("stage and side", "found right", "share", "95 % interval (Wilson)")
    return _section("What people say", table(columns, body, numbers=3), tag("p", verdicts.agreement_text, class_="lead"))  # fmt: skip


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int) -> Markup:
    """A table whose last `numbers` columns are figures."""
    first = len(columns) - numbers
    kind = lambda i: "n" if i >= first else None
    head = tag("tr", [tag("th", c, scope="col", class_=kind(i)) for i, c in enumerate(columns)])
    body = [tag("tr", [tag("td", c, class_=kind(i)) for i, c in enumerate(row)]) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="scroll")
