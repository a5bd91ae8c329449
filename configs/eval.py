"""The published evaluation: the agent, greedy, 8 turns, no subtitles; ClueWorld alone unless benchmarks are named.

python -m vo3.evals.runner --config=configs/eval.py --config.benchmarks=mlvu,videomme --config.checkpoint=DIR --config.data_root=DATA --workdir=OUT
"""

import ml_collections

from vo3.evals.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """Every value is the default; see `vo3.evals.config.defaults`."""
    return defaults()
