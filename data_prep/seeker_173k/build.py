"""Builds the data set `seeker_173k` from annotation files:

    python -m data_prep.seeker_173k.build --manual_dir=ROWS --data_dir=DIR [--reject_limit=0.01]

Rows that break a rule are left out and written to `rejects.jsonl` beside the data set, with id and reason. When their share is
above the limit, nothing is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import tensorflow_datasets as tfds
from etils import epath

from data_prep.seeker_173k.seeker_173k_dataset_builder import Builder
from vo3.data.files import find_files


def build(manual_dir: str, data_dir: str, *, reject_limit: float = 0.01) -> epath.Path:
    """Builds the data set and returns its folder.

    Args:
      manual_dir: folder with the annotation files.
      data_dir: where TFDS keeps data sets; gs:// too.
      reject_limit: the largest share of rejected rows.

    Raises:
      FileNotFoundError: no annotation files.
      RejectLimitError: too many rows were rejected; the message names where they are listed.
      FileExistsError: the data set is there already.
    """
    find_files(manual_dir)  # TFDS would only say that something is missing
    builder = Builder(data_dir=data_dir, file_format="array_record")
    folder = epath.Path(builder.data_path)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; delete it to build it again")
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir, compute_stats=tfds.download.ComputeStatsMode.SKIP
    )
    builder.download_and_prepare(download_config=config)
    rejects = folder.parent / f"{folder.name}-rejects.jsonl"
    builder.rejects.save(rejects)
    try:
        builder.rejects.check(reject_limit, where=str(rejects))
    except ValueError:
        folder.rmtree()
        raise
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manual_dir", required=True, help="folder with the annotation files")
    parser.add_argument("--data_dir", required=True, help="where the data set is written")
    parser.add_argument("--reject_limit", type=float, default=0.01, help="a share, 0.01 is 1 %%")
    args = parser.parse_args(argv)
    try:
        folder = build(args.manual_dir, args.data_dir, reject_limit=args.reject_limit)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    info = tfds.builder_from_directory(folder).info
    print(f"{folder}: {info.splits['train'].num_examples} trajectories")


if __name__ == "__main__":
    main()
