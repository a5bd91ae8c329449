"""Static VLIW cost of TPU kernels, without a TPU.

Compiles a function for one device of a TPU topology through libtpu and reads, for each kernel in it, the final schedule: bundles (one
bundle = one cycle if nothing stalls), slots used, and the same per section. A section is what a `pl.when` guards; what lies outside all
sections is the cost of a grid step. Loops inside a section are listed apart, as a loop's bundles are paid once per turn.
Every branch and every loop body is counted once. The figures are deterministic; nothing here has run on a TPU.

    python -m benchmarks.bundles                                    # our forward kernel and JAX's splash, v5e
    python -m benchmarks.bundles --fn my_module:build --topology v6e:2x2

`my_module:build` names a function without arguments that returns (fn, args), args being jax.ShapeDtypeStruct; `name=value`
pairs after it are passed as integers or floats: `--fn benchmarks.attention_cases:forward block_q=256`.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import glob
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# A taken branch leaves after four more bundles, which both sides pay.
DELAY = 4


@dataclasses.dataclass(frozen=True)
class Section:
    """A stretch of the schedule that a branch can skip: bundles in it, and of those in each loop (by order)."""

    bundles: int
    loops: tuple[int, ...] = ()

    def per_head(self, heads: int) -> float:
        """Bundles per head of a step: a loop runs once per head, an unrolled section holds all heads."""
        if self.loops:
            return sum(self.loops) + (self.bundles - sum(self.loops)) / heads
        return self.bundles / heads


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A compiled kernel: all its bundles, slots used over the whole, sections in order, and the rest (one grid step)."""

    bundles: int
    slots: dict[str, int]
    sections: tuple[Section, ...]
    step: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What compiling one function gave. `cycles`: the compiler's own estimates of its instructions, which know nothing of kernels."""

    device: str
    cycles: int
    temp_bytes: int
    argument_bytes: int
    output_bytes: int
    kernels: dict[str, Kernel]

    def kernel(self, name: str) -> Kernel:
        """The one kernel whose name contains `name`."""
        found = [k for n, k in self.kernels.items() if name in n]
        if len(found) != 1:
            raise ValueError(f"{len(found)} kernels match {name!r}: {sorted(self.kernels)}")
        return found[0]


def compile_for(topology: str, target: str, options: dict) -> dict:
    """Compiles `module:function(**options)` in this process; memory figures in bytes."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    module, name = target.split(":")
    fn, args = getattr(importlib.import_module(module), name)(**options)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    here = NamedSharding(Mesh(np.array(devices[:1]), ("x",)), PartitionSpec())
    lowered = jax.jit(fn, in_shardings=here, out_shardings=here).lower(*args)
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        (text,) = pathlib.Path(folder).glob("*.after_codegen.txt")
        cycles = entry_cycles(text.read_text())
    memory = compiled.memory_analysis()
    return {
        "device": devices[0].device_kind,
        "cycles": cycles,
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }


def entry_cycles(hlo: str) -> int:
    """Sum of the estimates that the compiler wrote beside the instructions of a program's entry; loops count once.

    They stand in the text after code generation alone. Copies into another layout are left out: a model around the function may
    not need them.
    """
    lines = hlo[hlo.index("\nENTRY ") :].splitlines()
    found = (re.search(r'"estimated_cycles":"(\d+)"', x) for x in lines if " copy(" not in x)
    return sum(int(n.group(1)) for n in found if n)


def measure(topology: str, target: str, **options) -> Compiled:
    """Compiles in a child process (libtpu reads its flags once per process) and reads the dump.

    Raises:
      RuntimeError: the compilation failed, with the end of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        env = dict(
            os.environ,
            TPU_SKIP_MDS_QUERY="1",
            JAX_PLATFORMS="cpu",
            ALLOW_MULTIPLE_LIBTPU_LOAD="1",
            LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
            PYTHONPATH=os.pathsep.join([ROOT, os.getcwd(), os.environ.get("PYTHONPATH", "")]),
        )
        command = [sys.executable, "-m", "benchmarks.bundles", "--child", "--topology", topology]
        command += ["--fn", target, *(f"{k}={v}" for k, v in options.items())]
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"{target} {options} for {topology}: {run.stderr[-3000:]}")
        record = json.loads(run.stdout.strip().splitlines()[-1])
        return Compiled(kernels=read_dump(folder), **record)


