"""Evaluation and its pages, measured: `python -m benchmarks.evals [--only questions page]`.

* questions: 8 questions on one video through the evaluation's askers, beside asking each by itself: the video opened, its overview read,
  encoded and prefilled anew, as `VideoAgent` does it. The embedded model, a real mp4; compilation is not counted, and the
  answers are checked to be equal;
* page: `vo3 view` of 5,000 trajectories in headless Chromium: until the list can be used, and for each change of a filter.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from rich.console import Console
from rich.table import Table

from vo3.trajectory import Call, Clue, Observation, Target, Task, Trajectory, Turn

QUESTIONS, TRAJECTORIES = 8, 5000


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    ours: str
    other: str
    ratio: str
    goal: str


# ---------------------------------------------------------------- questions


def question_rows(repeats: int, seconds: int) -> Iterator[Row]:
    """Both askers beside one by one; medians of alternating runs."""
    import vo3.models
    from vo3.clueworld.evaluate import questions
    from vo3.clueworld.film import write_video
    from vo3.clueworld.world import make_world
    from vo3.evals import config as config_lib
    from vo3.evals.asking import Asked, EngineAsker, GroupAsker
    from vo3.evals.modes import prepare
    from vo3.rollout import Engine, GroupEngine
    from vo3.train.config import override

    config = override(config_lib.defaults(), max_new_tokens=160)
    model = vo3.models.load("clueworld")
    mode = prepare(
        "tools", crop=model.crop_policy, rollout=config_lib.rollout_policy(config), pack=model.prompt_pack
    )  # fmt: skip
    sampling = {"sampling": config_lib.sampling(config), "timeout_s": 120.0}
    given = {"pack": mode.pack, "policy": mode.rollout}
    world = make_world(7, duration=seconds)
    with tempfile.TemporaryDirectory() as folder:
        video = str(write_video(world, pathlib.Path(folder) / "world.mp4"))
        tasks = _spread(list(questions(world, video)), QUESTIONS)
        engine = Engine(model, **given)
        alone = EngineAsker(Engine(model, shared_prefixes=0, programs=engine.programs, **given), mode, **sampling)  # fmt: skip
        askers = {
            "one after the other": EngineAsker(engine, mode, **sampling),
            f"batch of {QUESTIONS}": GroupAsker(
                GroupEngine(model, slots=QUESTIONS, rollouts=1, **given), mode, **sampling
            ),
        }

        def one_by_one() -> list[Trajectory]:
            return [t for task in tasks for t in alone.ask([Asked(video, (task,))])]

        runs: dict[str, Callable[[], list[Trajectory]]] = {"one by one": one_by_one}
        for name, asker in askers.items():
            runs[name] = lambda asker=asker: list(asker.ask([Asked(video, tuple(tasks))]))
        first = {name: _answers(run()) for name, run in runs.items()}
        # Batches sum in another order: a near tie may turn, and the comparison is then still one of equal work.
        same = {name: sum(a == first["one by one"][k] for k, a in said.items()) for name, said in first.items()}  # fmt: skip
        spent = _alternate(runs, repeats)
    base = spent.pop("one by one")
    for name, taken in spent.items():
        yield Row(
            f"{QUESTIONS} questions on a video of {seconds} s, {name}; {same[name]} answers equal",
            f"{taken:.2f} s", f"one by one {base:.2f} s", f"{base / taken:.2f}x faster", ">= 3x",
        )  # fmt: skip


def _spread(tasks: Sequence[Task], count: int) -> list[Task]:
    """Some of the tasks, evenly over all quadrants."""
    return [tasks[i] for i in np.linspace(0, len(tasks) - 1, count).round().astype(int)]


def _answers(trajectories: Sequence[Trajectory]) -> dict[str, str | None]:
    return {t.task.id: t.answer for t in trajectories}


def _alternate(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


# ---------------------------------------------------------------- the page


def trajectories(count: int) -> Iterator[Trajectory]:
    """Made-up agents' trajectories with texts of natural length, a third of them wrong, none to two looks."""
    rng = np.random.default_rng(0)
    words = ["the", "man", "at", "left", "puts", "red", "blue", "small", "large", "box", "on", "table", "then", "walks", "to", "door", "while", "camera", "turns"]  # fmt: skip
    say = lambda n: " ".join(rng.choice(words, n))
    for number in range(count):
        options = {letter: say(6) for letter in "ABCD"}
        true, looks = str(rng.choice(list("ABCD"))), int(rng.integers(0, 3))
        answer = true if rng.random() < 0.67 else "A"
        duration = float(rng.uniform(60, 3600))
        clue = Clue(at := float(rng.uniform(0, duration - 20)), at + 12.0)
        task = Task(
            f"bench/{'abcdef'[number % 6]}-{number:05d}", f"videos/{number // 4:05d}.mp4", say(18) + "?", options,
            Target(true, (clue,), f"clue_single_w{'o' if not looks else ''}_tool"),
        )  # fmt: skip
        turns = [Turn("system", say(60)), Turn("question", "<video>\n" + task.question, observations=(_shown(0, 0.0, duration),))]  # fmt: skip
        for look in range(1, looks + 1):
            start = float(max(clue.start + rng.uniform(-15, 15), 0.0))
            call = Call(start, start + 14.0, "fine")
            turns.append(Turn("call", f"<think>{say(70)}</think>", call=call))
            turns.append(Turn("observation", "<video>\n" + say(20), observations=(_shown(look, start, start + 14.0),)))  # fmt: skip
        turns.append(Turn("answer", f"<think>{say(70)}</think>\n<answer>{answer}</answer>", answer=answer))  # fmt: skip
        yield Trajectory(task, tuple(turns), "answered", answer, meta={"seconds": 3.2})


