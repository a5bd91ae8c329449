"""The doctor: every way a row can be lost, named; what is kept is kept as it was."""

from __future__ import annotations

import json
import pathlib

import av
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from rows_makers import rl_row, sft_row, write_frames, write_jsonl

from vo3 import cli
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.data import doctor
from vo3.data.files import RowFiles
from vo3.data.lengths import measure
from vo3.data.rejects import Rejects
from vo3.data.seeker import read_sft
from vo3.data.source import RowSource
from vo3.trajectory import Observation, Task, Trajectory, Turn
from vo3.video import CropPolicy

SECONDS = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """`charades/good.mp4` of 20 s, `charades/cut.mp4` without its second half, `cg/zero.mp4`, `cg/text.mp4`; outside of it, `secret.mp4`."""
    base = tmp_path_factory.mktemp("doctor")
    videos = base / "videos"
    for folder in ("charades", "cg"):
        (videos / folder).mkdir(parents=True)
    good = videos / "charades" / "good.mp4"
    with av.open(str(good), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=4, options={"g": "4", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(4 * SECONDS):
            picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    whole = good.read_bytes()
    (videos / "charades" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "cg" / "zero.mp4").write_bytes(b"")
    (videos / "cg" / "text.mp4").write_text("not a video")
    (base / "secret.mp4").write_bytes(whole)
    return videos


def row(name: str, video: str, *, clip=(2, 6)) -> dict:
    made = sft_row(name, clips=((*clip, "fine"),))
    for part in made["videos"]:
        part["url"] = video
    return made


def own(name: str, *, seconds: float, video: str = "charades/good.mp4") -> dict:
    """A trajectory of this project whose overview says how long the video is."""
    shown = Observation(0, 0.0, seconds, 1.0, (0.0, 1.0), (0, 4), 56, 56, (1, 4, 4), 4)
    turns = (
        Turn("question", "<video>what?", observations=(shown,)),
        Turn("answer", "<think>x</think>\n<answer>A</answer>", answer="A"),
    )
    return Trajectory(Task(name, video, "what?"), turns, "answered", answer="A").to_json()


def diagnose(tmp_path, root, rows, **options):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    return doctor.diagnose(RowFiles(path), videos=root, **options)


def only(found, reason):
    (finding,) = found.findings
    assert finding.reason == reason, finding
    return finding


def test_sound_rows_of_every_format_are_trainable(tmp_path, root):
    rows = [row("a", "charades/good.mp4"), own("b", seconds=20.0), {**rl_row("c"), "video": "charades/good.mp4"}]  # fmt: skip
    rows[2]["solution"] = {"answer": "B", "clue": [{"timestamp": [1, 19], "text": ""}]}
    found = diagnose(tmp_path, root, rows)
    assert found.trainable == (0, 1, 2) and not found.findings, found.findings
    assert found.videos == 1 and found.sources == {"charades": (3, 3)}


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        ("charades/nowhere.mp4", "missing"),
        ("cg/zero.mp4", "corrupt"),
        ("cg/text.mp4", "corrupt"),
        ("../secret.mp4", "outside"),
        ("charades/../../secret.mp4", "outside"),
        ("/etc/hostname", "outside"),
    ],
)
def test_videos_that_cannot_be_used(tmp_path, root, video, reason):
    only(diagnose(tmp_path, root, [row("a", video)]), reason)


def test_a_link_out_of_the_root_is_outside(tmp_path, root):
    link = root / "cg" / "link.mp4"
    link.symlink_to(root.parent / "secret.mp4")
    try:
        only(diagnose(tmp_path, root, [row("a", "cg/link.mp4")]), "outside")
    finally:
        link.unlink()


def test_a_file_that_is_cut_off_is_found_by_decoding(tmp_path, root):
    rows = [row("a", "charades/cut.mp4")]
    assert diagnose(tmp_path, root, rows).trainable == (0,)  # the header is whole
    only(diagnose(tmp_path, root, rows, decode=True), "corrupt")


