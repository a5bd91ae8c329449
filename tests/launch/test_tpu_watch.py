"""Runs on TPU VMs: what the worker's shell is given, for real, and `watch` against a stand-in for gcloud."""

import contextlib
import os
import re
import signal
import subprocess
import types

import pytest
from launchers import LAUNCH, TPU, run, wait_for

# ---------------------------------------------------------------- on the worker


def remote_commands(action, *flags):
    """What the worker's shell is given, one after the other."""
    done = run("tpu_vm.sh", action, "--dry-run", *flags, env=TPU)
    found = []
    for line in done.stdout.splitlines():
        if line.startswith("+") and "tpu-vm ssh" in line:
            words = subprocess.run(
                ["bash", "-c", f"printf '%s\\0' {line[2:]}"], capture_output=True, check=True
            ).stdout.split(b"\0")
            command = next(w for w in words if w.startswith(b"--command="))
            found.append(command.decode().partition("=")[2])
    return found


@pytest.fixture
def worker(tmp_path):
    """A worker's home, with a trainer that writes its words and does what `does` says."""
    home = tmp_path / "home"
    (home / "vo3-src").mkdir(parents=True)
    python = home / "vo3-venv" / "bin" / "python"
    python.parent.mkdir(parents=True)

    def made(does):
        python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >>"{home}/words"\n{does}\n')
        python.chmod(0o755)
        return home

    yield made
    if (home / "vo3.pid").exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int((home / "vo3.pid").read_text()), signal.SIGKILL)


def on(home, command):
    return subprocess.run(
        ["bash", "-c", command], cwd=home, capture_output=True, text=True, check=False
    )


def test_the_remote_command_keeps_its_words(worker):
    """What the worker's shell is given runs, with spaces in a flag, and leaves its exit code."""
    home = worker("exit 7")
    for command in remote_commands("run", "--", "--config.x=a b'c"):
        assert on(home, command).returncode == 0
    wait_for(lambda: (home / "vo3.rc").exists() and (home / "vo3.rc").read_text())
    assert (home / "vo3.rc").read_text().strip() == "7"
    assert (home / "words").read_text().splitlines() == [
        "-m", "vo3.train.sft", "--config=configs/sft_stage1.py", "--workdir=gs://bucket/stage1", "--config.x=a b'c",
    ]  # fmt: skip
    assert (home / "vo3.pid").read_text().strip().isdigit()


def test_a_trainer_that_lives_is_neither_doubled_nor_bereft_of_its_code(worker):
    home = worker("exec sleep 300")
    asks, starts = remote_commands("run")
    assert [on(home, asks).returncode, on(home, starts).returncode] == [0, 0]
    pid = (home / "vo3.pid").read_text().strip()
    wait_for((home / "words").exists)
    (install,) = remote_commands("setup")
    for command in (asks, starts, install):
        done = on(home, command)
        assert done.returncode == 3 and f"a trainer runs here, process group {pid}" in done.stderr
    assert (home / "vo3-src").exists() and (home / "vo3.pid").read_text().strip() == pid
    assert (home / "words").read_text().count("vo3.train.sft") == 1
    # It has left its code: what remains of its group no longer counts.
    (home / "vo3.rc").write_text("1\n")
    assert on(home, asks).returncode == 0


# ---------------------------------------------------------------- from outside

GCLOUD = """#!/bin/bash
# Plays a queued resource: absent, ready, preempted after the run began, ready again, done.
echo "$*" >>"$FAKE/calls"
# A file fail-WORD says how often calls with this word are refused yet.
for file in "$FAKE"/fail-*; do
  if [ -s "$file" ] && [[ "$*" == *"${file##*/fail-}"* ]]; then
    left=$(($(cat "$file") - 1)); echo "$left" >"$file"
    if ((left >= 0)); then echo "ERROR: (gcloud.compute.tpus) UNAVAILABLE: 503" >&2; exit 1; fi
  fi
done
case "$*" in
  *"queued-resources create"*) if [ -s "$FAKE/first" ]; then mv "$FAKE/first" "$FAKE/state"; else echo ACTIVE >"$FAKE/state"; fi ;;
  *"queued-resources delete"*) rm -f "$FAKE/state" ;;
  *"queued-resources describe"*)
    if [ -f "$FAKE/state" ]; then cat "$FAKE/state"; exit; fi
    echo "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource 'projects/p/locations/us-east5-a/queuedResources/run1' was not found. This command is authenticated as a@b" >&2
    exit 1 ;;
  *"vo3.train.sft"*)
    TRAINER
    if [ -f "$FAKE/once" ]; then echo 0 >"$FAKE/rc"; else touch "$FAKE/once"; echo SUSPENDED >"$FAKE/state"; fi ;;
  *"echo ended"*)
    PROBE
    if [ -f "$FAKE/rc" ]; then echo "ended $(cat "$FAKE/rc")"; else echo "alive step 1"; fi ;;
esac
"""


