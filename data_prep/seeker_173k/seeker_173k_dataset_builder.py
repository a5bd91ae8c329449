"""TFDS builder of Seeker-173K: 173K tool-interaction trajectories as annotations; the videos stay where they are.

Launch command (`pip install -e '.[data]'` in the checkout; TensorFlow is needed neither for building nor for reading):

    python -m data_prep.seeker_173k.build --manual_dir=ROWS --data_dir=DIR [--reject_limit=0.01]

Read it with `vo3.data.source.TfdsSource(DIR)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_prep.jsonish import encodable
from vo3.data.files import RowFiles
from vo3.data.rejects import Rejects, RowError
from vo3.data.seeker import sft_trajectory
from vo3.data.source import to_example

_DESCRIPTION = """
Tool-interaction trajectories on long videos in four quadrants, {single clue, multi clue} x {with tool, without tool}: a
question, calls that name a window of the video and how closely to look, the observations, an answer. Rows hold text and
references to videos and windows; the videos are not part of the data set.
"""
_CITATION = """
@article{video_o3,
  title={Video-o3},
  journal={arXiv preprint arXiv:2601.23224},
  year={2026},
}
"""


class Builder(tfds.core.GeneratorBasedBuilder):
    """Builder of `seeker_173k`. The order is that of the files in the manual folder, sorted by name.

    Attributes:
      rejects: rows that were left out, once examples were generated.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012  (TFDS reads it from the class)
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Put the annotation files (*.json, *.jsonl or *.parquet, rows in sharegpt style) into the manual folder. Videos are not
    needed: paths are kept as they stand in the rows.
    """

    def __init__(self, **kwargs: Any):
        """As every TFDS builder."""
        self.rejects = Rejects()
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # As bytes: TFDS stores floats as float32, too coarse to find a frame an hour into a video.
        seconds = {"dtype": np.float64, "encoding": tfds.features.Encoding.BYTES}
        features = tfds.features
        return self.dataset_info_from_configs(
            description=_DESCRIPTION,
            citation=_CITATION,
            homepage="https://arxiv.org/abs/2601.23224",
            # Rows keep their numbers; the training plan shuffles.
            disable_shuffling=True,
            features=features.FeaturesDict(
                {
                    "id": features.Text(doc="The row's own id."),
                    "system": features.Text(doc="System prompt; empty when there is none."),
                    "messages": features.Sequence(
                        {
                            "role": features.Text(doc="user or assistant, in turns."),
                            "content": features.Text(doc="A <video> mark stands for each video."),
                        }
                    ),
                    "videos": features.Sequence(
                        {
                            "url": features.Text(
                                doc="A path, or a JSON list of frame files. The first video is the whole one."
                            ),
                            "crop": features.Tensor(
                                shape=(2,), doc="Window in seconds; (-1, -1) for the whole video.", **seconds
                            ),
                            "sample": features.Text(
                                doc="coarse, medium, fine, old_quota, or empty for the overview's quota."
                            ),
                        }
                    ),
                    "frame_fps": features.Tensor(
                        shape=(), doc="Rate at which frames were extracted; 0 for video files.", **seconds
                    ),
                    "data_source": features.Text(doc="Quadrant, where the row says it."),
                }
            ),
        )  # fmt: skip

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"train": self._generate_examples(epath.Path(dl_manager.manual_dir))}

    def _generate_examples(self, folder: epath.Path) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = RowFiles(folder)
        self.rejects = Rejects(len(rows))
        for number in range(len(rows)):
            try:
                trajectory = sft_trajectory(rows[number], rows.describe(number))
                # As tokenising replaces it: the rows and the data set give the same ids.
                example = encodable(to_example(trajectory), "\ufffd")
            except RowError as error:
                self.rejects.add(number, error)
                continue
            except ValueError as error:  # what `clip_refs` refuses
                self.rejects.add(number, RowError(rows.describe(number), "fields", str(error)))
                continue
            yield number, example
