"""Load on `vo3 serve` over loopback, with the embedded model: `python -m benchmarks.serve --clients 64 --minutes 10`.

As many clients as asked for, each an `openai` client that asks one question after the other on one of a few ClueWorld films, every second one as a
stream; every twentieth leaves in the middle. A 429 is waited out as its Retry-After says, and counted. Memory is the server's own, from
/metrics, sampled every two seconds after the warm-up. Client and server share the machine. With --url a server that is up already is asked instead.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import numpy as np
import openai
from rich.console import Console
from rich.table import Table

from vo3.clueworld import tasks
from vo3.clueworld.film import write_video
from vo3.clueworld.world import make_world

FILMS, SECONDS, FIRST = 4, 300, 2031


@dataclasses.dataclass
class Seen:
    """What the clients saw.

    Attributes:
      seconds: of every answer, from asking to its last byte, waiting for a place left aside.
      first: of every stream, to its first piece.
      tokens: written, in all answers.
      right: answers that were true.
      refused: 429s; left: questions given up on purpose.
      errors: everything else, by kind.
      memory: (seconds, MiB) of the server.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    first: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0
    right: int = 0
    refused: int = 0
    left: int = 0
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    memory: list[tuple[float, float]] = dataclasses.field(default_factory=list)


def films(folder: pathlib.Path) -> list[tuple[str, str, str]]:
    """(film, question, true answer), films written where they are not there."""
    asked = []
    for seed in range(FIRST, FIRST + FILMS):
        world = make_world(seed, duration=SECONDS)
        path = folder / f"{seed}.mp4"
        if not path.exists():
            write_video(world, path)
        for card in world.cards:
            question = tasks.digit_question(card)
            asked.append((path.name, question.text, question.answer))
    return asked


@contextlib.contextmanager
def served(folder: pathlib.Path, *, slots: int, queue: int) -> Iterator[str]:
    """A server in a process of its own; gives its address."""
    command = [
        sys.executable, "-m", "vo3.cli", "serve", "--port", "0", "--root", str(folder), "--slots", str(slots), "--queue", str(queue),
    ]  # fmt: skip
    log = folder / f"server-{os.getpid()}.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stderr=errors, env=os.environ | {"JAX_PLATFORMS": "cpu"}
        ) as process,
    ):
        try:
            while " on http://" not in (text := log.read_text()):
                if process.poll() is not None:
                    raise SystemExit(text)
                time.sleep(0.2)
            yield text.split(" on ")[1].split()[0]
        finally:
            process.terminate()
            process.wait(30)


async def ask(
    client: openai.AsyncOpenAI, item: tuple[str, str, str], number: int, seen: Seen, end: float
) -> None:
    """One question; who is refused comes back until `end`."""
    film, text, truth = item
    content = [{"type": "video_url", "video_url": {"url": film}}, {"type": "text", "text": text}]
    body = {"model": "clueworld", "messages": [{"role": "user", "content": content}]}
    while True:
        began = time.perf_counter()
        try:
            if number % 2:
                answer, tokens = await stream(client, body, began, number, seen)
            else:
                got = await client.chat.completions.create(**body, extra_body={"vo3": {"trajectory": False}})  # fmt: skip
                answer, tokens = got.choices[0].message.content, got.usage.completion_tokens
        except openai.RateLimitError as error:
            seen.refused += 1
            wait = float(error.response.headers["retry-after"])
            if time.perf_counter() + wait > end:
                return
            await asyncio.sleep(wait)
            continue
        except openai.OpenAIError as error:
            seen.errors[f"{type(error).__name__}: {error}"[:100]] += 1
            return
        if answer is not None:
            seen.seconds.append(time.perf_counter() - began)
            seen.tokens += tokens
            seen.right += answer == truth
        return