def _shown(index: int, start: float, end: float) -> Observation:
    times = tuple(float(t) for t in np.linspace(start, end, 16))
    return Observation(
        index, start, end, 2.0, times, tuple(range(16)), 280, 504, (8, 20, 36), 1440, "fine" if index else None
    )  # fmt: skip


# Runs in the page: how long until it was ready, and how long each filter takes, layout and paint included.
_DRIVER = """
<script>
addEventListener("load", async () => {
  const ready = performance.now();
  const paint = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const took = {};
  for (const select of document.querySelectorAll("#filters select"))
    for (const option of [...select.options].slice(1, 5)) {
      const began = performance.now();
      select.value = option.value;
      select.dispatchEvent(new Event("change"));
      document.body.offsetHeight;
      took[`${select.name}=${option.value}`] = performance.now() - began;
      select.value = "";
      select.dispatchEvent(new Event("change"));
    }
  const search = document.getElementById("search");
  for (const text of ["d", "do", "doo", "door", "door camera", "00412"]) {
    const began = performance.now();
    search.value = text;
    search.dispatchEvent(new Event("input"));
    document.body.offsetHeight;
    took[`search ${text}`] = performance.now() - began;
  }
  document.body.dataset.told = JSON.stringify({ ready, took, count: document.getElementById("count").textContent });
});
</script>
"""


def page_rows(repeats: int) -> Iterator[Row]:
    """Opening and filtering; medians and worst of fresh browsers."""
    from vo3.viewer import gallery

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)  # fmt: skip
    if chromium is None:
        yield Row("page: left out, no chromium is installed (apt-get install chromium)", "", "", "", "")  # fmt: skip
        return
    with tempfile.TemporaryDirectory() as folder:
        where = pathlib.Path(folder)
        with (where / "t.jsonl").open("w") as out:
            out.writelines(t.dumps() + "\n" for t in trajectories(TRAJECTORIES))
        began = time.perf_counter()
        gallery.write(where / "t.jsonl", where / "out", limit=0, frames=False)
        wrote = time.perf_counter() - began
        text = (where / "out" / "index.html").read_text()
        size = len(text.encode()) / 2**20
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        (where / "out" / "index.html").write_text(text.replace("<body>", "<body>" + _DRIVER))
        told = [_open(chromium, where) for _ in range(repeats)]
    ready = [t["ready"] / 1e3 for t in told]
    worst = [max(t["took"].items(), key=lambda item: item[1]) for t in told]
    yield Row(
        f"page of {TRAJECTORIES:,} trajectories ({size:.1f} MiB) opens", f"{statistics.median(ready):.2f} s",
        f"worst of {repeats}: {max(ready):.2f} s", "", "<= 2 s",
    )  # fmt: skip
    slowest = max(worst, key=lambda item: item[1])
    median = statistics.median(v for t in told for v in t["took"].values())
    yield Row(
        f"{len(told[0]['took'])} filters and searches", f"{median:.0f} ms",
        f"worst: {slowest[1]:.0f} ms ({slowest[0]})", "", "<= 200 ms",
    )  # fmt: skip
    yield Row("the page is written", f"{wrote:.1f} s", "", "", "")


def _open(chromium: str, where: pathlib.Path) -> dict:
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", "--dump-dom",
        f"--user-data-dir={tempfile.mkdtemp(dir=where)}", f"file://{where}/out/index.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'data-told="([^"]*)"', done.stdout)
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=("questions", "page"), default=("questions", "page"))  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=1200, help="of the video")
    args = parser.parse_args()
    table = Table(title=f"evaluation, {os.cpu_count()} CPU threads")
    for column in ("what", "ours", "beside", "ratio", "goal"):
        table.add_column(column, justify="left" if column == "what" else "right")
    makers = {
        "questions": lambda: question_rows(args.repeats, args.seconds),
        "page": lambda: page_rows(args.repeats),
    }
    for name in args.only:
        for row in makers[name]():
            table.add_row(*dataclasses.astuple(row))
    Console(width=150).print(table)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
