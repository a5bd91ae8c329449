"""`vo3 eval` and `vo3 compare`. Only what the parser needs is imported here; the rest when a command runs."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath


def add(commands: Any) -> None:
    """Adds the commands to `vo3`'s subparsers."""
    run = commands.add_parser(
        "eval", help="evaluate a checkpoint on benchmarks and write result cards"
    )
    run.set_defaults(run=_eval)
    run.add_argument(
        "benchmarks", metavar="BENCHMARKS", nargs="?", default="clueworld",
        help="names, comma-separated: videomme, mlvu, lvbench, longvideobench, videommmu, mmvu, videoholmes, charades, clueworld (default)",
    )  # fmt: skip
    run.add_argument("--checkpoint", default="clueworld", metavar="NAME|DIR")
    run.add_argument(
        "--workdir", required=True, metavar="DIR", help="results; a second run goes on with the first"
    )  # fmt: skip
    run.add_argument(
        "--data", metavar="DIR", help="a benchmark lies in its folder of this, as downloaded"
    )
    run.add_argument("--modes", default="tools", help="tools, direct, think; comma-separated")
    run.add_argument("--limit", type=int, default=0, metavar="N", help="the first N questions")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="any key of the evaluation's config, as --set clueworld.worlds=5",
    )  # fmt: skip

    compare = commands.add_parser(
        "compare", help="say what differs between two result cards, and which questions flipped"
    )
    compare.set_defaults(run=_compare)
    compare.add_argument("first", metavar="CARD", help="a card.json, or its folder")
    compare.add_argument("second", metavar="CARD")
    compare.add_argument("--html", metavar="PATH", help="write the comparison as a page too")


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """`["limit=5", "crop.recipe=rl"]` as key -> value of the type that the key has.

    Raises:
      ConfigError: no `=`, an unknown key, a value of another type.
    """
    from vo3.evals import config as config_lib
    from vo3.train.config import ConfigError, check_keys

    changes: dict[str, Any] = {}
    for text in given:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise ConfigError(f"--set {text!r} is not KEY=VALUE; write it as --set max_turns=4")
        check_keys(config_lib.defaults(), [key])
        kept = config_lib.flat_defaults().get(key)
        if isinstance(kept, str):
            changes[key] = value
            continue
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            read = None
        if isinstance(kept, float) and type(read) is int:
            read = float(read)
        if type(read) is not type(kept):
            raise ConfigError(f"--set {text!r}: {key} is like {kept!r}, and {value!r} is not")
        changes[key] = read
    return changes


def _eval(args: argparse.Namespace) -> int:
    from vo3.evals import config as config_lib
    from vo3.train.config import override

    changes = {
        "benchmarks": args.benchmarks,
        "checkpoint": args.checkpoint,
        "modes": args.modes,
        "limit": args.limit,
    }
    if args.data:
        changes["data_root"] = args.data
    config = override(config_lib.defaults(), **(changes | parse_settings(args.set)))
    config_lib.validate(config)

    from vo3.evals import report, runner

    made = runner.evaluate(config, args.workdir)
    print(report.table(made))
    if made:
        print(f"wrote {epath.Path(args.workdir) / report.HTML}", file=sys.stderr)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from vo3.evals import cards, compare

    found = compare.compare(cards.load(args.first), cards.load(args.second))
    print(compare.text(found), end="")
    if args.html:
        epath.Path(args.html).write_text(compare.page(found))
        print(f"wrote {args.html}", file=sys.stderr)
    return 0
