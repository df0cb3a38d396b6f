"""A lock that is first come, first served."""

import threading
import time

import pytest

from onebase.engine.fair_lock import FairLock


def test_a_thread_that_comes_back_at_once_waits_behind_the_others() -> None:
    turns, order = FairLock(), []
    started = threading.Barrier(4)

    def busy() -> None:
        started.wait()
        for _ in range(30):
            with turns:
                order.append("busy")
                time.sleep(0.002)

    def other() -> None:
        started.wait()
        time.sleep(0.01)
        for _ in range(5):
            with turns:
                order.append("other")

    threads = [threading.Thread(target=work) for work in (busy, other, other, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = order.index("other")
    # In its turn: between two turns of a waiting thread every other has one at most.
    assert order[first:].index("busy") <= 3
    assert order.count("other") == 15
    last = len(order) - 1 - order[::-1].index("other")
    assert last - first <= 4 * 15


def test_one_at_a_time() -> None:
    turns, inside, most = FairLock(), [0], [0]

    def work() -> None:
        for _ in range(200):
            with turns:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == ([0], [1])


def test_an_interruption_while_waiting_gives_the_turn_up(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = FairLock()
    with turns:
        with monkeypatch.context() as patched:

            def interrupted(*_: object) -> bool:
                raise KeyboardInterrupt

            patched.setattr(turns._changed, "wait_for", interrupted)
            with pytest.raises(KeyboardInterrupt), turns:
                pass
        came = threading.Event()

        def follow() -> None:
            with turns:
                came.set()

        thread = threading.Thread(target=follow)
        thread.start()
        assert not came.wait(0.05)
    thread.join(5)
    assert came.is_set()


def test_an_error_inside_gives_the_turn_on() -> None:
    turns = FairLock()
    with pytest.raises(ValueError, match="inside"), turns:
        raise ValueError("inside")
    with turns:
        pass
