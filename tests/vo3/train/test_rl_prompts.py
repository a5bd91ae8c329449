"""Prompts by number: epochs, shares, curriculum, ClueWorld's videos."""

import json

import numpy as np
import pytest

from vo3.rewards.trajectory_guided import DATA_SOURCES
from vo3.train import row_feed
from vo3.train.config import ConfigError, override
from vo3.train.prompts import ClueWorldPrompts, RowPrompts, opener
from vo3.train.rl_config import defaults, validate
from vo3.video import VideoError

SOURCES = {"clue_single_w_tool": 12, "clue_multi_w_tool": 6, "temporal_grounding": 2}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rl.jsonl"
    lines = []
    for source, count in SOURCES.items():
        for i in range(count):
            solution = {"answer": "A", "clue": [{"timestamp": [1, 2], "text": ""}]}
            lines.append(
                {"doc_id": f"{source}-{i}", "data_source": source, "problem": "What?", "options": ["x", "y"],
                 "video": f"v{i}.mp4", "solution": solution}
            )  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def prompts(rows, tmp_path, **changes):
    return RowPrompts(override(defaults(), **{"data.rows": str(rows), **changes}), tmp_path)


def test_an_epoch_is_every_row_once_in_an_order_of_its_own(rows, tmp_path):
    one = prompts(rows, tmp_path)
    assert one.per_epoch == 20
    names = [one[i].task.id.split("#")[0] for i in range(40)]
    assert sorted(names[:20]) == sorted(names[20:]) and len(set(names[:20])) == 20
    assert names[:20] != names[20:]
    again = prompts(rows, tmp_path)
    assert [again[i].task.id for i in (39, 3)] == [one[39].task.id, one[3].task.id]
    assert [prompts(rows, tmp_path, seed=1)[i].task.id for i in range(9)] != [one[i].task.id for i in range(9)]  # fmt: skip
    assert len({one[i].task.id for i in range(40)}) == 40 and one.plan


def test_shares_of_data_sources(rows, tmp_path):
    mix = (("clue_single_w_tool", 1.0), ("temporal_grounding", 3.0))
    one = prompts(rows, tmp_path, **{"rl.mix": mix})
    drawn = [one[i].task for i in range(1200)]
    share = np.mean([t.target.data_source == "temporal_grounding" for t in drawn])
    assert 0.7 < share < 0.8
    # Each source is gone through whole before it begins again.
    single = [t.id.split("#")[0] for t in drawn if t.target.data_source == "clue_single_w_tool"]
    assert len(set(single[:12])) == len(set(single[12:24])) == 12
    # The order is a function of the number alone: another object, asked from the end, across a block's border.
    far = prompts(rows, tmp_path, **{"rl.mix": mix})
    assert far[5000].task.id == one[5000].task.id
    counts = {i: one._drawn(i) for i in range(4090, 4100)}
    assert all(counts[i + 1][1] >= 0 for i in range(4090, 4099))
    which, nth = one._drawn(4100)
    assert nth == sum(one._drawn(i)[0] == which for i in range(4100))


def test_the_curriculum_puts_single_clues_first(rows, tmp_path):
    one = prompts(rows, tmp_path, **{"rl.curriculum": "single_first"})
    first = [one[i].task.target.data_source for i in range(20)]
    assert set(first[14:]) == {"clue_multi_w_tool"} and "clue_multi_w_tool" not in first[:14]
    assert "clue_multi_w_tool" in {one[i].task.target.data_source for i in range(20, 30)}
    single = {source for source in DATA_SOURCES if one._single(source)}
    assert single == {
        "clue_single_w_tool", "tool_reward_with_round_penalty", "clue_single_wo_tool", "tool_penalty_single_turn",
        "temporal_grounding",
    }  # fmt: skip


def test_bad_rows_are_written_down_and_limited(rows, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows.read_text() + '{"doc_id": "x", "data_source": "?"}\n')
    with pytest.raises(ConfigError, match=r"1 of 21 rows"):
        prompts(bad, tmp_path)
    assert prompts(bad, tmp_path, **{"data.reject_limit": 0.1}).per_epoch == 20
    assert json.loads((tmp_path / "rejects.jsonl").read_text())["id"] == "x"


