"""Rows by number: what JSON, JSONL and Parquet files hold, however they are written or broken."""

from __future__ import annotations

import json
import os
import pickle

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows_makers import write_jsonl

from vo3.data.files import RowFiles, find_files
from vo3.data.rejects import RowError

ROWS = [
    {"id": "a", "text": "1"},
    {"id": "b", "text": "zwei, \u4e09 \U0001f600"},
    {"id": "c", "n": [1]},
]

values = st.recursive(
    st.none() | st.integers(-5, 5) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@given(
    st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), max_size=6),
    st.booleans(),
    st.sampled_from([None, 0, 3]),
)
def test_every_json_array_and_every_jsonl_is_cut_into_its_rows(
    tmp_path_factory, rows, ascii_, indent
):
    """Against json.loads of the whole: lengths in bytes, not in characters."""
    folder = tmp_path_factory.mktemp("rows")
    text = json.dumps(rows, ensure_ascii=ascii_, indent=indent)
    (folder / "rows.json").write_text(f"\n {text}\n", encoding="utf-8")
    assert list(RowFiles(folder / "rows.json")) == rows
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_) for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    assert list(RowFiles(folder / "rows.jsonl")) == rows


def test_line_ends_blank_lines_and_byte_order_marks(tmp_path):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    text = "\ufeff" + lines[0] + "\r\n\r\n \n" + lines[1] + "\r\n" + lines[2]
    (tmp_path / "rows.jsonl").write_bytes(text.encode())
    assert list(RowFiles(tmp_path / "rows.jsonl")) == ROWS
    (tmp_path / "array.json").write_bytes(("\ufeff[" + ",\r\n".join(lines) + "]\r\n").encode())
    assert list(RowFiles(tmp_path / "array.json")) == ROWS
    # A .json file with one object a line is met often.
    write_jsonl(tmp_path / "lines.json", ROWS)
    assert list(RowFiles(tmp_path / "lines.json")) == ROWS


def test_lines_longer_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("vo3.data.files._CHUNK", 7)
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert list(RowFiles(path)) == ROWS


def test_empty_files_hold_no_rows(tmp_path):
    for name, text in (("a.jsonl", ""), ("b.jsonl", "\n\n"), ("c.json", "[]"), ("d.json", " [ ] ")):
        (tmp_path / name).write_text(text)
        assert len(RowFiles(tmp_path / name)) == 0
    with pytest.raises(IndexError, match="row 0 of 0"):
        RowFiles(tmp_path / "a.jsonl")[0]


@pytest.mark.parametrize(
    "text", ['{"id": 1', "null", "3", '"text"', "[1]", '{"a": }', "\x00\x00", "[" * 5000]
)
def test_a_corrupt_line_costs_itself(tmp_path, text):
    path = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], text, ROWS[1]])
    rows = RowFiles(path)
    assert (rows[0], rows[2], len(rows)) == (ROWS[0], ROWS[1], 3)
    with pytest.raises(RowError) as caught:
        rows[1]
    assert (caught.value.id, caught.value.rule) == ("rows.jsonl:2", "json")


def test_a_line_that_is_not_utf8_costs_itself(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"id": "\xff\xfe"}\n{"id": "b"}\n')
    rows = RowFiles(tmp_path / "rows.jsonl")
    assert rows[1] == {"id": "b"}
    with pytest.raises(RowError, match="UTF-8"):
        rows[0]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('[{"a": 1}, {"a": ', 1),
        ('[{"a": 1}, {"a": 2}', 2),
        ('[{"a": 1} {"a": 2}]', 1),
        ('[{"a": 1}, ]', 1),
        ("[", 0),
        ("[,]", 0),
        ('[{"a": 1}] [', 1),
        ('[{"a": "\xff"}]', None),
    ],
)
def test_a_corrupt_array_is_refused_where_it_breaks(tmp_path, text, rows):
    (tmp_path / "rows.json").write_bytes(text.encode("latin-1"))
    message = "not UTF-8" if rows is None else f"after row {rows}.*repair the file"
    with pytest.raises(ValueError, match=message) as caught:
        RowFiles(tmp_path / "rows.json")
    assert str(tmp_path / "rows.json") in str(caught.value)


def test_an_element_of_an_array_that_is_no_object_costs_itself(tmp_path):
    (tmp_path / "rows.json").write_text('[{"a": 1}, 5, {"a": 2}]')
    rows = RowFiles(tmp_path / "rows.json")
    assert (rows[0], rows[2]) == ({"a": 1}, {"a": 2})
    with pytest.raises(RowError, match="a JSON int, not an object"):
        rows[1]


