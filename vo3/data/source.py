"""Trajectories by number: from annotation files, or from the prepared data set `seeker_173k`.

A source reads a row when it is asked for it and keeps nothing but places; it may be pickled and sent to worker processes. Row i
stays row i: a row that cannot be used raises `RowError`, its number is not given to another.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from etils import epath

from vo3.data.clips import clip_refs
from vo3.data.files import FileFormat, RowFiles
from vo3.data.rejects import RowError
from vo3.data.seeker import SFT_FRAME_FPS, sft_trajectory
from vo3.trajectory import Trajectory

Format = Literal["auto", "rows", "tfds"]
# Belongs to the fingerprints: raise it when the same row becomes another trajectory.
_READER = 1


class TrajectorySource(Protocol):
    """Random access to trajectories, the same in every process.

    Attributes:
      fingerprint: a hash of the contents and of how they are read.
      contents: of the contents alone, wherever they and their videos lie.
    """

    fingerprint: str
    contents: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Trajectory: ...


class RowSource:
    """Trajectories of SFT rows in JSON, JSONL or Parquet files (see `vo3.data.seeker` and `vo3.data.files`)."""

    def __init__(
        self,
        path: epath.PathLike | Sequence[epath.PathLike],
        *,
        videos: epath.PathLike | None = None,
        frame_fps: float = SFT_FRAME_FPS,
        files: FileFormat = "auto",
    ):
        """Finds the rows; arguments and errors as for `vo3.data.seeker.read_sft` and `RowFiles`."""
        self._rows = RowFiles(path, format=files)
        self._videos = None if videos is None else os.fspath(videos)
        self._frame_fps = frame_fps
        self.contents = self._rows.fingerprint
        self.fingerprint = _hash(_READER, self.contents, self._videos, frame_fps)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Trajectory:
        """The trajectory.

        Raises:
          RowError: the row breaks a rule.
          IndexError, OSError: there is no such row; the file is gone.
        """
        return sft_trajectory(
            self._rows[index],
            self._rows.describe(index),
            videos=self._videos,
            frame_fps=self._frame_fps,
        )


class TfdsSource:
    """Trajectories of the prepared data set, by ArrayRecord. TensorFlow is neither needed nor imported."""

    def __init__(
        self, path: epath.PathLike, *, split: str = "train", videos: epath.PathLike | None = None
    ):
        """Opens a prepared data set.

        Args:
          path: the folder with `features.json`, or one above it (`data_dir`, `data_dir/seeker_173k`).
          split: as TFDS writes it, "train[:10%]" too.
          videos: folder that relative video paths start from.

        Raises:
          FileNotFoundError: no prepared data set there, or several.
          ValueError: an unknown split, or files that are not ArrayRecord.
        """
        folder = prepared_folder(path)
        if folder is None:
            raise FileNotFoundError(
                f"no prepared data set in {path}; build it with "
                "`python -m data_prep.seeker_173k.build --manual_dir=ROWS --data_dir=DIR`"
            )
        self._path, self._split = os.fspath(folder), split
        self._videos = None if videos is None else os.fspath(videos)
        self._open()
        # Not every file: lengths may be kept beside them. Whole ones: a rebuilt shard with other windows is as long as the old one.
        files = sorted((file.name, _hash_file(file)) for file in folder.glob("*.array_record*"))
        self.contents = _hash(files, split)
        info = (folder / "dataset_info.json").read_text()
        self.fingerprint = _hash(_READER, info, self.contents, self._videos)

    def _open(self) -> None:
        # Not at the top: training on JSONL files must not need it.
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self._path)
        if str(builder.info.file_format.value) != "array_record":
            raise ValueError(
                f"{self._path} holds {builder.info.file_format.value} files, which need TensorFlow and have no random "
                "access; build it with --file_format=array_record"
            )
        try:
            self._data = builder.as_data_source(self._split)
        except (KeyError, ValueError, AssertionError) as error:
            raise ValueError(
                f"{self._path} has no split {self._split!r} ({sorted(builder.info.splits)}): {error}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_data"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Trajectory:
        """The trajectory; raises as `RowSource` does."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = from_example(self._data[int(index)])
        return sft_trajectory(row, f"row {index}", videos=self._videos)


