"""What the tests of the launchers share: their variables, a call, and waiting."""

import os
import pathlib
import subprocess
import time

LAUNCH = pathlib.Path("launch").resolve()
TPU = {
    "PROJECT": "p", "ZONE": "us-east5-a", "TPU_NAME": "run1", "TPU_TYPE": "v5p-32",
    "CONFIG": "configs/sft_stage1.py", "WORKDIR": "gs://bucket/stage1",
}  # fmt: skip


def run(script, *arguments, env=None, **options):
    full = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **(env or {})}
    return subprocess.run(
        [str(LAUNCH / script), *arguments],
        env=full,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