@pytest.fixture
def cloud(tmp_path):
    """Runs an action against the stand-in for gcloud; `counted` says how often it was called with a text."""
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "git").symlink_to("/bin/true")

    def play(action, trainer="", probe="", **env):
        script = GCLOUD.replace("TRAINER", trainer or ":").replace("PROBE", probe or ":")
        (fake / "gcloud").write_text(script)
        (fake / "gcloud").chmod(0o755)
        path = f"{fake}:{os.environ['PATH']}"
        settings = {**TPU, "PATH": path, "FAKE": str(tmp_path), "POLL": "0.05", **env}
        return run("tpu_vm.sh", action, env=settings, timeout=300)

    def counted(text):
        return sum(text in call for call in (tmp_path / "calls").read_text().splitlines())

    return types.SimpleNamespace(play=play, counted=counted, folder=tmp_path)


def test_a_preempted_run_is_created_again_and_resumed(cloud):
    done = cloud.play("up")
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr and "the run has ended" in done.stderr
    assert cloud.counted("queued-resources create") == 2
    assert cloud.counted("queued-resources delete") == 1
    assert cloud.counted("vo3.train.sft") == 2


def test_a_run_that_keeps_failing_is_given_up(cloud):
    done = cloud.play("up", trainer='echo 1 >"$FAKE/rc"; exit 0', RETRIES="1")
    assert done.returncode == 2
    assert "the run failed 2 times in a row, last with code 1" in done.stderr
    assert "down' deletes it" in done.stderr


def test_an_error_of_gcloud_starts_no_second_run(cloud):
    """The slice is there and its run lives: what gcloud could not say for a while is not taken for its absence."""
    (cloud.folder / "state").write_text("ACTIVE\n")
    (cloud.folder / "fail-describe").write_text("5\n")
    done = cloud.play("watch", probe='echo 0 >"$FAKE/rc"')
    assert done.returncode == 0, done.stderr
    for word in ("queued-resources create", "scp", "vo3.train.sft"):
        assert cloud.counted(word) == 0
    assert done.stderr.count("its state is unknown") == 1 and "UNAVAILABLE: 503" in done.stderr
    assert cloud.counted("describe") == 7


def test_nothing_is_created_where_gcloud_does_not_say_what_is_there(cloud):
    (cloud.folder / "fail-describe").write_text("100\n")
    done = cloud.play("create", RETRIES="2")
    assert done.returncode == 2 and "so nothing was created: ERROR: (gcloud" in done.stderr
    assert cloud.counted("describe") == 3 and cloud.counted("create") == 0


def test_failures_with_long_runs_between_them_are_no_row(cloud):
    """Each start is seen alive three times and fails; the fifth ends well."""
    (cloud.folder / "state").write_text("ACTIVE\n")
    probe = """
    n=$(($(cat "$FAKE/looks" 2>/dev/null) + 1)); echo $n >"$FAKE/looks"
    if ((n == 20)); then echo "ended 0"; exit; elif ((n > 20)); then echo "ended 0"; exit; fi
    ((n % 4)) && echo "alive step $n" || echo "ended 1"; exit
    """
    done = cloud.play("watch", trainer="exit 0", probe=probe, RETRIES="1", STEADY="3")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("starting it again (1 of 1)") == 4
    (cloud.folder / "looks").unlink()
    short = cloud.play("watch", trainer="exit 0", probe=probe, RETRIES="1", STEADY="4")
    assert short.returncode == 2 and "the run failed 2 times in a row" in short.stderr


