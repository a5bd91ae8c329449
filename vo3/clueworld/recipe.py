"""The recipe of the embedded model, from nothing to a checkpoint that `vo3.models.load` reads.

    python -m vo3.clueworld.recipe --workdir=out/clueworld

First the vision tower alone, then text alone, then transcripts, then trajectories, then on from the mean of three stages' parameters; the last stage's are written as safetensors with
their config, tokenizer, crop policy and training log to WORKDIR/export. Killed and started again, it goes on from its last checkpoint.

`--seed=1` draws other parameters and other data. `--view=middle` (coarse, fine, coarse-only) trains a one-turn baseline by the same stages and steps: uniform frames at the visual tokens of an agent with two clips.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import jax
from etils import epath
from flax import nnx

from vo3.clueworld.config import model_config
from vo3.clueworld.scales import AGENT, VIEWS, get_scale
from vo3.clueworld.tokenizer import build_tokenizer

STAGES = ("letters", "text", "read", "order", "whole", "finish", "polish", "last", "far", "settle")
# Each of these is good at something else, and their mean at all of it: the last stage starts there.
AVERAGED = ("polish", "last", "far")


def commands(workdir: epath.Path, view: str = AGENT, seed: int = 0) -> dict[str, list[str]]:
    """The command of each stage, in order, with `mean` before the last."""
    program = (sys.executable, "-m")
    chosen = (f"--view={view}", f"--seed={seed}")
    vision = workdir / "vision"
    made = {"vision": [*program, "vo3.clueworld.pretrain", f"--workdir={vision}", *chosen]}
    start = f"--config.init_vision={vision / 'vision.npz'}"
    for stage in STAGES:
        if stage == STAGES[-1]:
            mean = [*program, "vo3.clueworld.recipe", f"--workdir={workdir}", *chosen]
            made["mean"] = [*mean, "--mean-only"]
            start = f"--config.init_from={workdir / 'mean'}"
        config = f"--config=configs/clueworld.py:{stage}.{view}.{seed}"
        made[stage] = [*program, "vo3.train.sft", config, f"--workdir={workdir / stage}", start]
        start = f"--config.init_from={workdir / stage}"
    return made


def write(workdir: epath.Path, target: epath.Path, stages: tuple[str, ...], view: str) -> None:
    """Writes the mean of the parameters that these stages ended with as a Hugging Face directory with `vo3.json`."""
    from vo3.models import hf_io
    from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
    from vo3.train.sft import latest_params

    model = Qwen2_5_VL(model_config(), rngs=nnx.Rngs(0))
    ends = [latest_params(model, workdir / stage) for stage in stages]
    nnx.update(model, jax.tree.map(lambda *values: sum(values) / len(values), *ends))
    target.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save_pretrained(os.fspath(target))
    hf_io.save(model, target, overwrite=True)  # a recipe that ran before
    policy = get_scale("clueworld").view(view)
    extras = {"crop_policy": policy.to_json(), "prompt_pack": "clueworld"}
    (target / "vo3.json").write_text(json.dumps(extras, indent=1) + "\n")


def export(workdir: epath.Path, target: epath.Path, view: str = AGENT) -> None:
    """Writes the checkpoint of a finished run, and its training log beside it."""
    write(workdir, target, STAGES[-1:], view)
    logs = {"vision": workdir / "vision" / "vision_log.jsonl"}
    logs |= {stage: workdir / stage / "log.jsonl" for stage in STAGES}
    with (target / "training_log.jsonl").open("w") as log:
        for stage, path in logs.items():
            for line in path.read_text().splitlines():
                log.write(json.dumps({"stage": stage, **json.loads(line)}) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Runs the stages that are not done, then exports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--export-only", action="store_true", help="write the checkpoint of a finished run"
    )
    only.add_argument(
        "--mean-only", action="store_true", help="write what the last stage starts from"
    )
    parser.add_argument("--view", choices=VIEWS, default=AGENT, help="a one-turn baseline")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and data")
    args = parser.parse_args(argv)
    workdir = epath.Path(args.workdir).absolute()
    if args.mean_only:
        write(workdir, workdir / "mean", AVERAGED, args.view)
        return
    if not args.export_only:
        for stage, command in commands(workdir, args.view, args.seed).items():
            done = {"vision": "vision.npz", "mean": "vo3.json"}.get(stage)  # written last
            if done and (workdir / stage / done).exists():
                continue
            subprocess.run(command, check=True)
    export(workdir, workdir / "export", args.view)
    print(
        f"wrote {workdir / 'export'}; ask it with: vo3 ask VIDEO QUESTION --checkpoint {workdir / 'export'}"
    )


if __name__ == "__main__":
    main()
