"""Ctrl-C is heard at once, and acted upon where nothing is lost."""

import os
import signal
import threading
import time

import pytest

from gradinv.audit.interruption import LeftAtOnce, interruption, signals_held

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_one_signal_is_a_flag_and_a_second_one_an_exception(number):
    with interruption() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), number)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_before_anybody_asks_it_ends_the_work(number):
    told = []
    with interruption(lambda: told.append(1)) as interrupted:
        with pytest.raises(LeftAtOnce):
            os.kill(os.getpid(), number)
        assert not interrupted()
        interrupted.leave_at_once()
        with pytest.raises(LeftAtOnce):
            os.kill(os.getpid(), number)
    assert told == []  # there was nothing to wait for


def test_it_is_said_while_a_long_step_runs():
    told: list[tuple[float, bool]] = []
    main = threading.current_thread()

    def heard() -> None:
        told.append((time.monotonic(), threading.current_thread() is main))

    with interruption(heard) as interrupted:
        interrupted()
        pressed = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)
        while not told and time.monotonic() < pressed + 30:
            pass  # a step that asks nobody
        assert len(told) == 1
    assert len(told) == 1
    assert told[0][0] - pressed < 1
    assert not told[0][1]


def test_it_is_said_once_where_the_step_ends_first():
    told = []
    with interruption(lambda: told.append(1)) as interrupted:
        interrupted()
        os.kill(os.getpid(), signal.SIGINT)
    assert told == [1]


def test_what_comes_while_processes_start_is_heard_afterwards():
    with interruption() as interrupted:
        interrupted()
        with signals_held():
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
