"""Batches from worker processes: in order, resumable, and no worker outlives its parent."""

import functools
import os
import signal
import subprocess
import sys
import time

import pytest

from vo3.train.prefetch import prefetch


class Squares:
    def __init__(self, offset: int, fail_at: int | None = None):
        self.offset, self.fail_at = offset, fail_at

    def batch(self, step: int):
        if step == self.fail_at:
            raise ValueError(f"no batch {step}")
        time.sleep(0.01 * (step % 3))  # later ones are ready earlier
        return (step + self.offset) ** 2, os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_from_any_start(workers):
    make = functools.partial(Squares, 1)
    got = list(prefetch(make, start=3, stop=12, workers=workers))
    assert [value for value, _ in got] == [(s + 1) ** 2 for s in range(3, 12)]
    assert (os.getpid() in {pid for _, pid in got}) == (workers == 0)


def test_an_error_in_a_worker_is_raised_here():
    with pytest.raises(ValueError, match="no batch 2"):
        list(prefetch(functools.partial(Squares, 0, 2), start=0, stop=5))


def test_workers_leave_with_a_killed_parent():
    code = (
        "import functools, sys\n"
        "from tests.vo3.train.test_prefetch import Squares\n"
        "from vo3.train.prefetch import prefetch\n"
        "if __name__ == '__main__':\n"
        "    for _, pid in prefetch(functools.partial(Squares, 0), start=0, stop=10**6):\n"
        "        print(pid, flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent by 10 s")
