"""`vo3 doctor`. Only what the parser needs is imported here; the rest when the command runs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from etils import epath

from vo3.arguments import UsageError, check_writable, positive


def add(commands: Any) -> None:
    """Adds the command to `vo3`'s subparsers."""
    doctor = commands.add_parser(
        "doctor", help="say which rows can be trained on with the videos at hand"
    )
    doctor.set_defaults(run=_doctor)
    doctor.add_argument(
        "rows", metavar="ROWS", help="a file, a folder or a pattern: json, jsonl, parquet"
    )
    doctor.add_argument("--videos", metavar="ROOT", help="folder that the rows' paths start from")
    doctor.add_argument("--write-trainable", metavar="PATH", help="write the sound rows, as jsonl")
    doctor.add_argument(
        "--fetch-plan", metavar="PATH", help="write the missing videos by source, as JSON"
    )
    doctor.add_argument("--json", action="store_true", help="print the whole diagnosis as JSON")
    doctor.add_argument("--decode", action="store_true", help="decode the end of every video too")
    doctor.add_argument("--workers", type=positive(int), default=8, metavar="N")
    doctor.add_argument(
        "--timeout", type=positive(float), default=60.0, metavar="SECONDS", help="for one video"
    )


def _doctor(args: argparse.Namespace) -> int:
    from vo3 import json_line
    from vo3.data import doctor
    from vo3.data.files import RowFiles

    if (
        args.videos is not None
        and "://" not in args.videos
        and not epath.Path(args.videos).is_dir()
    ):
        raise UsageError(
            f"--videos {args.videos} is no folder; give the root of the rows' video paths"
        )
    check_writable("--write-trainable", args.write_trainable)
    check_writable("--fetch-plan", args.fetch_plan)
    try:
        rows = RowFiles(args.rows)
    except ValueError as error:
        raise UsageError(str(error)) from error
    found = doctor.diagnose(
        rows, videos=args.videos, workers=args.workers, timeout_s=args.timeout, decode=args.decode
    )
    print(json_line.dumps(found.to_json()) if args.json else doctor.table(found))
    if args.fetch_plan:
        plan = json_line.dumps(found.to_json()["fetch"], indent=1)
        epath.Path(args.fetch_plan).write_text(plan + "\n")
    if args.write_trainable:
        count = doctor.write_trainable(rows, found, args.write_trainable)
        print(f"wrote {count} rows to {args.write_trainable}", file=sys.stderr)
    return 0 if len(found.trainable) == found.rows else 1