def open_source(
    path: epath.PathLike | Sequence[epath.PathLike],
    *,
    format: Format = "auto",
    videos: epath.PathLike | None = None,
    files: FileFormat = "auto",
) -> RowSource | TfdsSource:
    """The source at a path.

    Args:
      path: annotation files (`vo3.data.files.RowFiles`) or a prepared data set (`TfdsSource`).
      format: "rows" or "tfds"; "auto" looks.
      videos: folder that relative video paths start from.
      files: how annotation files are read, whatever their names end in.

    Raises:
      FileNotFoundError, ValueError: nothing there that can be read.
    """
    if format not in ("auto", "rows", "tfds"):
        raise ValueError(f"unknown data format {format!r}; one of auto, rows, tfds")
    if format == "auto":
        several = isinstance(path, (list, tuple))
        format = "rows" if several or prepared_folder(path) is None else "tfds"
    if format == "rows":
        return RowSource(path, videos=videos, files=files)
    return TfdsSource(path, videos=videos)


def prepared_folder(path: epath.PathLike) -> epath.Path | None:
    """The folder with `features.json` at or up to two levels below `path`; None when there is none.

    Raises:
      FileNotFoundError: there are several, and which one is meant is not clear.
    """
    path = epath.Path(path)
    if "*" in path.name or not path.is_dir():
        return None
    if (path / "features.json").exists():
        return path
    for pattern in ("*/features.json", "*/*/features.json"):
        found = [file.parent for file in path.glob(pattern) if "incomplete" not in str(file)]
        if len(found) > 1:
            raise FileNotFoundError(
                f"{path} holds several prepared data sets: {', '.join(sorted(map(str, found)))}; name one"
            )
        if found:
            return found[0]
    return None


def to_example(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory that was read from a row, as an example of the data set `seeker_173k`.

    Inverse, after `from_example`, of `vo3.data.seeker.sft_trajectory`. A list of frame files is written as JSON in the place
    of the path.

    Raises:
      RowError: it shows clips that were read already, whose frames the data set has no place for.
    """
    refs = clip_refs(trajectory)
    id_ = trajectory.task.id
    if any(ref.shown is not None for ref in refs):
        raise RowError(
            id_, "fields", "a trajectory with its observations; train on the JSONL file itself"
        )
    videos = [
        {
            "url": json.dumps(ref.video, ensure_ascii=False)
            if isinstance(ref.video, tuple)
            else ref.video,
            "crop": np.array(ref.window or (-1.0, -1.0), np.float64),
            "sample": ref.sample or "",
        }
        for ref in refs
    ]
    turns = trajectory.turns
    return {
        "id": id_,
        "system": turns[0].text if turns[0].kind == "system" else "",
        "messages": [{"role": t.role, "content": t.text} for t in turns if t.kind != "system"],
        "videos": videos,
        "frame_fps": np.float64(next((ref.frame_fps for ref in refs if ref.frame_fps), 0.0)),
        "data_source": trajectory.meta.get("data_source", ""),
    }


def from_example(example: Mapping[str, Any]) -> dict[str, Any]:
    """The SFT row that an example of `seeker_173k` stands for, as `vo3.data.seeker` reads it."""
    messages, videos = example["messages"], example["videos"]
    return {
        "id": _text(example["id"]),
        "system": _text(example["system"]),
        "messages": [
            {"role": _text(role), "content": _text(content)}
            for role, content in zip(messages["role"], messages["content"], strict=True)
        ],
        "videos": [
            {"url": _text(url), "crop": [float(t) for t in crop], "sample": _text(sample)}
            for url, crop, sample in zip(
                videos["url"], videos["crop"], videos["sample"], strict=True
            )
        ],
        "frame_fps": float(example["frame_fps"]),
        "data_source": _text(example["data_source"]),
    }


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _hash_file(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _hash(*parts: Any) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
