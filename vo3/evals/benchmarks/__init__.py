"""Readers of the benchmarks' official annotation files, with their official metrics and scorers."""

from __future__ import annotations

from vo3.evals.benchmarks.base import Benchmark, Options, Read
from vo3.evals.benchmarks.charades import CHARADES
from vo3.evals.benchmarks.clueworld import CLUEWORLD
from vo3.evals.benchmarks.longvideobench import LONGVIDEOBENCH
from vo3.evals.benchmarks.lvbench import LVBENCH
from vo3.evals.benchmarks.mlvu import MLVU
from vo3.evals.benchmarks.mmvu import MMVU
from vo3.evals.benchmarks.videoholmes import VIDEOHOLMES
from vo3.evals.benchmarks.videomme import VIDEOMME
from vo3.evals.benchmarks.videommmu import VIDEOMMMU

# In the order of the published table, then grounding, then our own.
_ALL = (VIDEOMME, MLVU, LVBENCH, LONGVIDEOBENCH, VIDEOMMMU, MMVU, VIDEOHOLMES, CHARADES, CLUEWORLD)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}

__all__ = ["BENCHMARKS", "Benchmark", "Options", "Read"]
