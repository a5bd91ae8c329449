"""The launchers: dry runs, missing variables, manifests, and local processes for real."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys

import pytest
import yaml
from launchers import LAUNCH, TPU, run, wait_for

from launch import render_jobset

XPK = {
    "CLUSTER": "c", "PROJECT": "p", "ZONE": "z", "WORKLOAD": "w", "TPU_TYPE": "v6e-64", "IMAGE": "i",
    "CONFIG": "configs/sft_stage1.py", "WORKDIR": "gs://bucket/stage1",
}  # fmt: skip


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    scripts = sorted(map(str, LAUNCH.glob("*.sh")))
    done = subprocess.run(
        ["shellcheck", "-x", *scripts],
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------- TPU VMs


@pytest.mark.parametrize(
    "action", ["create", "setup", "run", "up", "watch", "status", "logs", "stop", "down"]
)
def test_every_action_has_a_dry_run_that_calls_nothing(action, tmp_path):
    # No gcloud on this path: a call would fail.
    done = run("tpu_vm.sh", action, "--dry-run", env=TPU)
    assert done.returncode == 0, done.stderr
    assert "Assumes: gcloud is installed" in done.stdout
    if action != "watch":
        assert "+ gcloud compute tpus" in done.stdout


def test_up_is_create_setup_run_in_this_order():
    done = run(
        "tpu_vm.sh", "up", "--dry-run", "--", "--config.data.rows=gs://b/my rows.jsonl", env=TPU
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("+")]
    assert "queued-resources create run1" in lines[0] and "--spot" in lines[0]
    assert "--runtime-version=v2-alpha-tpuv5 " in lines[0] + " "
    assert "git -C" in lines[1] and "archive" in lines[1]
    assert "scp" in lines[2] and "--worker=all" in lines[2]
    # The default config writes TensorBoard files and reads rows and gs://; a pod that lacks a package ends after loading.
    assert "uv pip install" in lines[3] and "vo3-src[tpu,data,train,gcs]" in lines[3]
    assert "a trainer runs here" in lines[4] and "vo3.train.sft" not in lines[4]
    assert "vo3.train.sft" in lines[5] and "VO3_PROCESSES=auto" in lines[5]
    assert "--workdir=gs://bucket/stage1" in lines[5]


def test_several_slices_are_asked_for_together():
    done = run("tpu_vm.sh", "up", "--dry-run", env={**TPU, "NUM_SLICES": "2"})
    assert "--node-count=2 --node-prefix=run1" in done.stdout
    assert "ssh run1-0" in done.stdout and "ssh run1-1" in done.stdout
    assert done.stdout.count("--config.mesh.dcn_data=2") == 2
    assert "dcn_data" not in run("tpu_vm.sh", "up", "--dry-run", env=TPU).stdout
    refused = run("tpu_vm.sh", "create", "--dry-run", env={**TPU, "NUM_SLICES": "2", "QUEUED": "0"})
    assert refused.returncode == 2 and "needs QUEUED=1" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORKDIR": "/tmp/x"}, "must begin with gs://"),
        ({"CONFIG": "configs/none.py"}, "is no file of the checkout"),
        ({"TPU_TYPE": "v9-8"}, "set RUNTIME"),
        ({"SPOT": "yes"}, "one of: 0 1"),
        ({"NUM_SLICES": "0"}, "no number above 0"),
    ],
)
def test_a_wrong_variable_is_refused(changes, message):
    done = run("tpu_vm.sh", "up", "--dry-run", env={**TPU, **changes})
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("script", "action", "needed"), [("tpu_vm.sh", ["up"], TPU), ("xpk.sh", [], XPK)]
)
def test_missing_variables_are_all_named_before_anything_runs(script, action, needed):
    done = run(script, *action, "--dry-run")
    assert done.returncode == 2
    names = set(needed) - {"IMAGE"}
    assert all(f"  {name}: " in done.stderr for name in names), done.stderr
    assert "+" not in done.stdout


def test_unknown_arguments_are_refused():
    assert run("tpu_vm.sh", "fly", "--dry-run", env=TPU).returncode == 2
    assert run("tpu_vm.sh", "up", "--config.x=1", env=TPU).returncode == 2
    assert run("tpu_vm.sh").returncode == 2
    for script in ("tpu_vm.sh", "local.sh", "xpk.sh"):
        helped = run(script, "--help")
        assert helped.returncode == 0 and "Assumes:" in helped.stdout


# ---------------------------------------------------------------- GKE and xpk


def arguments(**changes):
    values = {
        "name": "stage1", "topology": "v6e:8x8", "image": "repo/vo3:1", "service-account": "vo3",
        "config": "configs/sft_stage1.py", "workdir": "gs://bucket/stage1", **changes,
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in values.items()]


def test_the_manifest_is_yaml_with_every_value_in_its_place(capsys):
    flag = '--config.data.rows=gs://b/a "b": c'
    assert render_jobset.main([*arguments(slices=2), "--dry-run", "--", flag]) == 0
    captured = capsys.readouterr()
    assert "JobSet controller" in captured.err
    assert "extras tpu, data, train and gcs" in captured.err
    manifest = yaml.safe_load(captured.out)
    job = manifest["spec"]["replicatedJobs"][0]
    assert (manifest["metadata"]["name"], job["replicas"]) == ("stage1", 2)
    # 64 chips, 4 a host.
    assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 16
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "8x8",
    }
    container = pod["containers"][0]
    assert container["resources"]["limits"]["google.com/tpu"] == 4
    assert container["command"] == [
        "python", "-m", "vo3.train.sft", "--config=configs/sft_stage1.py", "--workdir=gs://bucket/stage1",
        "--config.mesh.dcn_data=2", flag,
    ]  # fmt: skip
    env = {e["name"]: e["value"] for e in container["env"]}
    assert env == {
        "VO3_PROCESSES": "auto",
        "JAX_COMPILATION_CACHE_DIR": "gs://bucket/stage1/cache",
        "VO3_STOPPED_CODE": "75",
    }
    # With these a code that is not 0 starts the set again.
    assert job["template"]["spec"]["backoffLimit"] == 0
    assert manifest["spec"]["failurePolicy"] == {"maxRestarts": 100}
    assert "labels" not in manifest["metadata"]


def test_the_image_has_what_a_pod_of_tpu_vms_installs():
    """One list of extras, and a Python that setup.py takes."""
    image, script = ((LAUNCH / name).read_text() for name in ("Dockerfile", "tpu_vm.sh"))
    extras = re.search(r"EXTRAS:-([a-z,0-9]+)\}", script).group(1)
    assert f"pip install --no-cache-dir -e '.[{extras}]'" in image
    version = re.search(r"^FROM python:3\.(\d+)-slim$", image, re.MULTILINE).group(1)
    assert 11 <= int(version) <= 13


def test_a_queue_becomes_a_label(capsys):
    assert render_jobset.main(arguments(queue="team")) == 0
    labels = yaml.safe_load(capsys.readouterr().out)["metadata"]["labels"]
    assert labels == {"kueue.x-k8s.io/queue-name": "team"}


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ("v5p:2x2x4", ("tpu-v5p-slice", "2x2x4", 4, 4)),
        ("v5e:16x16", ("tpu-v5-lite-podslice", "16x16", 64, 4)),
        ("v5e:2x4", ("tpu-v5-lite-podslice", "2x4", 1, 8)),
        ("v6e:1x1", ("tpu-v6e-slice", "1x1", 1, 1)),
    ],
)
def test_hosts_follow_from_the_topology(topology, expected):
    assert render_jobset.hosts_of(topology) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topology": "v9:2x2"}, "CHIP:AxB"),
        ({"name": "Stage 1"}, "lower-case"),
        ({"image": ""}, "image: empty"),
        ({"workdir": "/tmp/x"}, "must begin with gs://"),
        ({"slices": 0}, "below 1"),
    ],
)
def test_a_wrong_argument_is_refused(changes, message, capsys):
    assert render_jobset.main(arguments(**changes)) == 2
    assert message in capsys.readouterr().err


def test_a_placeholder_that_nothing_fills_is_refused(tmp_path, monkeypatch):
    template = tmp_path / "t.yaml"
    template.write_text(render_jobset.TEMPLATE.read_text() + "# ${zone}\n")
    monkeypatch.setattr(render_jobset, "TEMPLATE", template)
    with pytest.raises(render_jobset.RenderError, match="zone"):
        render_jobset.render(
            name="a",
            topology="v6e:8x8",
            image="i",
            service_account="s",
            command=["x"],
            cache="gs://c",
        )


def test_xpk_is_given_one_workload():
    done = run("xpk.sh", "--dry-run", "--", "--config.seed=1", env=XPK)
    line = next(x for x in done.stdout.splitlines() if x.startswith("+ xpk workload create"))
    assert "--tpu-type=v6e-64" in line and "--docker-image=i" in line and "--config.seed=1" in line
    # The code of a run that was asked to end, and the one code besides its own after which xpk starts again.
    assert "--env=VO3_STOPPED_CODE=75" in line and "--restart-on-exit-codes=75" in line
    assert "--max-restarts=100" in line and "--termination-grace-period-seconds=600" in line
    base = {**XPK, "BASE_IMAGE": "b"}
    del base["IMAGE"]
    assert "--base-docker-image=b --script-dir=" in run("xpk.sh", "--dry-run", env=base).stdout


def test_xpk_tells_the_trainer_how_many_slices_there_are():
    two = run("xpk.sh", "--dry-run", env={**XPK, "NUM_SLICES": "2"}).stdout
    assert "--num-slices=2" in two and "--config.mesh.dcn_data=2" in two
    refused = run("xpk.sh", "--dry-run", env={**XPK, "NUM_SLICES": "two"})
    assert refused.returncode == 2 and "no number above 0" in refused.stderr


# ---------------------------------------------------------------- local processes

# A module that stands for the trainer: joins the others as it does, without importing jax.
STAND_IN = """
import os, pathlib, signal, sys, time
index, count = os.environ["VO3_PROCESS"], os.environ["VO3_PROCESSES"]
folder = pathlib.Path(next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2])
mode = sys.argv[-1]
def leave(*_):
    print("leaving", flush=True)
    (folder / f"saved{index}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
(folder / f"up{index}").write_text(" ".join([count, os.environ["VO3_COORDINATOR"], os.environ["XLA_FLAGS"]]))
print("hello from", index, flush=True)
if mode == "wait" or (mode == "fail" and index == "0"):
    time.sleep(60)
while mode == "fail" and not (folder / "up0").exists():  # the other can save by now
    time.sleep(0.05)
sys.exit(3 if mode == "fail" else 0)
"""


@pytest.fixture
def stand_in(tmp_path):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return {"MODULE": "stand_in", "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}


def test_local_starts_n_processes_with_one_coordinator(stand_in, tmp_path):
    done = run(
        "local.sh",
        "3",
        f"--workdir={tmp_path}",
        "end",
        env={**stand_in, "DEVICES": "2"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told = {(tmp_path / f"up{i}").read_text() for i in range(3)}
    assert len(told) == 1
    count, coordinator, flags = told.pop().split(" ", 2)
    assert count == "3" and coordinator.startswith("127.0.0.1:")
    assert "--xla_force_host_platform_device_count=2" in flags
    assert {f"[{i}] hello from {i}" for i in range(3)} <= set(done.stdout.splitlines())


def test_one_failure_ends_the_others_and_is_the_exit_code(stand_in, tmp_path):
    done = run("local.sh", "2", f"--workdir={tmp_path}", "fail", env=stand_in, timeout=300)
    assert done.returncode == 3
    assert "a process ended with code 3" in done.stderr
    assert (tmp_path / "saved0").exists()


def test_sigterm_reaches_every_process(stand_in, tmp_path):
    env = {"PATH": os.environ["PATH"], **stand_in}
    command = [str(LAUNCH / "local.sh"), "2", f"--workdir={tmp_path}", "wait"]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as started:
        wait_for(lambda: all((tmp_path / f"up{i}").exists() for i in range(2)))
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=120) == 0
    assert all((tmp_path / f"saved{i}").exists() for i in range(2))


def test_a_signal_to_the_whole_group_loses_no_last_word(stand_in, tmp_path):
    """As Ctrl-C in a terminal and some batch systems send it: what prefixes the lines gets it too."""
    env = {"PATH": os.environ["PATH"], **stand_in}
    command = [str(LAUNCH / "local.sh"), "2", f"--workdir={tmp_path}", "wait"]
    # Tests that run in the background ignore SIGINT, and a shell cannot trap what was ignored when it began.
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as started:  # fmt: skip
        wait_for(lambda: all((tmp_path / f"up{i}").exists() for i in range(2)))
        os.killpg(started.pid, signal.SIGINT)
        out, _ = started.communicate(timeout=120)
    assert started.returncode == 0 and all((tmp_path / f"saved{i}").exists() for i in range(2))
    assert {b"[0] leaving", b"[1] leaving"} <= set(out.splitlines())


def test_local_refuses_what_cannot_work(tmp_path):
    assert "number of processes" in run("local.sh", "zero").stderr
    assert "--workdir=DIR is missing" in run("local.sh", "2", "--config=x").stderr
    done = run("local.sh", "2", "--dry-run", f"--workdir={tmp_path}", env={"DEVICES": "0"})
    assert done.returncode == 2


def test_the_dry_run_shows_every_process(tmp_path):
    done = run("local.sh", "2", "--dry-run", "--config=configs/debug.py", f"--workdir={tmp_path}")
    lines = [x for x in done.stdout.splitlines() if x.startswith("+")]
    assert len(lines) == 2 and all("-m vo3.train.sft" in x for x in lines)
    assert "VO3_PROCESS=0" in lines[0] and "VO3_PROCESS=1" in lines[1]


def test_scripts_are_executable():
    for script in ("tpu_vm.sh", "local.sh", "xpk.sh"):
        assert (LAUNCH / script).stat().st_mode & stat.S_IXUSR
