"""Our 7B train step beside MaxText's of the same size, compiled for the same slice: `python -m benchmarks.maxtext`.

    python3.12 -m venv .venv-maxtext && .venv-maxtext/bin/pip install 'maxtext[tpu]'      # once: an environment of its own, 3 GB
    python -m benchmarks.maxtext [--topology v5p-32] [--length 32768]

Both train the decoder of Qwen2.5-7B on text alone: one row a chip, weights and AdamW in float32 sharded over all chips, bfloat16
computation, every layer recomputed, flash attention, no accumulation; MaxText's logits in as many tiles as `--tiles` says. Ours carries its
frozen vision tower's weights as well. Compiled through libtpu, nothing runs. Bytes sent are read from both programs by the same code.
Ours is compiled by the libtpu of MaxText's environment too: compilers differ by more than the goal. The versions of jax are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from importlib import metadata

from rich.console import Console
from rich.table import Table

from vo3.train import chips, hlo

ROOT = pathlib.Path(__file__).resolve().parent.parent
GIB = 1 << 30
# For libtpu on a machine that is no TPU worker.
NO_TPU = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
}  # fmt: skip
GOAL = 1.05


@dataclasses.dataclass(frozen=True)
class Step:
    """What one device of the slice holds at the peak, and sends in a step; bytes."""

    memory: float
    sent: float
    by_kind: dict[str, float]
    versions: str


def ours(topology: str, length: int) -> Step:
    """The update of `configs/sft_stage1.py` on rows of text: features come from a cache, so the frozen tower does not run."""
    from vo3.train import compile_check
    from vo3.train.config import load, override

    devices = chips.topology(topology).chips
    config = override(
        load(str(ROOT / "configs" / "sft_stage1.py")),
        **{"data.feature_cache": "features", "data.trajectories_per_step": devices},
    )
    got = compile_check.check(config, topology, length=length, patches=1024)
    if got.micro_batches != 1 or got.shapes.rows != devices:
        raise ValueError(
            f"{got.micro_batches} micro-batches of {got.shapes.rows} rows; wanted one of {devices}"
        )
    sent = {c.kind: c.bytes for c in got.collectives}
    return Step(got.total, sum(sent.values()), sent, _versions(sys.executable))


def theirs(python: pathlib.Path, topology: str, length: int, tiles: int) -> Step:
    """MaxText's own ahead-of-time compilation.

    Raises:
      RuntimeError: it failed, with the end of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(python),
            "-m",
            "maxtext.trainers.pre_train.train_compile",
            _base_config(python),
        ]
        command += [
            "model_name=qwen2.5-7b", f"compile_topology={topology}", "compile_topology_num_slices=1",
            "per_device_batch_size=1", f"max_target_length={length}", "remat_policy=full", "attention=flash",
            "dataset_type=synthetic", "enable_checkpointing=false", "run_name=compile", f"num_vocab_tiling={tiles}",
            f"base_output_directory={folder}/out", f"compile_xla_flags=--xla_dump_to={folder}/dump",
        ]  # fmt: skip
        # Our libtpu has left its own path in the environment; theirs must take the one that suits its jax.
        inherited = {k: v for k, v in os.environ.items() if k != "TPU_LIBRARY_PATH"}
        run = subprocess.run(
            command, env={**inherited, **NO_TPU}, capture_output=True, text=True, check=False
        )
        said = run.stdout + run.stderr
        found = re.search(r"Memory analysis: CompiledMemoryStats\((.*?)\)", said, re.DOTALL)
        if run.returncode or not found:
            raise RuntimeError(f"MaxText's compilation ended with {run.returncode}: {said[-3000:]}")
        sizes = {k: int(v) for k, v in re.findall(r"(\w+)_in_bytes=(\d+)", found.group(1))}
        dumps = pathlib.Path(folder, "dump").glob("*.after_optimizations.txt")
        text = max(dumps, key=lambda p: p.stat().st_size).read_text()
    program = hlo.parse(text)
    if program.unknown_loops:
        raise RuntimeError(f"trips of loops are unknown: {program.unknown_loops}")
    found = hlo.collectives(program, devices=chips.topology(topology).chips)
    memory = (
        sizes["argument_size"] + sizes["output_size"] - sizes["alias_size"] + sizes["temp_size"]
        + sizes["generated_code_size"]
    )  # fmt: skip
    sent = {c.kind: c.bytes for c in found}
    return Step(float(memory), sum(sent.values()), sent, _versions(str(python)))


def _base_config(python: pathlib.Path) -> str:
    """MaxText's base.yml in its environment."""
    found = sorted(python.parent.parent.glob("lib/python*/site-packages/maxtext/configs/base.yml"))
    if not found:
        raise FileNotFoundError(
            f"no MaxText beside {python}: python3.12 -m venv .venv-maxtext && .venv-maxtext/bin/pip install 'maxtext[tpu]'"
        )
    return str(found[0])


def _versions(python: str) -> str:
    if python == sys.executable:
        return f"jax {metadata.version('jax')}"
    code = (
        "from importlib.metadata import version as v; print('jax', v('jax'), 'libtpu', v('libtpu'))"
    )
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5p-32")
    parser.add_argument("--length", type=int, default=32_768)
    parser.add_argument("--tiles", type=int, default=16, help="of MaxText's logits")
    parser.add_argument(
        "--python", type=pathlib.Path, default=ROOT / ".venv-maxtext" / "bin" / "python"
    )
    args = parser.parse_args()
    base = pathlib.Path(_base_config(args.python))
    # Read when the first topology is asked for.
    os.environ["TPU_LIBRARY_PATH"] = str(base.parents[2] / "libtpu" / "libtpu.so")
    mine = ours(args.topology, args.length)
    other = theirs(args.python, args.topology, args.length, args.tiles)
    table = Table(
        title=f"7B, a row of {args.length:,} tokens a chip, {args.topology}, per device; compiled, not run"
    )
    for column in (
        "what",
        f"ours ({mine.versions})",
        f"MaxText ({other.versions})",
        "ratio",
        "goal",
    ):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = [
        ("memory at the peak", mine.memory, other.memory),
        ("sent in a step", mine.sent, other.sent),
    ]
    for name, a, b in rows:
        table.add_row(
            name, f"{a / GIB:.2f} GiB", f"{b / GIB:.2f} GiB", f"{a / b:.2f}x", f"<= {GOAL}x"
        )
    for kind in sorted({*mine.by_kind, *other.by_kind}):
        a, b = mine.by_kind.get(kind, 0.0), other.by_kind.get(kind, 0.0)
        table.add_row(f"  {kind}", f"{a / GIB:.2f} GiB", f"{b / GIB:.2f} GiB", "", "")
    Console(width=130).print(table)


if __name__ == "__main__":
    # libtpu reads them when it is loaded.
    os.environ.update({**NO_TPU, **{k: os.environ[k] for k in NO_TPU if k in os.environ}})
    main()