def read_dump(folder: str) -> dict[str, Kernel]:
    """Every custom kernel in a dump folder by name (XLA's own fusions are left out)."""
    kernels = {}
    for path in sorted(glob.glob(f"{folder}/*schedule-analysis_final_bundles.txt")):
        head = pathlib.Path(path).read_text(errors="replace")
        found = re.search(r"total scheduled bundles:\s+(\d+)", head)
        if not found or "tpu_custom_call" not in head:
            continue
        stem, name = re.match(r"(\d+-(.*))-\d+-schedule-analysis", os.path.basename(path)).groups()
        if name == "TLP":  # the program around the kernels
            continue
        (text,) = glob.glob(f"{folder}/{glob.escape(stem)}-[0-9]*-final_bundles.txt")
        (slots,) = glob.glob(f"{folder}/{glob.escape(stem)}-[0-9]*-final_hlo-static-per-bundle*")
        sections, step = read_sections(pathlib.Path(text).read_text(errors="replace"))
        kernels[name] = Kernel(
            int(found.group(1)), _slots(pathlib.Path(slots).read_text()), sections, step
        )
    return kernels


def _slots(text: str) -> dict[str, int]:
    head, rows = text.split("== UTILIZATION:")
    names = [s.strip() for s in head.split("\n")[1].split(",")]
    counts = [list(map(int, line.split())) for line in rows.strip().split("\n") if line.strip()]
    return {name: sum(row[i] for row in counts) for i, name in enumerate(names)}


def read_sections(text: str, *, least: int = 60) -> tuple[tuple[Section, ...], int]:
    """Innermost sections of at least `least` bundles in order of appearance, and the bundles outside them."""
    starts, labels, branches, last = {}, {}, [], 0
    for line in text.splitlines():
        found = re.match(r"\s*(0x[0-9a-f]+|0)\s", line)
        if found:
            last = int(found.group(1), 16)
        for region in re.findall(r"Start region (\d+)", line):
            starts.setdefault(region, last)
        for region in re.findall(r"Start/End empty region (\d+)", line):
            labels[region] = last
        branches += [(last, region) for region in re.findall(r"target = \$region(\d+)", line)]
    spans, loops = [], []
    for at, region in branches:
        goal = labels.get(region, starts.get(region))
        if goal is None:
            continue
        if goal > at and goal - at - DELAY - 1 >= least:
            spans.append((at + DELAY + 1, goal))
        elif goal <= at:
            loops.append((goal, at + DELAY + 1))
    # A span that holds another one is the pipeline around the kernel, or an outer guard.
    inner = [
        s
        for s in sorted(set(spans))
        if not any(s != t and s[0] <= t[0] and t[1] <= s[1] for t in spans)
    ]
    sections = tuple(
        Section(end - begin, tuple(b - a for a, b in sorted(set(loops)) if begin <= a and b <= end))
        for begin, end in inner
    )
    return sections, last + 1 - sum(s.bundles for s in sections)


def main() -> None:
    """Prints the kernels of one function."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fn", action="append", help="module:function, default: ours and JAX's")
    parser.add_argument("--topology", default="v5e:2x2", help="v5e:2x2 v5p:2x2x1 v6e:2x2 ...")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", help="name=value for the function")
    args = parser.parse_args()
    options = {k: ast.literal_eval(v) for k, v in (x.split("=") for x in args.options)}
    if args.child:
        print(json.dumps(compile_for(args.topology, args.fn[0], options)))
        return
    cases = "benchmarks.attention_cases"
    for target in args.fn or [f"{cases}:forward", f"{cases}:jax_splash_forward"]:
        compiled = measure(args.topology, target, **options)
        print(
            f"{target} {options} compiled for {compiled.device}: {compiled.temp_bytes} temp bytes"
        )
        for name, kernel in sorted(compiled.kernels.items()):
            print(f"  {kernel.bundles:6d} bundles  {name}   step {kernel.step}")
            for section in kernel.sections:
                print(f"    {section.bundles:6d}  section, loops {list(section.loops)}")
            print("    " + "  ".join(f"{s} {n}" for s, n in kernel.slots.items()))


if __name__ == "__main__":
    main()