@pytest.mark.parametrize(("clip", "good"), [((2, 6), True), ((15, 20.5), True), ((21, 25), False), ((10, 40), False)])  # fmt: skip
def test_windows_must_lie_in_the_video(tmp_path, root, clip, good):
    found = diagnose(tmp_path, root, [row("a", "charades/good.mp4", clip=clip)])
    assert (found.trainable == (0,)) == good
    if not good:
        only(found, "window")


@pytest.mark.parametrize(
    ("clip", "says"),
    [
        ((100, 100.5), "covers 0.50 s of its video; the least is 1 s"),
        ((190, 201.8), "reaches outside of its video, which lasts 200.00 s"),
        ((190, 200.9), None),
        ((199.5, 200.9), "covers 0.50 s"),
        ((101, 102), "holds no two frames"),
    ],
)
def test_the_doctor_and_training_agree_on_windows(tmp_path, clip, says):
    """At 0.4 fps too: 80 frames of a video of 200 s."""
    write_frames(tmp_path / "videos" / "slow", 80, size=(28, 28))
    made = {**row("a", "slow", clip=clip), "frame_fps": 0.4}
    path = write_jsonl(tmp_path / "rows.jsonl", [made])
    found = doctor.diagnose(RowFiles(path), videos=tmp_path / "videos")
    source = RowSource(path, videos=tmp_path / "videos")
    lengths = measure(source, build_tokenizer(), policy=CropPolicy(recipe="sft"))
    assert found.trainable == (() if says else (0,))
    assert [f.detail for f in found.findings] == [r.reason for r in lengths.rejects]
    if says:
        finding = only(found, "window")
        assert says in finding.detail and finding.detail.startswith("video 1: the window")


@pytest.mark.parametrize(("frames", "fps"), [(4, 0.01), (8, 0.4), (1, 4.0), (3, 4.0), (40, 4.0)])
def test_the_end_of_a_good_video_decodes_however_few_its_frames(tmp_path, frames, fps):
    videos = tmp_path / "videos"
    files = write_frames(videos / "slow", frames, size=(28, 28))
    made = {**row("a", "slow"), "frame_fps": fps}
    path = write_jsonl(tmp_path / "rows.jsonl", [made])
    assert not doctor.diagnose(RowFiles(path), videos=videos, decode=True).lost
    pathlib.Path(files[-1]).write_bytes(b"no picture")
    if frames > 1:  # the first one is looked at in any case
        assert not doctor.diagnose(RowFiles(path), videos=videos).lost
    ((reason, detail),) = doctor.diagnose(RowFiles(path), videos=videos, decode=True).lost.values()
    assert reason == "corrupt" and f"frame_{frames - 1}" in detail


