"""The exit code of the trainers' commands, which tells whoever started them whether to start them again."""

import types
from unittest import mock

import pytest

from vo3.train import grpo, sft


@pytest.fixture(params=[sft, grpo], ids=["sft", "grpo"])
def command(request, monkeypatch):
    """Runs the command with a run that ends as told; no process is joined."""
    module = request.param
    flags = types.SimpleNamespace(config="config", workdir="workdir")
    monkeypatch.setattr(module.flags, "FLAGS", flags)
    monkeypatch.setattr(module, "quiet", lambda: None)
    monkeypatch.setattr(module.processes, "start", lambda: None)

    def run(finished, code=None):
        if code is None:
            monkeypatch.delenv("VO3_STOPPED_CODE", raising=False)
        else:
            monkeypatch.setenv("VO3_STOPPED_CODE", code)
        run.train = mock.Mock(return_value=sft.Result({}, 3, finished))
        monkeypatch.setattr(module, "train", run.train)
        return module.main([])

    return run


def test_a_run_that_saved_on_request_ends_with_the_code_that_is_set(command):
    assert (command(False), command(False, "75"), command(False, "0")) == (0, 75, 0)


def test_a_finished_run_ends_with_0(command):
    assert (command(True), command(True, "75")) == (0, 0)


@pytest.mark.parametrize("code", ["", "256", "-1", "75.0", "stop", "²"])
def test_what_is_no_code_is_refused_at_the_start(command, code):
    with pytest.raises(SystemExit, match=r"^vo3\.train\.\w+: VO3_STOPPED_CODE=.* from 0 to 255$"):
        command(False, code)
    command.train.assert_not_called()
