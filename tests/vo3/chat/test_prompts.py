"""Prompt packs: the default pack's texts, validation by file and key, and texts that cannot smuggle in a video."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
import yaml
from conversations import observation

import vo3.chat
from vo3.chat import PromptPack, parse_turn, task_mode
from vo3.chat.prompts import OPTIONAL, RULES
from vo3.trajectory import Target, Task, Turn

pytestmark = pytest.mark.quick

PACKS = sorted((pathlib.Path(vo3.chat.__file__).parent / "packs").glob("*.yaml"))
CHOICE = Task("1", "v.mp4", "Which card?", {"A": "red", "B": "green"})
OPEN = Task("2", "v.mp4", "What happens?")
MOMENT = Task("3", "v.mp4", "A man sits down.", target=Target("", data_source="temporal_grounding"))


@pytest.fixture(scope="module")
def data():
    path = next(p for p in PACKS if p.stem == "default")
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", PACKS, ids=lambda p: p.stem)
def test_every_pack_makes_every_turn(path):
    pack = PromptPack.load(path.stem)
    assert pack.name == path.stem
    overview, clip = observation(0), observation(1, strategy="fine")
    for task in (CHOICE, OPEN, MOMENT):
        Turn("system", pack.system(task))
        Turn("question", pack.question(task), (overview,))
        Turn("question", pack.question(task, overview=overview), (overview,))
        images = (overview, observation(1, (1, 4, 4), media="image"))
        Turn("question", pack.question(task, images=1), images)
        Turn("forced", pack.forced(task))
        assert task.question in pack.question(task)
    Turn("observation", pack.observation(1, clip), (clip,))
    Turn("error", pack.error(1, "too short"))
    texts = " ".join(pack.templates.values())
    assert "VideoCrop" not in texts
    assert PromptPack.from_dict(pack.to_dict(), source=pack.source) == pack


def test_the_default_pack_word_for_word():
    pack = PromptPack.load()
    assert pack.question(CHOICE) == "<video>\nWhich card?\nOptions:\nA. red\nB. green"
    assert pack.question(OPEN, images=1) == "<video><image>\nWhat happens?"
    assert pack.question(MOMENT).startswith("<video>\nWhen does this happen")
    overview = dataclasses.replace(observation(0, (3, 4, 4), fps=0.3333), start=0.0, end=61.26)
    assert pack.question(OPEN, overview=overview) == (
        "<video>\nThe video above lasts 61.3 seconds and is shown in 6 frames, 0.33 per second.\n"
        "What happens?"
    )
    clip = dataclasses.replace(observation(2, (2, 4, 4)), start=10.04, end=12.0)
    assert pack.observation(3, clip) == (
        "Action 3 was carried out. Observation 2:\n<video>\n"
        "These are 4 frames sampled at 2.00 frames per second from 10.0 to 12.0 seconds of the video."
    )
    assert pack.error(2, "it is short.").startswith(
        "Action 2 could not be carried out: it is short."
    )


def test_the_default_pack_teaches_what_the_parser_reads():
    pack = PromptPack.load()
    for task, kinds in ((CHOICE, {"call", "answer"}), (OPEN, {"call", "answer"})):
        lines = pack.system(task).splitlines()
        assert {
            parse_turn(line, 9.0).kind for line in lines if line.startswith(("<g", "<a"))
        } == kinds
    assert "<grounding>" not in pack.system(MOMENT) + pack.system(OPEN, mode="single")
    assert (
        len({pack.templates[f"system.{m}"] for m in ("tool", "open", "grounding", "single")}) == 4
    )


def test_the_mode_is_told_from_the_task():
    assert [task_mode(t) for t in (CHOICE, OPEN, MOMENT)] == ["tool", "open", "grounding"]
    pack = PromptPack.load()
    assert pack.system(CHOICE) == pack.system(OPEN, mode="tool") != pack.system(OPEN)
    with pytest.raises(ValueError, match="unknown mode 'chat'"):
        pack.system(CHOICE, mode="chat")


def test_words_cannot_smuggle_in_a_video_or_a_field():
    pack = PromptPack.load()
    sly = Task(
        "4", "v.mp4", "is <video> {options} {media} <image>?", {"A": "<video>", "B": "{text}"}
    )
    text = pack.question(sly)
    assert text.count("<video>") == 1 and "<image>" not in text
    assert "is < video > {options} {media} < image >?" in text
    assert text.endswith("A. < video >\nB. {text}")
    Turn("question", text, (observation(0),))
    Turn("error", pack.error(1, "no <video> {action}"))
    Turn("forced", pack.forced(sly))


def broken(data, key, value):
    group, _, part = key.partition(".")
    changed = {k: dict(v) if isinstance(v, dict) else v for k, v in data.items()}
    place, name = (changed[group], part) if part else (changed, group)
    if value is None:
        del place[name]
    else:
        place[name] = value
    return changed


@pytest.mark.parametrize("key", sorted(set(RULES) - OPTIONAL))
def test_a_missing_template_is_named(data, key):
    with pytest.raises(ValueError, match=rf"my\.yaml: the template '{key}' is missing"):
        PromptPack.from_dict(broken(data, key, None), source="my.yaml")


@pytest.mark.parametrize("key", sorted(RULES))
def test_an_unknown_field_is_named(data, key):
    text = data.get(key) if "." not in key else data[key.split(".")[0]][key.split(".")[1]]
    with pytest.raises(ValueError, match=rf"my\.yaml: '{key}' uses the unknown fields \['nope'\]"):
        PromptPack.from_dict(broken(data, key, (text or "") + " {nope}"), source="my.yaml")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("question.choice", "{media} {question}", r"must use the fields \['options'\]"),
        ("observation", "no video", r"must use the fields \['media'\]"),
        ("observation", "{media} {media}", "more than once"),
        ("observation", "<video> {media}", "literal media mark"),
        ("error", 5, "is missing or is no text"),
        ("greeting", "hello", r"unknown keys \['greeting'\]"),
        ("system.shy", "hello", r"unknown keys \['system.shy'\]"),
        ("name", ["x"], "a mapping with a name"),
        ("decimals", {"hours": 1}, "'decimals' is a mapping with the keys"),
        ("decimals", {"seconds": "two"}, "seconds_decimals is 'two'"),
        ("decimals", {"fps": True}, "fps_decimals is True"),
    ],
)
def test_what_does_not_fit_names_file_and_key(data, tmp_path, key, value, says):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(broken(data, key, value)))
    with pytest.raises(ValueError, match=says) as error:
        PromptPack.load(path)
    assert str(path) in str(error.value)


def test_a_pack_that_is_not_there_or_no_yaml(tmp_path):
    with pytest.raises(ValueError, match=r"no prompt pack at .*nosuch\.yaml.*'default'"):
        PromptPack.load("nosuch")
    with pytest.raises(ValueError, match="no prompt pack at"):
        PromptPack.load(tmp_path / "x.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("a: [")
    with pytest.raises(ValueError, match=r"bad\.yaml: not valid YAML"):
        PromptPack.load(path)
    path.write_text("- a")
    with pytest.raises(ValueError, match="a mapping with a name"):
        PromptPack.load(path)