def test_folders_of_rl_rows_need_their_rate_as_in_training(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_frames(tmp_path / "frames", 40, size=(28, 28))
    rows = [rl_row(video="frames"), rl_row(video="frames", frame_fps=None)]
    found = diagnose(tmp_path, tmp_path, rows)
    assert found.trainable == (0,)
    assert "frame_fps" in only(found, "corrupt").detail
    names = ["~/frames", f"file://{tmp_path}/frames"]
    assert diagnose(tmp_path, None, [rl_row(video=name) for name in names]).trainable == (0, 1)


@pytest.mark.parametrize(("seconds", "good"), [(20.0, True), (20.8, True), (22.0, False), (11.0, False)])  # fmt: skip
def test_a_video_of_another_length_is_another_video(tmp_path, root, seconds, good):
    found = diagnose(tmp_path, root, [own("a", seconds=seconds)])
    assert (found.trainable == (0,)) == good
    if not good:
        assert "20.0 s" in only(found, "length").detail


def test_a_broken_row_costs_itself_and_names_its_rule(tmp_path, root):
    broken = row("b", "charades/good.mp4")
    broken["videos"] = broken["videos"][:1]
    found = diagnose(tmp_path, root, [row("a", "charades/good.mp4"), broken, {"id": "c"}])
    assert found.trainable == (0,)
    assert [f.index for f in found.findings] == [1, 2]
    assert all(f.reason.startswith("row_") for f in found.findings)


def test_the_fetch_plan_lists_each_missing_video_once_by_source(tmp_path, root):
    rows = [row(str(n), f"cg/{n % 2}.mp4") for n in range(5)] + [row("x", "charades/1.mp4")]
    found = diagnose(tmp_path, root, rows)
    assert found.fetch == {"cg": ("cg/0.mp4", "cg/1.mp4"), "charades": ("charades/1.mp4",)}
    plan = found.to_json()["fetch"]
    assert "CG-Bench" in plan["cg"]["from"] and "charades" in plan["charades"]["from"]
    assert "2 videos" in doctor.table(found)


def test_trainable_rows_are_written_as_they_were(tmp_path, root, capsys):
    rows = [row("a", "charades/good.mp4"), row("b", "cg/none.mp4"), own("c", seconds=20.0)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    out, plan = tmp_path / "ok.jsonl", tmp_path / "plan.json"
    code = cli.main(["doctor", str(path), "--videos", str(root), "--write-trainable", str(out), "--fetch-plan", str(plan)])  # fmt: skip
    assert code == 1
    assert [json.loads(text) for text in out.read_text().splitlines()] == json.loads(
        json.dumps([rows[0], rows[2]])
    )
    assert json.loads(plan.read_text())["cg"]["missing"] == ["cg/none.mp4"]
    assert "2 of 3 rows are trainable (66.7 %)" in capsys.readouterr().out
    assert cli.main(["doctor", str(out), "--videos", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trainable"] == 2


def test_half_a_surrogate_pair_is_a_rows_own_trouble(tmp_path, root, capfd):
    """Broken escapes: in a text it is kept, a path it cannot be, and every file is written."""
    good, bad = row("a\ud83d", "charades/good.mp4"), row("b\ud83d", "charades/\ud83d.mp4")
    good["messages"][0]["content"] += " \ud83d"
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (good, bad)))
    out, plan = tmp_path / "ok.jsonl", tmp_path / "plan.json"
    command = ["doctor", str(path), "--videos", str(root), "--write-trainable", str(out), "--fetch-plan", str(plan)]  # fmt: skip
    assert cli.main(command) == 1
    assert json.loads(out.read_text()) == json.loads(json.dumps(good))
    assert "can be no path" in capfd.readouterr().out
    rejects = Rejects(2)
    (task,) = read_sft(path, videos=root, rejects=rejects)
    assert task.task.id == "a\ud83d"
    rejects.save(tmp_path / "rejects.jsonl")
    assert json.loads((tmp_path / "rejects.jsonl").read_text())["id"] == "b\ud83d"


def test_parquet_rows_become_json_lines(tmp_path, root):
    made = [row("a", "charades/good.mp4")]
    path = tmp_path / "rows.parquet"
    flat = [{**r, "messages": json.dumps(r["messages"]), "videos": json.dumps(r["videos"])} for r in made]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), path)
    rows = RowFiles(path)
    found = doctor.diagnose(rows, videos=root)
    assert doctor.write_trainable(rows, found, tmp_path / "ok.jsonl") == 1
    again = doctor.diagnose(RowFiles(tmp_path / "ok.jsonl"), videos=root)
    assert again.trainable == (0,)


@pytest.mark.parametrize(
    "arguments",
    [["nowhere.jsonl"], ["rows.jsonl", "--videos", "nowhere"], ["rows.jsonl", "--write-trainable", "no/such/file"]],
)  # fmt: skip
def test_bad_arguments_end_in_one_line(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", [{"id": "a"}])
    assert cli.main(["doctor", *arguments]) == 2
    assert capsys.readouterr().err.startswith("vo3: ")
