"""The pictures of the docs: drawn from a world and a log alone."""

import json
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from PIL import Image

from vo3.clueworld.pictures import HEIGHT, LEFT, RIGHT, TOP, WIDTH, curves, main, seen, stages
from vo3.clueworld.world import make_world


def log(*rows):
    return "\n".join(json.dumps({"stage": s, "step": n, **more}) for s, n, more in rows)


def test_stages_follow_each_other():
    some = stages(log(("vision", 0, {}), ("vision", 400, {}), ("text", 25, {}), ("text", 100, {})))
    assert [(s.name, s.start, len(s.rows)) for s in some] == [("vision", 0, 2), ("text", 400, 2)]
    with pytest.raises(ValueError, match="empty"):
        stages("")
    with pytest.raises(ValueError, match=r"line 1 .* no stage or step"):
        stages('{"step": 3}')


def test_a_curve_is_where_the_log_says():
    drawn = curves(stages(log(("read", 0, {"accuracy": 0.0}), ("read", 100, {"accuracy": 1.0}))))
    root = xml.fromstring(drawn)
    lines = [
        e.get("d") for e in root.iter() if e.tag.endswith("path") and e.get("stroke") == "#c2374a"
    ]
    assert lines[0] == f"M{LEFT:.1f} {HEIGHT - 30:.1f}L{WIDTH - RIGHT:.1f} {TOP:.1f}"
    assert "100 steps" in drawn


def test_the_picture_shows_the_overview_and_the_clip():
    picture = seen(make_world(2027, duration=300))
    assert picture.shape == (4 * 36 + 92, 16 * 64, 3) and picture.dtype == np.uint8
    framed = (picture[:144] == 255).all(-1).sum()
    assert framed >= 2 * (2 * 60 + 2 * 32)  # two frames of a patch at least


def test_the_command(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    path.write_text(log(("vision", 0, {"clock": 0.1}), ("vision", 50, {"clock": 0.9})) + "\n")
    rl = tmp_path / "rl.jsonl"
    rl.write_text('{"run": 0, "step": 1, "reward": 1.5}\n{"run": 0, "step": 2, "reward": 2.0}\n')
    main(["--out", str(tmp_path / "docs"), "--log", str(path), "--rl-log", str(rl), "--seed", "3"])
    assert Image.open(tmp_path / "docs" / "clueworld-seen.png").size[0] == 1024
    assert "clock, coarse" in (tmp_path / "docs" / "clueworld-curves.svg").read_text()
    assert "2 steps" in (tmp_path / "docs" / "clueworld-rl.svg").read_text()
    assert "clueworld-seen.png" in capsys.readouterr().out
    none, good = str(tmp_path / "none"), ["--log", str(path), "--rl-log", str(rl)]
    for wrong, told in (
        (["--log", none], "pictures: .*No such file"),
        ([*good, "--log", str(rl)], "pictures: line 1 of the log has no stage"),
        ([*good, "--rl-log", str(path)], "pictures: line 1 of .*log.jsonl has no step or reward"),
        ([*good, "--seed", "-1"], "pictures: seed is -1"),
    ):
        with pytest.raises(SystemExit, match=told):
            main(["--out", str(tmp_path / "other"), *wrong])
    assert not (tmp_path / "other").exists()
