"""Runs in VLMEvalKit's environment: a tiny video dataset through its own inference loop, with the model `vo3` of its table of models, or with its own client of a server.

vlmevalkit_run.py ROWS.tsv WORKDIR KEY=VALUE,...|CONFIG.json
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

import vlmeval.api
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


def model(given: str):
    """The model by its name, or as `run.py --config` builds it."""
    if not given.endswith(".json"):
        vlmevalkit.register(**dict(pair.split("=") for pair in given.split(",")))
        return "vo3"
    settings = json.loads(pathlib.Path(given).read_text())["model"]["vo3"]
    return getattr(vlmeval.api, settings.pop("class"))(**settings)


if __name__ == "__main__":
    infer_data_job_video(model(sys.argv[3]), sys.argv[2], "vo3", Tiny("Tiny"))
