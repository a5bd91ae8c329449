"""Importing a prompt pack from a checkout that is parsed and never run."""

from __future__ import annotations

import pytest
import yaml
from conversations import observation

from vo3.chat import PromptPack
from vo3.chat.importer import find_constants, import_upstream, main
from vo3.trajectory import Task

pytestmark = pytest.mark.quick

PROMPTS = '''
"""A module."""
import os, textwrap
os.abort()  # importing this would end the process

HEAD = "You watch. " + 'Write {"a": [1, 2]}.'
TOOL = HEAD + " Look twice."
ALONE = textwrap.dedent("""\\
    One
      two""")
FORMAT = "Call {{x, y}}: {reason:.2f} of {}".format(1, reason=2)
OPTIONS: dict = {"line": f"{letter!s}) {opt.text}", 3: "three"}
LINES = "\\n".join(["first", TOOL.strip(), "last"])

class Turns:
    text = "  <video> shown "  .strip()
    size = 3

def build(n, clip):
    tail = f" {n:d} frames, {clip.fps:.2f}/s, {{not a field}}"
    if n:
        tail = "another"
    send("a string without a name", key="k")
    return tail
'''


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "upstream"
    (root / "agent").mkdir(parents=True)
    (root / "agent" / "prompts.py").write_text(PROMPTS)
    (root / "other.py").write_text('HEAD = "Another head"\nEND = "The end. Answer."\n')
    (root / "broken.py").write_text("def (")
    (root / "latin.py").write_bytes(b"x = '\xff'")
    return root


TEMPLATES = {
    "system.tool": "TOOL",
    "system.open": "prompts.py:HEAD",
    "system.grounding": "ALONE",
    "system.single": "LINES",
    "question.choice": ["={media}{question}\n{options}"],
    "question.open": "=" + "{media}{question}",
    "question.grounding": "=" + "{media}{question}",
    "overview": ["=" + ""],
    "option": "OPTIONS[line]",
    "observation": ["Turns.text", "agent/prompts.py:20"],
    "error": "FORMAT",
    "forced": "END",
}
FIELDS = {
    "opt.text": "text",
    "n": "frames",
    "clip.fps": "fps",
    "reason": "message",
    "": "action",
}


def test_a_checkout_becomes_a_pack(checkout, tmp_path):
    out = tmp_path / "pack.yaml"
    report = import_upstream(checkout, out, templates=TEMPLATES, fields=FIELDS, name="theirs")
    pack = PromptPack.load(out)
    assert pack.name == "theirs"
    assert pack.templates["system.tool"] == 'You watch. Write {"a": [1, 2]}. Look twice.'
    assert pack.templates["system.open"] == 'You watch. Write {"a": [1, 2]}.'
    assert pack.templates["system.grounding"] == "One\n  two"
    assert pack.templates["system.single"].splitlines()[1] == pack.templates["system.tool"]
    assert pack.templates["option"] == "{letter}) {text}"
    assert pack.templates["error"] == "Call {x, y}: {message} of {action}"
    assert pack.templates["observation"] == "{media} shown {frames} frames, {fps}/s, {not a field}"
    assert report.found["observation"] == "agent/prompts.py:16, agent/prompts.py:20"
    assert report.from_base == ()
    assert [line.split(":")[0] for line in report.unreadable] == ["broken.py", "latin.py"]
    clip = observation(1, (2, 4, 4))
    assert pack.observation(1, clip) == "<video> shown 4 frames, 2.00/s, {not a field}"
    assert pack.system(Task("1", "v", "q")) == pack.templates["system.open"]


def test_what_is_not_mapped_comes_from_the_base(checkout, tmp_path):
    out = tmp_path / "pack.yaml"
    report = import_upstream(checkout, out, templates={"forced": "END"}, base="default")
    ours, theirs = PromptPack.load(), PromptPack.load(out)
    assert report.found == {"forced": "other.py:2"}
    assert "system.tool" in report.from_base and "forced" not in report.from_base
    assert theirs.templates == {**ours.templates, "forced": "The end. Answer."}
    # texts of several lines are blocks that people can read
    assert "  tool: |-\n" in out.read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"forced": "NOPE"}, r"forced: no string constant 'NOPE'$"),
        ({"forced": "TOOLS"}, r"forced: no string constant 'TOOLS'; did you mean \['TOOL'\]\?"),
        ({"forced": "Turns.size"}, "no string constant 'Turns.size'"),
        ({"system.open": "HEAD"}, r"'HEAD' is ambiguous: \['agent/prompts.py:6', 'other.py:1'\]"),
        ({"forced": "build.tail"}, "ambiguous"),
        ({"nope": "END"}, r"unknown templates \['nope'\]"),
        ({"forced": None}, "not mapped: forced"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_written(checkout, tmp_path, change, says):
    templates = {k: v for k, v in (TEMPLATES | change).items() if v is not None}
    out = tmp_path / "pack.yaml"
    with pytest.raises(ValueError, match=says):
        import_upstream(checkout, out, templates=templates, fields=FIELDS)
    assert not out.exists()


def test_fields_must_have_a_name_here(checkout, tmp_path):
    fields = {k: v for k, v in FIELDS.items() if k not in ("clip.fps", "n")}
    out = tmp_path / "pack.yaml"
    with pytest.raises(ValueError, match=r"prompts.py:20 uses \['clip.fps'\]; say in `fields`"):
        import_upstream(checkout, out, templates=TEMPLATES, fields=fields)
    with pytest.raises(ValueError, match=r"'observation' uses the unknown fields \['n'\]"):
        import_upstream(checkout, out, templates=TEMPLATES, fields=fields | {"clip.fps": "fps"})
    assert not out.exists()


def test_every_string_is_found_once(checkout):
    constants, unreadable = find_constants(checkout)
    found = [(c.place, c.name) for c in constants if c.file == "other.py"]
    assert found == [("other.py:1", "HEAD"), ("other.py:2", "END")]
    names = {c.name for c in constants}
    assert {"OPTIONS[line]", "OPTIONS[3]", "Turns.text", "build.tail", ""} <= names
    assert "a string without a name" in {c.show() for c in constants if not c.name}
    assert len(unreadable) == 2


def test_no_checkout(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        find_constants(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no Python files"):
        find_constants(tmp_path)


def test_the_command(checkout, tmp_path, capsys):
    out, mapping = tmp_path / "pack.yaml", tmp_path / "map.yaml"
    mapping.write_text(yaml.safe_dump({"templates": TEMPLATES, "fields": FIELDS}))
    assert main([str(checkout), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "other.py:2\tEND\tThe end. Answer." in listed and "not read: broken.py" in listed
    assert main([str(checkout), str(out), "--map", str(mapping), "--name", "theirs"]) == 0
    assert "forced: other.py:2" in capsys.readouterr().out
    assert PromptPack.load(out).name == "theirs"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("- a", "is a mapping with `templates`"),
        ("fields: {}", "is a mapping with `templates`"),
        ("templates: {forced: END}", "not mapped: system.tool"),
        ("a: [", "expected"),
    ],
)
def test_the_command_says_what_is_wrong(checkout, tmp_path, capsys, text, says):
    mapping = tmp_path / "map.yaml"
    if text is not None:
        mapping.write_text(text)
    assert main([str(checkout), str(tmp_path / "pack.yaml"), "--map", str(mapping)]) == 2
    assert says in capsys.readouterr().err
    assert main([str(checkout)]) == 2
    assert "give the pack to write" in capsys.readouterr().err
