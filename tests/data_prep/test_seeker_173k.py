"""The data set: what the builder writes is what the rows say, read back without TensorFlow."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

import data_prep.seeker_173k as package
from data_prep.seeker_173k.build import build, main
from vo3.data.clips import clip_refs
from vo3.data.rejects import RejectLimitError, RowError
from vo3.data.seeker import sft_trajectory
from vo3.data.source import RowSource, TfdsSource, from_example, open_source, to_example

DUMMY = pathlib.Path(package.__file__).parent / "dummy_data"
COUNT = 7


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> pathlib.Path:
    """The dummy data, built once."""
    folder = tmp_path_factory.mktemp("tfds")
    build(str(DUMMY), str(folder))
    return folder


def test_the_data_set_holds_what_the_rows_say(data_dir):
    """Row for row, in order, times to the last bit: one of them lies an hour into a video."""
    rows, prepared = RowSource(DUMMY, videos="/v"), TfdsSource(data_dir, videos="/v")
    assert len(rows) == len(prepared) == COUNT
    for i in range(COUNT):
        assert prepared[i] == rows[i]
    assert clip_refs(prepared[1])[2].window == (3601.1, 3640.9)
    assert [prepared[i].task.id for i in (6, 0)] == ["conversation-1", "single-tool-1"]


def test_no_tensorflow_at_read_time(data_dir, tmp_path):
    """In a fresh interpreter that ends when TensorFlow is imported."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("import os; os._exit(7)")
    code = (
        "from vo3.data.source import open_source\n"
        f"source = open_source({str(data_dir)!r})\n"
        "print(type(source).__name__, len(source), source[3].task.id)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["TfdsSource", str(COUNT), "multi-no-tool-1"]


def test_examples_have_the_features_shapes_and_types(data_dir):
    """What TFDS's own test checks through tf.data, through the data source."""
    builder = tfds.builder_from_directory(data_dir / "seeker_173k" / "1.0.0")
    assert builder.name == "seeker_173k" and str(builder.version) == "1.0.0"
    assert builder.info.splits["train"].num_examples == COUNT
    assert str(builder.info.file_format.value) == "array_record"
    assert not builder.info.supervised_keys
    for example in builder.as_data_source("train"):
        assert set(example) == set(builder.info.features)
        assert all(
            crop.dtype == "float64" and crop.shape == (2,) for crop in example["videos"]["crop"]
        )
        assert {len(values) for values in example["messages"].values()} == {
            len(example["messages"]["role"])
        }
        assert isinstance(example["id"], bytes)


def test_it_is_found_from_folders_above_and_travels(data_dir):
    source = open_source(data_dir)
    assert isinstance(source, TfdsSource)
    same = [data_dir / "seeker_173k", data_dir / "seeker_173k" / "1.0.0"]
    assert {open_source(path).fingerprint for path in same} == {source.fingerprint}
    (same[1] / "lengths-0.npz").write_bytes(b"kept beside the shards")
    assert open_source(same[1]).fingerprint == source.fingerprint
    shard = next(same[1].glob("*.array_record*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # as long, with other contents
    changed = open_source(same[1])
    assert changed.fingerprint != source.fingerprint and changed.contents != source.contents
    shard.write_bytes(whole)
    again = pickle.loads(pickle.dumps(source))
    assert again[2] == source[2] and again.fingerprint == source.fingerprint
    half = TfdsSource(data_dir, split="train[:3]")
    assert len(half) == 3 and half.fingerprint != source.fingerprint
    with pytest.raises(IndexError):
        half[3]
    with pytest.raises(ValueError, match="no split 'test'"):
        TfdsSource(data_dir, split="test")
    with pytest.raises(FileExistsError, match="delete it"):
        build(str(DUMMY), str(data_dir))


def test_examples_and_rows_are_inverses():
    for trajectory in (RowSource(DUMMY)[i] for i in range(COUNT)):
        example = to_example(trajectory)
        lists = {
            key: {name: [entry[name] for entry in example[key]] for name in example[key][0]}
            for key in ("messages", "videos")
        }
        assert sft_trajectory(from_example(example | lists)) == trajectory


def test_broken_rows_are_left_out_and_listed(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    good = (DUMMY / "part_1.jsonl").read_text().splitlines()
    own = sft_trajectory(json.loads(good[0]))
    shown = own.observations[0].__class__(
        **{**vars(own.observations[0]), "indices": (1, 2), "tokens": 4}
    )
    settled = json.loads(own.dumps())
    settled["turns"][1]["observations"] = [json.loads(json.dumps(vars(shown)))]
    pictured = json.loads(own.dumps())
    pictured["turns"][1]["observations"][0]["media"] = "image"
    lines = [
        good[0],
        "{",
        json.dumps(json.loads(good[1]) | {"videos": []}),
        good[2],
        json.dumps(settled),
        json.dumps(json.loads(good[2]) | {"id": "half \ud83d"}),
        json.dumps(pictured),
    ]
    (rows / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(RejectLimitError, match=r"4 of 7 rows.*1\.0\.0-rejects\.jsonl"):
        build(str(rows), str(tmp_path / "a"))
    assert not (tmp_path / "a" / "seeker_173k" / "1.0.0").exists()
    build(str(rows), str(tmp_path / "b"), reject_limit=0.6)
    source = TfdsSource(tmp_path / "b")
    ids = ["single-tool-1", "single-no-tool-1", "half \ufffd"]
    assert [source[i].task.id for i in range(len(source))] == ids
    listed = (tmp_path / "b" / "seeker_173k" / "1.0.0-rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in listed] == [1, 2, 4, 6]
    with pytest.raises(RowError, match="train on the JSONL file itself"):
        to_example(sft_trajectory(settled))


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "data_prep.seeker_173k.build"]
    done = subprocess.run(
        [*command, f"--manual_dir={DUMMY}", f"--data_dir={tmp_path}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith(f"{COUNT} trajectories")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"holds no file ending in \.json, \.jsonl, \.parquet"):
        main([f"--manual_dir={tmp_path / 'empty'}", f"--data_dir={tmp_path / 'x'}"])


def test_several_data_sets_are_not_guessed_between(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "features.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"several prepared data sets.*name one"):
        open_source(tmp_path)
