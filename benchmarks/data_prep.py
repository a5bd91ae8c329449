"""The synthesis, measured offline: `python -m benchmarks.data_prep [--only faults rules throughput memory]`.

* faults: ClueWorld triplets through the whole pipeline, the oracle planting faults of every kind at a set rate: how many are caught, by
  which stage, and how many sound rows are lost;
* rules: the same without the judge of the last stage, which (being the oracle) knows what it planted;
* throughput: calls against a local endpoint that answers after 200 ms (`tests/data_prep/stub_server.py`), 64 at once, beside the ideal;
* memory: RSS of one process while rows go through all stages (five replies a row, at once, from within the process), then through export
  and report; the goal is 100,000 rows (--rows=100000, some minutes).
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import psutil
from rich.console import Console
from rich.table import Table

from configs.data_prep import get_config
from data_prep import config as configs
from data_prep import engine, pipeline
from data_prep import report as report_page
from data_prep.cache import SqliteCache
from data_prep.models.base import Client, RawReply, Request
from data_prep.models.calling import Caller, CallLimits
from data_prep.models.openai import OpenAIClient
from data_prep.models.oracle import FAULTS, OracleClient, OracleSettings
from data_prep.pipeline import STAGE_NAMES
from data_prep.schema import Triplet, VideoInfo
from data_prep.sources import clueworld
from data_prep.store import Store
from data_prep.synthesize import _admit, synthesize

ROOT = pathlib.Path(__file__).resolve().parent.parent
MB = 1 << 20
# The stage that is meant to catch each kind of fault.
STAGES = {"answer": "verify", "window": "verify", **dict.fromkeys(("times", "audio", "circular", "slip"), "check")}  # fmt: skip
CONCURRENCY, DELAY = 64, 0.2


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    ours: str
    against: str
    figure: str
    ratio: str
    goal: str


def fault_rows(triplets: int, rate: float, *, judge: bool) -> Iterator[Row]:
    """Caught by the stage meant for it, of the rows with exactly this fault; and sound rows lost.

    A row that ended before the stage that would have made the fault has none; it counts where a sound one does.
    The oracle's judge knows what was planted. Without it stage 4 has its rules alone.
    """
    config = get_config()
    config.stages.check.judge = judge
    alone = "" if judge else ", rules alone"
    config.source.limit, config.source.wrong_answers, config.oracle.mess = triplets, rate, rate
    for fault in FAULTS:
        config.oracle.faults[fault] = rate
    oracle = OracleClient(configs.struct(OracleSettings, config.oracle, "oracle"))
    total: collections.Counter[str] = collections.Counter()
    where: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        synthesize(config, folder)
        store = Store(folder)
        for record in store.records():
            name = record.triplet.id
            kinds = [f for f in FAULTS if oracle.planted(f, name)]
            if clueworld.has_wrong_answer(name, rate=rate, seed=0):
                kinds.append("answer")
            stage = record.rejection.stage if record.rejection else ""
            if stage and STAGE_NAMES.index(stage) < STAGE_NAMES.index("generate"):
                kinds = [kind for kind in kinds if STAGES[kind] == "verify"]
            # Of several faults in a row the first stage takes all.
            kind = kinds[0] if len(kinds) == 1 else "several" if kinds else "sound"
            total[kind] += 1
            where[kind, stage] += 1
        store.close()
    for kind, stage in STAGES.items():
        caught = where[kind, stage] / max(total[kind], 1)
        yield Row(
            f"fault {kind!r}, caught in {stage}{alone}", f"{where[kind, stage]}", "planted alone", f"{total[kind]}",
            f"{100 * caught:.1f} %", ">= 99 %",
        )  # fmt: skip
    caught = total["several"] - where["several", ""]
    yield Row(
        f"several faults at once, caught{alone}", f"{caught}", "planted", f"{total['several']}",
        f"{100 * caught / max(total['several'], 1):.1f} %", ">= 99 %",
    )  # fmt: skip
    lost = total["sound"] - where["sound", ""]
    yield Row(
        f"sound rows lost{alone}", f"{lost}", "sound rows", f"{total['sound']}",
        f"{100 * lost / max(total['sound'], 1):.1f} %", "<= 2 %",
    )  # fmt: skip


@contextlib.contextmanager
def stub() -> Iterator[str]:
    """The base URL of a local endpoint in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests" / "data_prep" / "stub_server.py"), str(port)]
    process = subprocess.Popen([*command, str(DELAY)])
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def throughput_rows(calls: int) -> Iterator[Row]:
    """Calls through client, limits and reply cache, twice as many waiting as may be under way."""

    async def measure(url: str, folder: str) -> tuple[float, float]:
        client = OpenAIClient(model="m", base_url=url, api_key_env="")
        cache = SqliteCache(pathlib.Path(folder) / "replies.sqlite")
        caller = Caller(client, cache, limits=CallLimits(concurrency=CONCURRENCY))

        async def one(number: int) -> None:
            text = f"{number} Pick B " + "x" * 1500
            await caller.ask(Request("verify", "p", "s" * 500, text, {"type": "object"}))

        await asyncio.gather(*(one(-n) for n in range(1, CONCURRENCY + 1)))
        numbers = iter(range(calls))

        async def work() -> None:
            for number in numbers:
                await one(number)

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(2 * CONCURRENCY)))
        spent, cpu = time.perf_counter() - began, time.process_time() - cpu
        await client.close()
        cache.close()
        return spent, cpu

    with stub() as url, tempfile.TemporaryDirectory() as folder:
        spent, cpu = asyncio.run(measure(url, folder))
    ideal = calls / CONCURRENCY * DELAY
    yield Row(
        f"{calls} calls, {CONCURRENCY} at once", f"{spent:.2f} s", f"{DELAY * 1e3:.0f} ms each", f"{ideal:.2f} s",
        f"{100 * ideal / spent:.0f} %", ">= 90 %",
    )  # fmt: skip
    yield Row("CPU of a call", f"{1e3 * cpu / calls:.2f} ms", "", "", "", "")


