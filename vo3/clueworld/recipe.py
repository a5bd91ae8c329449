"""The recipe of the embedded model, from nothing to a checkpoint that `vo3.models.load` reads.

    python -m vo3.clueworld.recipe --workdir=out/clueworld

First the vision tower alone, then text alone, then transcripts, then trajectories, then twice on from a mean of parameters; the last mean is written as safetensors with
its config, tokenizer, crop policy and training log to WORKDIR/export. Killed and started again, it goes on from its last checkpoint.

`--seed=1` draws other parameters and other data. `--view=middle` (coarse, fine, coarse-only) trains a one-turn baseline by the same stages and steps: uniform frames at the visual tokens of an agent with two clips.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import jax
from etils import epath
from flax import nnx

from vo3.clueworld.config import model_config
from vo3.clueworld.scales import AGENT, VIEWS, get_scale
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.evals.journal import write_atomically
from vo3.train import workdir as runs

if TYPE_CHECKING:
    from vo3.models.qwen2_5_vl.model import Qwen2_5_VL

STAGES = (
    *("letters", "text", "read", "order", "whole", "finish"),
    *("polish", "last", "far", "settle", "again"),
)
# Means of parameters: each of the stages is good at something else, and their mean at nearly all of it.
MEANS = {
    "mean": ("polish", "last", "far"),
    "settled": ("mean", "settle"),
    "export": ("settled", "again"),
}
# The stages that start from one, not from the stage before.
_FROM_MEAN = {"settle": "mean", "again": "settled"}
# glibc returns a step's arrays to the system and takes them anew, page by page: kept, a step of `whole` takes 1.2 s instead of 1.5 on two cores.
_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_ARENA_MAX": "1",
}
# What a part of the recipe that is no run of the trainer writes last.
_DONE = {"vision": "vision.npz", **dict.fromkeys(MEANS, "vo3.json")}


def commands(workdir: epath.Path, view: str = AGENT, seed: int = 0) -> dict[str, list[str]]:
    """The command of each stage and mean, in order."""
    program = (sys.executable, "-m")
    chosen = (f"--view={view}", f"--seed={seed}")
    vision = workdir / "vision"
    made = {"vision": [*program, "vo3.clueworld.pretrain", f"--workdir={vision}", *chosen]}
    start = f"--config.init_vision={vision / 'vision.npz'}"
    for stage in STAGES:
        if stage in _FROM_MEAN:
            mean = _FROM_MEAN[stage]
            recipe = [*program, "vo3.clueworld.recipe", f"--workdir={workdir}", *chosen]
            made[mean] = [*recipe, f"--only={mean}"]
            start = f"--config.init_from={workdir / mean}"
        config = f"--config=configs/clueworld.py:{stage}.{view}.{seed}"
        made[stage] = [*program, "vo3.train.sft", config, f"--workdir={workdir / stage}", start]
        start = f"--config.init_from={workdir / stage}"
    return made


def write(workdir: epath.Path, mean: str, view: str = AGENT) -> None:
    """Writes one of `MEANS` to WORKDIR/MEAN as a Hugging Face directory with `vo3.json`."""
    from vo3.models import hf_io
    from vo3.models.qwen2_5_vl.model import Qwen2_5_VL

    model = Qwen2_5_VL(model_config(), rngs=nnx.Rngs(0))
    ends = [_params(model, workdir / name) for name in MEANS[mean]]
    nnx.update(model, jax.tree.map(lambda *values: sum(values) / len(values), *ends))
    target = workdir / mean
    target.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save_pretrained(os.fspath(target))
    hf_io.save(model, target, overwrite=True)  # a recipe that ran before
    policy = get_scale("clueworld").view(view)
    extras = {"crop_policy": policy.to_json(), "prompt_pack": "clueworld"}
    (target / _DONE[mean]).write_text(json.dumps(extras, indent=1) + "\n")


def _params(model: Qwen2_5_VL, folder: epath.Path) -> nnx.State:
    """The parameters that a run ended with, or of a mean."""
    from vo3.models import load
    from vo3.train.sft import latest_params

    if folder.name in MEANS:
        return nnx.state(load(folder), nnx.Param)
    return latest_params(model, folder)


def export(workdir: epath.Path, view: str = AGENT) -> None:
    """Writes the checkpoint of a finished run, and its training log beside it, to WORKDIR/export."""
    write(workdir, "export", view)
    logs = {"vision": workdir / "vision" / "vision_log.jsonl"}
    logs |= {stage: workdir / stage / "log.jsonl" for stage in STAGES}
    with (workdir / "export" / "training_log.jsonl").open("w") as log:
        for stage, path in logs.items():
            for line in path.read_text().splitlines():
                log.write(json.dumps({"stage": stage, **json.loads(line)}) + "\n")


def _go_on(folder: epath.Path) -> None:
    """Ends where a stage was asked to: the next would begin with what is half trained."""
    config = runs.stored(folder)
    done = max(runs.steps(folder), default=0)
    if config is None or done < config["steps"]:
        raise SystemExit(
            f"{folder} was asked to end after {done} steps; the same command goes on with it"
        )


def _there(workdir: epath.Path, name: str) -> bool:
    """Whether a stage or a mean has parameters."""
    if name in MEANS:
        return (workdir / name / _DONE[name]).exists()
    return bool(runs.steps(workdir / name))


def _claim(workdir: epath.Path, view: str, seed: int) -> None:
    """Writes down whose the folder is; refuses to mix it with another view or seed, whose tower or mean would pass unnoticed."""
    file, mine = workdir / "recipe.json", {"view": view, "seed": seed}
    if not file.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(mine) + "\n")
        return
    try:
        kept = json.loads(file.read_text())
        held = f"view {kept['view']}, seed {kept['seed']}"
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f"recipe: {file} does not tell whose the folder is; remove it if that is view {view}, seed {seed}"
        ) from error
    if kept != mine:
        raise SystemExit(
            f"recipe: {workdir} holds {held}, asked for are {view} and {seed}; choose another --workdir"
        )


def main(argv: list[str] | None = None) -> None:
    """Runs what is not done, then exports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--only", choices=MEANS, help="write this mean of a run's stages, no more")
    parser.add_argument("--view", choices=VIEWS, default=AGENT, help="a one-turn baseline")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and data")
    args = parser.parse_args(argv)
    workdir = epath.Path(args.workdir).absolute()
    if args.seed < 0:
        raise SystemExit(f"recipe: --seed is {args.seed}; seeds are 0 or above")
    if args.only and (missing := [m for m in MEANS[args.only] if not _there(workdir, m)]):
        raise SystemExit(
            f"recipe: {args.only} is the mean of {', '.join(MEANS[args.only])}, and {workdir / missing[0]} has no parameters; train it first"
        )
    _claim(workdir, args.view, args.seed)
    if args.only and args.only != "export":
        write(workdir, args.only, args.view)
        return
    if not args.only:
        for stage, command in commands(workdir, args.view, args.seed).items():
            if stage in _DONE and (workdir / stage / _DONE[stage]).exists():
                continue
            ended = subprocess.run(command, check=False, env={**_KEEP_MEMORY, **os.environ})
            if ended.returncode:
                raise SystemExit(
                    f"recipe: {stage} ended with code {ended.returncode}, see above; the same command goes on from its last checkpoint"
                )
            if stage in STAGES:
                _go_on(workdir / stage)
    export(workdir, args.view)
    print(
        f"wrote {workdir / 'export'}; ask it with: vo3 ask VIDEO QUESTION --checkpoint {workdir / 'export'}"
    )


if __name__ == "__main__":
    main()