def test_processes_that_see_different_rows_are_refused(rows, tmp_path, monkeypatch):
    """Before a row is read: the other process would wait for one that has refused its rows."""
    other = bytes(16)
    allgather = lambda mine: np.stack([mine, np.frombuffer(other, np.int32)])
    monkeypatch.setattr(row_feed.multihost_utils, "process_allgather", allgather)
    with pytest.raises(ConfigError, match=r"see different rows in data\.rows=.*same files"):
        prompts(rows, tmp_path)
    assert not (tmp_path / "rejects.jsonl").exists()


def test_files_that_are_no_rows_are_refused(tmp_path):
    (tmp_path / "half.json").write_text('[{"id": "a"}, {"id"')
    with pytest.raises(ConfigError, match=r"data\.rows=.*half\.json: "):
        prompts(tmp_path / "half.json", tmp_path)


def test_shares_of_what_no_row_has_are_refused(rows, tmp_path):
    with pytest.raises(ConfigError, match="which no row has"):
        prompts(rows, tmp_path, **{"rl.mix": (("clue_multi_wo_tool", 1.0),)})


def test_clueworld_videos_are_written_once_and_open(tmp_path):
    small = {"rl.clueworld.worlds": 2, "rl.clueworld.longest": 121, "model": "clueworld"}
    one = ClueWorldPrompts(override(defaults(), **small), tmp_path)
    numbers = range(6)
    tasks = [one[i].task for i in numbers]
    assert len({t.video for t in tasks}) == 2 and len({t.id for t in tasks}) == 6
    sources = {one[i].task.target.data_source for i in range(40)}
    assert sources == {f"clue_{n}_{t}_tool" for n in ("single", "multi") for t in ("w", "wo")}
    shares = {"rl.clueworld.tool_share": 0.5, "rl.clueworld.grounding_share": 0.25, **small}
    some = ClueWorldPrompts(override(defaults(), **shares), tmp_path)
    drawn = [some[i].task.target.data_source for i in range(200)]
    assert (
        35 < drawn.count("temporal_grounding") < 65
        and 80 < sum("_w_tool" in x for x in drawn) < 120
    )
    one.ready(numbers[:2])
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "videos").iterdir()}
    one.ready(numbers)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "videos").iterdir()} == stamps
    from vo3.clueworld.views import crop_policy

    video = opener(crop_policy(), 30.0)(tasks[0])
    assert 119 < video.duration < 122 and video.overview().tokens > 0
    with pytest.raises(VideoError):
        opener(crop_policy(), 30.0)(type(tasks[0])("x", str(tmp_path / "none.mp4"), "?"))


def test_worlds_of_another_scale_in_a_folder_of_their_own(tmp_path):
    small = {"rl.clueworld.scale": "micro", "rl.clueworld.shortest": 60, "rl.clueworld.longest": 90, "data.source": "clueworld",
             "data.videos": str(tmp_path / "shared")}  # fmt: skip
    config = override(defaults(), **small)
    one = ClueWorldPrompts(config, tmp_path / "run")
    world = one._world(0)
    assert 60 <= world.duration <= 90 and len(world.cards) <= 4
    name = f"micro-{world.seed}-{world.duration}s.mp4"
    assert one[0].task.video == str(tmp_path / "shared" / name)
    # The same world in another length is another video, in the same folder.
    longer = override(config, **{"rl.clueworld.shortest": 85})
    other = ClueWorldPrompts(longer, tmp_path / "run")
    assert other._world(0).seed == world.seed and other[0].task.video != one[0].task.video
    for changes, message in (
        ({"rl.clueworld.scale": "huge"}, "one of clueworld, micro"),
        ({"rl.clueworld.longest": 600}, "60 <= shortest <= longest <= 90"),
        ({"rl.clueworld.grounding_share": 0.5}, "are more than 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(override(config, **changes))


def test_clueworld_needs_a_local_workdir():
    with pytest.raises(ConfigError, match="needs a local folder"):
        ClueWorldPrompts(defaults(), "gs://bucket/run")
