"""Work on host threads: results, errors by name, and a limit on work that never ends."""

from __future__ import annotations

import threading

import pytest

from vo3.rollout.errors import BucketError
from vo3.rollout.host_calls import HostCalls
from vo3.video import VideoError


def failing(error: Exception):
    def work():
        raise error

    return work


def test_results_and_errors():
    host = HostCalls(workers=2, timeout_s=60)
    gone = VideoError("missing", "a.mp4 is gone", "put it back")
    tickets = [
        host.submit(lambda: 7, "a.mp4"),
        host.submit(failing(gone), "a.mp4"),
        host.submit(failing(ZeroDivisionError("oh")), "a.mp4"),
        host.submit(failing(BucketError("no bucket holds it")), "a.mp4"),
    ]
    while not all(ticket.done for ticket in tickets):
        host.wait([ticket for ticket in tickets if not ticket.done], 60)
    assert tickets[0].result() == 7
    with pytest.raises(VideoError) as caught:
        tickets[1].result()
    assert caught.value is gone
    for ticket, kind, text in zip(
        tickets[2:], ("read", "size"), ("a.mp4: ZeroDivisionError: oh", "no bucket"), strict=True
    ):
        with pytest.raises(VideoError, match=text) as caught:
            ticket.result()
        assert caught.value.kind == kind
    host.close()


def test_work_that_never_ends_keeps_nobody_waiting():
    host, never = HostCalls(workers=1, timeout_s=0.1), threading.Event()
    hung = host.submit(lambda: never.wait(60), "hung.mp4")
    with pytest.raises(VideoError, match=r"hung\.mp4: reading took more than 0\.1 s") as caught:
        hung.result()
    assert caught.value.kind == "timeout"
    # The one thread is free again, whatever the work itself still does.
    after = host.submit(threading.Event, "next.mp4")
    host.wait([after], 60)
    assert after.done
    never.set()
    host.close()


def test_bad_arguments():
    with pytest.raises(ValueError, match="workers 0"):
        HostCalls(workers=0, timeout_s=1)
    with pytest.raises(ValueError, match="timeout_s 0"):
        HostCalls(workers=1, timeout_s=0)