class Canned(Client):
    """Replies at once with what each stage wants to hear."""

    def identity(self) -> list:
        """See `Client`."""
        return ["canned"]

    async def complete(self, request: Request, *, key: str) -> RawReply:
        """See `Client`."""
        look = {"think": "something small shows early on.", "grounding": [2, 6]}
        replies = {
            "localise": {"clues": [{"timestamp": ["0:02", "0:06"], "text": "a sign"}], "detail": "high"},
            "verify": {"answer": "B" if request.inputs.get("windows") else "unknown"},
            "generate": {"turns": [look, {"think": "the sign reads b.", "answer": "B"}]},
            "judge": {"analysis": "sound", "is_valid": True},
        }  # fmt: skip
        return RawReply(json.dumps(replies[request.stage]), 100, 20, False, "canned")

    async def close(self) -> None:
        """See `Client`."""


def memory_rows(rows: int) -> Iterator[Row]:
    """RSS from the second tenth of the rows to the last one, and after export and report."""
    me, levels, after = psutil.Process(), [], []
    info, options = VideoInfo(2.0, 40, 56, 56), {"A": "a", "B": "b", "C": "c", "D": "d"}

    async def measure(folder: pathlib.Path) -> None:
        config = get_config()
        config.admission.similarity = 2.0
        verify = config.stages.verify
        verify.votes = verify.needed = verify.overview_votes = verify.overview_needed = 1
        made = configs.context(config, folder)
        context = dataclasses.replace(made, caller=Caller(Canned(), made.caller.cache))
        store, run = Store(folder), pipeline.fingerprint(context)
        triplets = (
            Triplet(f"t{n}", f"{n // 4}.mp4", f"What does sign {n} say?", "B", options, info=info)
            for n in range(rows)
        )
        _admit(store, triplets, config, run)

        def report(progress: engine.Progress) -> None:
            if progress.done % max(rows // 100, 1) == 0:
                levels.append(me.memory_info().rss / MB)
            if progress.done % max(rows // 10, 1) == 0:
                print(f"{progress.done:,} rows, {levels[-1]:.0f} MB", file=sys.stderr)

        await engine.run(store, context, fingerprint=run, under_way=config.under_way, report=report)
        context.caller.cache.close()
        store.export()
        report_page.write(store)
        after.append(me.memory_info().rss / MB)
        store.close()

    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(pathlib.Path(folder)))
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    tenth = max(len(levels) // 10, 1)
    early, late = (statistics.median(part) for part in (levels[tenth : 2 * tenth], levels[-tenth:]))
    yield Row(
        f"RSS, last tenth of {rows:,} rows", f"{late:.0f} MB", "second tenth", f"{early:.0f} MB",
        f"{late - early:+.1f} MB", "flat",
    )  # fmt: skip
    yield Row("RSS after export and report", f"{after[0]:.0f} MB", "", "", "", "")
    yield Row("rows a second", f"{rows / spent:.0f}", "CPU of a row", f"{1e3 * cpu / rows:.1f} ms", "", "")  # fmt: skip


def main() -> None:
    sections = ("faults", "rules", "throughput", "memory")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--triplets", type=int, default=1000, help="for the faults")
    parser.add_argument("--rate", type=float, default=0.2, help="of each fault")
    parser.add_argument("--calls", type=int, default=6400)
    parser.add_argument("--rows", type=int, default=2000, help="for the memory")
    args = parser.parse_args()
    table = Table(title="data_prep, offline")
    for column in ("what", "ours", "compared with", "its figure", "ratio", "goal"):
        table.add_column(column, justify="left" if column in ("what", "compared with") else "right")
    makers = {
        "faults": lambda: fault_rows(args.triplets, args.rate, judge=True),
        "rules": lambda: fault_rows(args.triplets, args.rate, judge=False),
        "throughput": lambda: throughput_rows(args.calls),
        "memory": lambda: memory_rows(args.rows),
    }
    for name in args.only:
        for row in makers[name]():
            table.add_row(*dataclasses.astuple(row))
    Console().print(table)


if __name__ == "__main__":
    main()
