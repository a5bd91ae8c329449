"""The exit code of the trainers' commands, which tells whoever started them whether to start them again."""

import types
from unittest import mock

import pytest

from vo3.train import command, grpo, sft


@pytest.fixture(params=[sft, grpo], ids=["sft", "grpo"])
def started(request, monkeypatch):
    """Runs the command with a run that ends as told; no process is joined."""
    module = request.param
    flags = types.SimpleNamespace(config="config", workdir="workdir")
    monkeypatch.setattr(command.flags, "FLAGS", flags)
    monkeypatch.setattr(command, "quiet", lambda: None)
    monkeypatch.setattr(command.processes, "start", lambda: None)

    def run(finished, code=None):
        if code is None:
            monkeypatch.delenv("VO3_STOPPED_CODE", raising=False)
        else:
            monkeypatch.setenv("VO3_STOPPED_CODE", code)
        run.train = mock.Mock(return_value=sft.Result({}, 3, finished))
        monkeypatch.setattr(module, "train", run.train)
        return module.main([])

    return run


def test_a_run_that_saved_on_request_ends_with_the_code_that_is_set(started):
    assert (started(False), started(False, "75"), started(False, "0")) == (0, 75, 0)


def test_a_finished_run_ends_with_0(started):
    assert (started(True), started(True, "75")) == (0, 0)


@pytest.mark.parametrize("code", ["", "256", "-1", "75.0", "stop", "²"])
def test_what_is_no_code_is_refused_at_the_start(started, code):
    with pytest.raises(SystemExit, match=r"^vo3\.train\.\w+: VO3_STOPPED_CODE=.* from 0 to 255$"):
        started(False, code)
    started.train.assert_not_called()