async def stream(client, body, began: float, number: int, seen: Seen) -> tuple[str | None, int]:
    """The answer and its tokens; None for one that is given up."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    text, tokens, first = "", 0, True
    async with await client.chat.completions.create(**body, **options) as chunks:
        async for chunk in chunks:
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
            for choice in chunk.choices:
                text += choice.delta.content or ""
                thought = getattr(choice.delta, "reasoning_content", None)
                if first and thought:
                    seen.first.append(time.perf_counter() - began)
                    first = False
                    if number % 20 == 1:
                        seen.left += 1
                        return None, 0
    return text, tokens


async def load(url: str, asked: list, *, clients: int, seconds: float) -> tuple[Seen, float]:
    """Everybody asks until the time is over; gives what they saw, and how long it took."""
    seen, began = Seen(), time.perf_counter()
    end = began + seconds

    async def one(number: int) -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=os.environ.get("VO3_API_KEY", "none"), max_retries=0, timeout=600) as client:  # fmt: skip
            count = 0
            while time.perf_counter() < end:
                turn = number + clients * count
                await ask(client, asked[turn % len(asked)], turn, seen, end)
                count += 1

    async def watch() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            while True:
                found = metrics((await client.get(f"{url}/metrics")).text)
                seen.memory.append((time.perf_counter() - began, found["process_resident_memory_bytes"] / 2**20))  # fmt: skip
                await asyncio.sleep(2)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(one(number) for number in range(clients)))
    watching.cancel()
    return seen, time.perf_counter() - began


def metrics(text: str) -> dict[str, float]:
    """The values of /metrics without labels."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    return {name: float(value) for name, value in lines}


def by_minute(memory: list[tuple[float, float]]) -> str:
    """The median of every minute."""
    minutes = collections.defaultdict(list)
    for second, mib in memory:
        minutes[int(second // 60)].append(mib)
    return " ".join(f"{statistics.median(found):.0f}" for found in minutes.values())


def report(seen: Seen, took: float, before: dict, after: dict, *, clients: int) -> dict:
    """The figures."""
    share = lambda values, q: float(np.percentile(values, q)) if values else float("nan")
    return {
        "clients": clients,
        "minutes": took / 60,
        "answers": len(seen.seconds),
        "right": seen.right / max(1, len(seen.seconds)),
        "refused (429)": seen.refused,
        "left": seen.left,
        "errors": dict(seen.errors),
        "p50 s": share(seen.seconds, 50),
        "p99 s": share(seen.seconds, 99),
        "first token p50 s": share(seen.first, 50),
        "first token p99 s": share(seen.first, 99),
        "answers/s": len(seen.seconds) / took,
        "tokens/s": (after["vo3_sampled_tokens"] - before["vo3_sampled_tokens"]) / took,
        "tokens a step": (after["vo3_sampled_tokens"] - before["vo3_sampled_tokens"]) / max(1, after["vo3_decode_steps"] - before["vo3_decode_steps"]),
        "programs compiled meanwhile": after["vo3_programs"] - before["vo3_programs"],
        "RSS MiB, by minute": by_minute(seen.memory),
        "RSS most MiB": max(mib for _, mib in seen.memory),
    }  # fmt: skip


def main() -> None:
    """Prints one table; `--json` writes it too."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--queue", type=int, default=40)
    parser.add_argument("--folder", default="out/serve", help="for films and the server's log")
    parser.add_argument("--url", help="of a server that is up, with the films' folder as its root")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    folder = pathlib.Path(args.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    asked = films(folder)
    up = contextlib.nullcontext(args.url) if args.url else served(folder, slots=args.slots, queue=args.queue)  # fmt: skip
    with up as url:
        # The warm-up: every film and every bucket in use is met once.
        asyncio.run(load(url, asked, clients=args.slots, seconds=1))
        read = lambda: metrics(httpx.get(f"{url}/metrics", timeout=60).text)
        before = read()
        seen, took = asyncio.run(load(url, asked, clients=args.clients, seconds=60 * args.minutes))
        found = report(seen, took, before, read(), clients=args.clients)
    table = Table("", "vo3 serve, embedded model, CPU")
    for name, value in found.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