def test_a_trainer_that_vanished_without_a_code_is_started_again(cloud):
    (cloud.folder / "state").write_text("ACTIVE\n")
    probe = '[ -f "$FAKE/rc" ] || { echo lost; exit; }'
    done = cloud.play("watch", trainer='echo 0 >"$FAKE/rc"; exit', probe=probe)
    assert done.returncode == 0 and "without an exit code" in done.stderr
    assert cloud.counted("vo3.train.sft") == 1


def test_every_slice_is_told_to_stop_whatever_another_one_says(cloud):
    (cloud.folder / "fail-run1-0").write_text("1\n")
    done = cloud.play("stop", NUM_SLICES="2")
    assert done.returncode == 1 and "not stopped: run1-0;" in done.stderr
    assert cloud.counted("ssh run1-1") == 1
    assert cloud.play("stop", NUM_SLICES="2").returncode == 0


def test_stopping_what_has_ended_is_no_failure(worker):
    home = worker("exec sleep 300")
    (stop,) = remote_commands("stop")
    assert "no trainer runs" in on(home, stop).stdout
    (starts,) = remote_commands("run")[1:]
    assert on(home, starts).returncode == 0
    wait_for((home / "words").exists)
    done = on(home, stop)
    assert done.returncode == 0 and "told to stop" in done.stdout
    wait_for(lambda: "no trainer runs" in on(home, stop).stdout)


def test_refused_calls_after_a_preemption_are_made_again(cloud):
    """One of each; what a half-begun start left is ended before the next."""
    (cloud.folder / "state").write_text("SUSPENDED\n")
    (cloud.folder / "once").touch()
    for word in ("create", "scp", "vo3.train.sft"):
        (cloud.folder / f"fail-{word}").write_text("1\n")
    done = cloud.play("watch", RETRIES="2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was refused (1 of 2)") == 2  # a created slice begins a new row
    assert done.stderr.count("was refused (2 of 2)") == 1
    assert cloud.counted("kill -TERM") == 3 and cloud.counted("queued-resources create") == 2


def test_calls_that_stay_refused_end_with_how_to_delete_the_slice(cloud):
    (cloud.folder / "state").write_text("SUSPENDED\n")
    (cloud.folder / "fail-scp").write_text("100\n")
    done = cloud.play("watch", RETRIES="2")
    assert done.returncode == 2 and cloud.counted("tpu-vm scp") == 3
    assert "3 times in a row" in done.stderr and "down' deletes it" in done.stderr.splitlines()[-1]


def test_a_slice_that_fails_before_it_is_ready_is_asked_for_again(cloud):
    (cloud.folder / "first").write_text("FAILED\n")
    (cloud.folder / "once").touch()
    done = cloud.play("watch")
    assert done.returncode == 0, done.stderr
    assert cloud.counted("queued-resources create") == 2
    assert cloud.counted("queued-resources delete") == 1
    assert cloud.counted("vo3.train.sft") == 1


def test_what_is_left_of_a_failed_run_is_ended_on_the_worker(worker):
    """The words that `watch` sends, on a real process."""
    home = worker("exec sleep 300")
    for command in remote_commands("run"):
        on(home, command)
    wait_for((home / "words").exists)
    text = (LAUNCH / "tpu_watch.sh").read_text()
    clear, probe = (re.search(rf"^{n}='(.*)'$", text, re.MULTILINE)[1] for n in ("CLEAR", "PROBE"))
    (home / "vo3.log").write_text("step 3\n")
    assert on(home, probe).stdout == "alive step 3\n"
    assert on(home, clear).returncode == 0
    # The shell around it lives on to write the code.
    wait_for(lambda: (home / "vo3.rc").exists() and (home / "vo3.rc").read_text())
    assert on(home, probe).stdout == "ended 143\n"
    (home / "vo3.rc").unlink()
    (home / "vo3.pid").write_text("999999999\n")
    assert on(home, probe).stdout == "lost\n"
    (home / "vo3.pid").unlink()
    assert on(home, probe).stdout == "nothing\n" and on(home, clear).returncode == 0
