"""`vo3 convert` and `vo3 convert-config`. Only what the parser needs is imported here; the rest when a command runs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from etils import epath

from vo3.arguments import UsageError, check_writable, positive


def add(commands: Any) -> None:
    """Adds the commands to `vo3`'s subparsers."""
    convert = commands.add_parser("convert", help="rewrite a checkpoint")
    convert.set_defaults(run=_convert)
    convert.add_argument(
        "source",
        metavar="SRC",
        help="a checkpoint directory, a training run's workdir, or clueworld",
    )
    convert.add_argument(
        "target", metavar="DST", help="a directory that does not exist or is empty"
    )
    convert.add_argument("--to", choices=("hf", "orbax"), required=True)
    convert.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the weights; default: as stored"
    )

    config = commands.add_parser(
        "convert-config", help="settings of LLaMA-Factory or verl as a training config"
    )
    config.set_defaults(run=_convert_config)
    config.add_argument("file", metavar="FILE.yaml")
    config.add_argument("--out", metavar="FILE.py", help="default: standard output")
    config.add_argument(
        "--gpus",
        type=positive(int),
        metavar="N",
        help="of the original run: its batch is given per GPU",
    )


def _convert(args: argparse.Namespace) -> int:
    target = epath.Path(args.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(
            f"{args.target} is there already; give a directory that does not exist or is empty"
        )

    from rich.console import Console

    import vo3.models
    from vo3.models import loading

    console = Console()
    with console.status(f"reading {args.source}"):
        if (epath.Path(args.source) / "checkpoints").is_dir():  # a training run's workdir
            from vo3.train.finished import load_run

            model = load_run(args.source, dtype=args.dtype)
        else:
            model = vo3.models.load(args.source, dtype=args.dtype)
    with console.status(f"writing {args.target}"):
        if args.to == "hf":
            model.save_hf(target)
        else:
            vo3.models.save_orbax(model, target)
        loading.record_time(model, target)
    console.print(f"wrote {args.target} ({args.to})", highlight=False)
    return 0


def _convert_config(args: argparse.Namespace) -> int:
    from vo3.train import convert_config

    check_writable("--out", args.out)
    conversion = convert_config.read(args.file, gpus=args.gpus)
    text = convert_config.source(conversion, origin=epath.Path(args.file).name)
    print(convert_config.report(conversion), end="", file=sys.stderr)
    if args.out:
        epath.Path(args.out).write_text(text)
        print(f"wrote {args.out} ({conversion.kind})")
    else:
        print(text, end="")
    return 0
