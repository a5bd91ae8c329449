"""What a kill leaves behind: complete lines, and no question twice."""

from __future__ import annotations

import errno
import fcntl
import json

import eval_samples
import pytest

from vo3.evals import journal
from vo3.evals.journal import Journal, failed
from vo3.train.config import ConfigError
from vo3.trajectory import Task, Trajectory


def answered(n: int):
    return eval_samples.answered(eval_samples.task(f"t/{n}"), "B")


def test_lines_are_there_as_soon_as_they_are_written(tmp_path):
    with Journal(tmp_path / "a.jsonl") as first:
        first.append(answered(1))
        (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
        assert Trajectory.loads(line).task.id == "t/1"
    with (
        pytest.raises(ValueError, match="has question t/1 already"),
        Journal(tmp_path / "a.jsonl") as second,
    ):
        second.append(answered(1))


def test_every_torn_end_is_cut_off(tmp_path):
    path = tmp_path / "a.jsonl"
    with Journal(path) as first:
        first.append(answered(1))
        first.append(answered(2))
    data = path.read_bytes()
    whole = data.index(b"\n") + 1
    for size in (whole + 1, whole + 40, len(data) - 1):
        path.write_bytes(data[:size])
        with Journal(path) as again:
            assert again.done == {"t/1"}
            again.append(answered(2))
        assert path.read_bytes() == data


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n" + answered(1).dumps() + "\n")
    for _ in range(2):  # refused, it lets go of the file
        with pytest.raises(journal.JournalError, match=r"line 1, is no traj.*remove the line"):
            Journal(path)


@pytest.mark.parametrize("again", [False, True])
def test_one_run_at_a_time_writes_to_a_file(tmp_path, again):
    path = tmp_path / "a.jsonl"
    with Journal(path) as first:
        first.append(failed(Task("a", "v.mp4", "what?"), "video: missing", "not there"))
    before = path.stat().st_ino
    with Journal(path, again=again) as first:
        assert (path.stat().st_ino != before) is again  # the lock is on the new file too
        with pytest.raises(journal.JournalError, match=r"a\.jsonl is being written to by another"):
            Journal(path, again=again)
        first.append(answered(1))
    with Journal(path) as later:
        assert later.done == ({"t/1"} if again else {"a", "t/1"})


def test_a_file_that_was_replaced_while_it_was_locked_is_opened_anew(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("")
    real, calls = fcntl.flock, []

    def replaced(file, how):
        if not calls:
            journal.write_atomically(path, answered(1).dumps() + "\n")
        calls.append(how)
        return real(file, how)

    monkeypatch.setattr(fcntl, "flock", replaced)
    with Journal(path) as log:
        log.append(answered(2))
    assert len(calls) == 2
    assert [Trajectory.loads(x).task.id for x in path.read_text().splitlines()] == ["t/1", "t/2"]


def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch):
    def none(file, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    with Journal(tmp_path / "a.jsonl") as log:
        log.append(answered(1))
    assert (tmp_path / "a.jsonl").read_text().count("\n") == 1


def test_parts_of_several_processes_are_read_together(tmp_path):
    for shard in range(2):
        with Journal(tmp_path / journal.part_name(shard, 2)) as part:
            part.append(answered(shard))
    assert {t.task.id for t in journal.read_parts(tmp_path)} == {"t/0", "t/1"}


def test_other_settings_are_refused_by_name(tmp_path):
    settings = {"mode": "tools", "crop_policy": {"overview_quota": 64, "fine_quota": 36}}
    journal.check_settings(tmp_path, settings)
    journal.check_settings(tmp_path, json.loads(json.dumps(settings)))
    settings["crop_policy"]["overview_quota"] = 128
    with pytest.raises(ConfigError, match=r"crop_policy\.overview_quota was 64, is 128") as error:
        journal.check_settings(tmp_path, settings)
    assert "another --workdir" in str(error.value)


def test_a_checkpoint_is_its_parameters_not_its_path(tmp_path):
    settings = {"checkpoint": {"name": "out/run", "hash": "a"}, "mode": "tools"}
    journal.check_settings(tmp_path, settings)
    journal.check_settings(
        tmp_path, settings | {"checkpoint": {"name": "/x/out/run/", "hash": "a"}}
    )
    with pytest.raises(ConfigError, match=r"checkpoint\.hash was 'a', is 'b'"):
        journal.check_settings(
            tmp_path, settings | {"checkpoint": {"name": "out/run", "hash": "b"}}
        )


def test_writers_with_the_same_process_id_do_not_meet(tmp_path, monkeypatch):
    """As they have in containers that share a folder."""
    path, real, inner = tmp_path / "card.json", type(tmp_path / "x").write_text, ["second"]

    def slow(self, text, *args, **kwargs):
        real(self, text, *args, **kwargs)
        if inner:
            journal.write_atomically(path, inner.pop())
            assert path.read_bytes() == b"second"

    monkeypatch.setattr(type(path), "write_text", slow)
    journal.write_atomically(path, "first")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    journal.write_atomically(path, "old")

    def torn(self, text, *args, **kwargs):
        with open(self, "w") as file:
            file.write(text[:1])
        raise OSError("no space left")

    monkeypatch.setattr(type(path), "write_text", torn)
    with pytest.raises(OSError, match="no space"):
        journal.write_atomically(path, "new")
    assert path.read_bytes() == b"old"


def test_failures_of_the_storage_are_dropped_on_request(tmp_path):
    path = tmp_path / "a.jsonl"
    task = lambda name: Task(name, "v.mp4", "what?")
    with Journal(path) as first:
        first.append(failed(task("a"), "video: missing", "not there"))
        first.append(failed(task("b"), "video: corrupt", "broken"))
        first.append(failed(task("c"), "video: timeout", "slow"))
    with Journal(path) as same:
        assert same.done == {"a", "b", "c"}
    with Journal(path, again=True) as again:
        assert again.done == {"b"}
        again.append(failed(task("a"), "video: corrupt", "broken too"))
    lines = path.read_text().splitlines()
    assert [Trajectory.loads(line).task.id for line in lines] == ["b", "a"]


def test_text_that_utf_8_cannot_hold_is_kept(tmp_path):
    with Journal(tmp_path / "trajectories.jsonl") as first:
        first.append(failed(Task("a", "v.mp4", "what \ud83d?"), "video: corrupt", "é"))
    (kept,) = journal.read_parts(tmp_path)
    assert kept.task.question == "what \ud83d?"
