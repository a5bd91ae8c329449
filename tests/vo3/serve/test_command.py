"""`vo3 serve`: what cannot be served ends in one line and exit code 2, before a model is loaded."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
import serve_fakes as fakes

import vo3.models
from vo3 import cli
from vo3.agent import VideoAgent
from vo3.chat import PromptPack
from vo3.clueworld import tasks
from vo3.clueworld.world import make_world
from vo3.trajectory import Trajectory


@pytest.fixture
def no_model(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("vo3.models.load", load)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port 70000"),
        (["--host", "no.such.host.invalid"], "no address of this machine"),
        (["--host", "192.0.2.1"], "no address of this machine"),
        (["--root", "/no/such/folder"], "--root /no/such/folder is no folder"),
        (["--slots", "0"], "slots"),
        (["--queue", "-1"], "queue"),
        (["--max-body-mb", "nan"], "nan for body"),
        (["--key-file", "/no/such/file"], "/no/such/file"),
        (["--mesh", "tensor"], "AXIS=N"),
        (["--mesh", "depth=2"], "AXIS=N"),
        (["--mesh", "tensor=16"], "--mesh tensor=16"),
        (["--mesh", "tensor=0"], "--mesh tensor=0"),
        (["--allow-host", "https://example.com"], "without https://"),
        (["--checkpoint", "/no/such/model"], "/no/such/model"),
    ],
)
def test_what_cannot_be_served(arguments, words, capsys):
    given = ["serve", "--port", "0", *arguments]
    assert cli.main(given) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1


def test_an_occupied_port(no_model, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1 is taken" in error and "--port" in error


def test_a_wording_that_is_not_there(no_model, tmp_path, capsys):
    for name in ("none", str(tmp_path / "none.yaml")):
        assert cli.main(["serve", "--port", "0", "--prompt-pack", name]) == 2
        assert f"--prompt-pack {name}: no prompt pack at" in capsys.readouterr().err


def test_keys_that_cannot_be_sent(no_model, tmp_path, capsys):
    for text, words in (("# none\n\n", "holds no key"), ("two words\n", "without spaces")):
        (tmp_path / "keys").write_text(text)
        assert cli.main(["serve", "--port", "0", "--key-file", str(tmp_path / "keys")]) == 2
        assert words in capsys.readouterr().err


def test_missing_packages_are_named(no_model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert cli.main(["serve", "--port", "0"]) == 2
    assert "pip install -e '.[serve]'" in capsys.readouterr().err


def test_it_serves_until_it_is_told_to_end(tmp_path, videos):
    """The real command in a process of its own, with keys, a root, a pack and a mesh of four devices of eight: a question gets the answer of one device."""
    (tmp_path / "keys").write_text("first\nsecond\n")
    # Our own words under another name.
    words = pathlib.Path(PromptPack.load("clueworld").source).read_text()
    (tmp_path / "mine.yaml").write_text(words.replace("name: clueworld", "name: mine"))
    command = [
        sys.executable, "-m", "vo3.cli", "serve", "--port", "0", "--root", str(videos), "--key-file", str(tmp_path / "keys"),
        "--mesh", "data=2,tensor=2", "--slots", "2", "--prompt-pack", str(tmp_path / "mine.yaml"),
    ]  # fmt: skip
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = said = ""
            while " on http://" not in line:
                line = process.stderr.readline()
                assert line, "it ended"
                said += line
            url = line.split(" on ")[1].strip()
            assert wait_for(url + "/health")["model"] == "clueworld"
            assert httpx.get(url + "/v1/models").status_code == 401
            headers = {"Authorization": "Bearer second"}
            assert httpx.get(url + "/v1/models", headers=headers).json()["data"][0]["id"] == "clueworld"  # fmt: skip
            [card] = make_world(fakes.WORLD, duration=fakes.SECONDS).cards[:1]
            question = tasks.digit_question(card).text
            body = fakes.ask(text=question, vo3={"max_turns": 2})
            got = httpx.post(url + "/v1/chat/completions", json=body, headers=headers, timeout=600)
            assert got.status_code == 200, got.text
            found = Trajectory.from_json(got.json()["vo3"]["trajectory"])
            alone = VideoAgent(vo3.models.load("clueworld")).ask(str(videos / "a.mp4"), question, max_turns=2)  # fmt: skip
            assert [turn.ids for turn in found.turns] == [turn.ids for turn in alone.turns]
            assert (found.prompt_pack, alone.prompt_pack) == ("mine", "clueworld")
            assert found.calls and found.answer == alone.answer == str(card.digit)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in (0, -signal.SIGTERM)
        finally:
            process.kill()
        rest = process.stderr.read()
    assert "--mesh data=2,tensor=2 uses 4 of 8 devices" in said
    assert "in the words of the prompt pack mine" in said
    assert "Traceback" not in rest and "second" not in rest and "req-" in rest


def wait_for(url: str) -> dict:
    for _ in range(200):
        try:
            return httpx.get(url).json()
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("it does not answer")