def test_several_files_are_one_after_the_other(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ROWS[1:])
    (tmp_path / "a.json").write_text(json.dumps(ROWS[:1]))
    (tmp_path / "notes.txt").write_text("not rows")
    (tmp_path / "rejects.jsonl").write_text('{"id": "x"}')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / ".b4f1-b.jsonl").write_text('{"id": "half')  # being written, or left by a kill
    rows = RowFiles(tmp_path)
    assert list(rows) == ROWS
    assert [rows.describe(i) for i in range(3)] == ["a.json:1", "b.jsonl:1", "b.jsonl:2"]
    assert list(RowFiles(tmp_path / "*.jsonl")) == ROWS[1:]
    assert list(RowFiles([tmp_path / "b.jsonl", tmp_path / "a.json"])) == [*ROWS[1:], ROWS[0]]
    assert len(find_files(tmp_path)) == 3


def test_missing_and_unknown_files(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        RowFiles(tmp_path / "rows.jsonl")
    with pytest.raises(FileNotFoundError, match="holds no file ending in"):
        RowFiles(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no file ending in"):
        RowFiles(tmp_path / "*.jsonl")
    with pytest.raises(FileNotFoundError, match="empty list"):
        RowFiles([])
    with pytest.raises(ValueError, match="rename or convert"):
        RowFiles(tmp_path / "rows.csv")


def test_a_format_that_is_named_outweighs_the_ending(tmp_path):
    lines = write_jsonl(tmp_path / "part-0.txt", ROWS)
    (tmp_path / "part-1.txt").write_text("\ufeff" + json.dumps(ROWS[:1]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:1]), tmp_path / "table.json")
    assert list(RowFiles(lines, format="jsonl")) == ROWS
    assert list(RowFiles(tmp_path / "part-1.txt", format="json")) == ROWS[:1]
    assert RowFiles(tmp_path / "table.json", format="parquet")[0]["id"] == ROWS[0]["id"]
    assert list(RowFiles(tmp_path / "part-0*", format="jsonl")) == ROWS
    with pytest.raises(ValueError, match=r"part-0.*not a JSON array: it begins with"):
        RowFiles(lines, format="json")
    with pytest.raises(ValueError, match="one of auto, json, jsonl, parquet"):
        RowFiles(lines, format="csv")


def test_parquet_rows_by_number(tmp_path):
    rows = [{"id": str(i), "nested": [{"a": i}]} for i in range(23)]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet", row_group_size=3
    )
    found = RowFiles(tmp_path / "r.parquet")
    assert [found[i] for i in range(22, -1, -1)] == rows[::-1]
    assert len(found.files[0]._groups) == 4  # of eight: memory is bounded
    again = pickle.loads(pickle.dumps(found))
    assert again[7] == rows[7]
    pyarrow.parquet.write_table(
        pyarrow.table({"id": pyarrow.array([], "string")}), tmp_path / "none.parquet"
    )
    assert len(RowFiles(tmp_path / "none.parquet")) == 0
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "r.parquet").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"cut\.parquet: not a Parquet file"):
        RowFiles(tmp_path / "cut.parquet")


def test_fingerprints_follow_the_contents_alone(tmp_path):
    one, two = tmp_path / "x" / "rows.jsonl", tmp_path / "y" / "other.jsonl"
    for path in (one, two):
        path.parent.mkdir()
        write_jsonl(path, ROWS)
    assert RowFiles(one).fingerprint == RowFiles(two).fingerprint
    before = RowFiles(one).fingerprint
    write_jsonl(one, ROWS[:2])
    assert RowFiles(one).fingerprint != before


def test_rows_are_read_from_copies_in_other_processes(tmp_path):
    rows = RowFiles(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    assert rows[1] == ROWS[1]  # the file is open now, and handles do not travel
    assert list(pickle.loads(pickle.dumps(rows))) == ROWS


def test_a_file_that_vanishes_or_shrinks_is_named(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    rows = RowFiles(path)
    os.truncate(path, 10)
    with pytest.raises(OSError, match=r"rows\.jsonl ends before byte .*put the file back"):
        rows[2]
    path.unlink()
    with pytest.raises(OSError, match=r"rows\.jsonl cannot be read any more"):
        pickle.loads(pickle.dumps(rows))[0]


def test_rows_in_a_bucket(bucket, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    bucket.pipe_file("gs://b/rows/a.jsonl", path.read_bytes())
    bucket.pipe_file("gs://b/rows/b.json", json.dumps(ROWS[:1]).encode())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:1]), tmp_path / "c.parquet")
    bucket.pipe_file("gs://b/rows/c.parquet", (tmp_path / "c.parquet").read_bytes())
    assert list(RowFiles("gs://b/rows/a.jsonl")) == ROWS
    assert list(RowFiles("gs://b/rows/*.json")) == ROWS[:1]
    everything = RowFiles("gs://b/rows")
    assert [everything.describe(i) for i in (0, 3, 4)] == ["a.jsonl:1", "b.json:1", "c.parquet:1"]
    assert everything[4] == {"id": "a", "text": "1"}
    bucket.rm("gs://b/rows/a.jsonl")
    with pytest.raises(OSError, match=r"gs://b/rows/a\.jsonl cannot be read any more"):
        pickle.loads(pickle.dumps(everything))[0]
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        RowFiles("gs://b/rows/a.jsonl")
