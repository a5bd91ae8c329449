"""Runs in VLMEvalKit's environment: a tiny video dataset through its own inference loop, with the model `vo3` of its table of models.

vlmevalkit_run.py ROWS.tsv WORKDIR KEY=VALUE,...
"""

from __future__ import annotations

import os
import sys

from vlmeval.dataset.video_base import VideoBaseDataset
from vlmeval.inference_video import infer_data_job_video

from vo3.plugins import vlmevalkit


class Tiny(VideoBaseDataset):
    """The manner of its own datasets: a table with `index`, `video` and `question`, and messages made of a row."""

    TYPE = "Video-MCQ"

    @classmethod
    def supported_datasets(cls):
        return ["Tiny"]

    def prepare_dataset(self, dataset):
        return {"root": os.path.dirname(sys.argv[1]), "data_file": sys.argv[1]}

    def build_prompt(self, line, video_llm):
        row = self.data.iloc[line]
        assert video_llm, "the model asks for frames, not for the file"
        return [
            {"type": "text", "value": ""},
            {"type": "video", "value": row["video"]},
            {"type": "text", "value": row["question"]},
        ]

    @classmethod
    def evaluate(cls, eval_file, **judge_kwargs):
        raise NotImplementedError


if __name__ == "__main__":
    vlmevalkit.register(**dict(pair.split("=") for pair in sys.argv[3].split(",")))
    infer_data_job_video("vo3", sys.argv[2], "vo3", Tiny("Tiny"))
