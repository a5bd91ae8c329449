"""Curves of RL runs: means by hand, the picture, the command."""

import json
import xml.etree.ElementTree as xml

import pytest

from vo3.train import rl_curves as c


def log(*values, **more):
    rows = [{"step": i + 1, "reward": v, "accuracy": v / 2, **more} for i, v in enumerate(values)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_running_means_and_means_over_runs_by_hand():
    [rows] = c.read(log(1, 2, 3, 4, 5, 6))
    assert c.smooth(c.series(rows, "reward")) == {1: 1, 2: 1.5, 3: 2, 4: 2.5, 5: 3, 6: 3.5}
    [long] = c.read(log(*range(c.WINDOW + 2)))
    assert c.smooth(c.series(long, "reward"))[c.WINDOW + 2] == (c.WINDOW + 3) / 2
    assert c.series(rows, "iou") == {}
    # The shorter run ends the mean.
    assert c.mean([{1: 1.0, 2: 3.0}, {1: 2.0}]) == {1: 1.5}
    assert c.mean([]) == {}


def test_a_line_is_where_the_log_says():
    root = xml.fromstring(c.curves([*c.read(log(1.0, 3.0)), *c.read(log(3.0, 3.0))]))
    panels = [e for e in root if e.tag.endswith("}g")]
    assert len(panels) == len(c.PANELS) == 4
    *thin, thick = [
        e for e in panels[0] if e.tag.endswith("path") and e.get("stroke") == c.PANELS[0].lines[0][2]
    ]  # fmt: skip
    half, end = c.LEFT + (c.WIDTH - c.LEFT - c.RIGHT) / 2, c.WIDTH - c.RIGHT
    bottom = c.HEIGHT - c.BOTTOM
    # Running means 1, 2 and 3, 3; their mean 2, 2.5. The axis goes from 1 to 3.
    high, middle = c.TOP, (c.TOP + bottom) / 2
    assert [line.get("d") for line in thin] == [
        f"M{half:.1f} {bottom:.1f}L{end:.1f} {middle:.1f}",
        f"M{half:.1f} {high:.1f}L{end:.1f} {high:.1f}",
    ]
    assert thick.get("d") == f"M{half:.1f} {middle:.1f}L{end:.1f} {(middle + high) / 2:.1f}"
    # Figures that the log lacks have no line, and their panel stands.
    assert not [e for e in panels[3] if e.get("stroke") == c.PANELS[3].lines[0][2]]


def test_the_command(tmp_path, capsys):
    paths = [tmp_path / f"{seed}.jsonl" for seed in range(2)]
    for path in paths:
        path.write_text(log(1.0, 1.5, iou=0.4, calls=1.2))
    out = tmp_path / "docs" / "rl.svg"
    c.main(["--out", str(out), *map(str, paths)])
    assert "2 steps" in out.read_text() and str(out) in capsys.readouterr().out
    xml.fromstring(out.read_text())
    # What is kept of both is drawn alike, without the logs.
    kept = tmp_path / "figures" / "kept.jsonl"
    c.main(["--out", str(out), *map(str, paths), "--keep", str(kept)])
    assert [json.loads(line)["run"] for line in kept.read_text().splitlines()] == [0, 0, 1, 1]
    c.main(["--out", str(tmp_path / "again.svg"), str(kept)])
    assert (tmp_path / "again.svg").read_text() == out.read_text()
    for text, message in (("", "is empty"), ('{"step": 1, "loss": 2}', "line 1 .* no step or rew")):
        paths[0].write_text(text)
        with pytest.raises(SystemExit, match=message):
            c.main(["--out", str(out), str(paths[0])])
    with pytest.raises(SystemExit, match="rl_curves: "):
        c.main(["--out", str(out), str(tmp_path / "none.jsonl")])
