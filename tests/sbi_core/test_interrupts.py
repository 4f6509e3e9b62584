"""Signals and time limits: what they end, and that nothing of a row that they ended is kept."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
from toys import BOX, row_by_row, run, same_bits, shifted

from sbi_core import FunctionSimulator, InputError, SimulatorError, Store
from sbi_core.cli import main
from sbi_core.interrupts import RowTimeout, Stop, alarm, terminable
from sbi_core.workers import run_tasks


@pytest.fixture(autouse=True)
def interruptible():
    """What a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupting:
    """The reference problem; call number `at`, counted from the first row of the campaign, does something else."""

    def __init__(self, at, what):
        self._at, self._what, self._calls = at, what, -2  # the trial comes first; hidden, so that the world is one

    def __call__(self, theta, rng):
        self._calls += 1
        if self._calls == self._at:
            self._what()
        return shifted(theta, rng)


def interrupting(at=None, what=None):
    return FunctionSimulator(Interrupting(at, what), BOX, vectorized=False)


def ended(path, kept, **options):
    """Whether a store holds the first rows of a campaign of 60, none failed, and the same call goes on."""
    store, whole = Store(path), run(interrupting(), 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bits(store, whole[:kept]) and not store.failures
        assert same_bits(run(interrupting(), 60, store=path), whole)


def twice(number):
    signal.raise_signal(number)
    signal.raise_signal(number)
    raise AssertionError("the second signal ends at once")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_second_signal_ends_at_once_and_is_no_failed_row(tmp_path, capsys, number, error):
    with pytest.raises(error) as caught, terminable():
        run(interrupting(25, lambda: twice(number)), 60, store=tmp_path / "run.zarr", chunk_rows=10)
    assert number == signal.SIGINT or caught.value.code == 143
    assert "25 rows are in" in capsys.readouterr().err
    ended(tmp_path / "run.zarr", 25)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_in_a_campaign_within_a_campaign_ends_both(tmp_path, number, error):
    def inner():
        run(interrupting(3, lambda: signal.raise_signal(number)), 10)

    with pytest.raises(error), terminable():
        run(interrupting(25, inner), 60, store=tmp_path / "run.zarr", chunk_rows=10)
    ended(tmp_path / "run.zarr", 25)


def test_a_row_that_fails_because_of_the_signal_is_drawn_again(tmp_path):
    """Ctrl-C reaches the programs that a simulator began too."""

    def program():
        signal.raise_signal(signal.SIGINT)
        raise subprocess.CalledProcessError(-2, "program")

    with pytest.raises(KeyboardInterrupt):
        run(interrupting(25, program), 60, store=tmp_path / "run.zarr", chunk_rows=10)
    ended(tmp_path / "run.zarr", 25)


def test_a_program_that_leaves_is_a_failed_row_and_never_leaves_the_campaign(tmp_path):
    with pytest.raises(SimulatorError, match=r"each of 10 trial calls.*SystemExit: 3"):
        run(row_by_row(lambda theta, rng: sys.exit(3)), 60)
    with pytest.raises(SimulatorError, match="raised SystemExit: 3"):
        run(interrupting(25, lambda: sys.exit(3)), 60)


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        (lambda: signal.raise_signal(signal.SIGTERM), 143, "interrupted; run_dir=r continues it"),
        (lambda: signal.raise_signal(signal.SIGINT), 130, "interrupted; run_dir=r continues it"),
        (lambda: sys.exit(3), 1, "SystemExit: 3"),
        (sys.exit, 1, "SystemExit"),
    ],
)
def test_only_what_was_interrupted_is_called_so(tmp_path, monkeypatch, capsys, what, code, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sbi_core.cli.run_stages", lambda job: what())
    assert main(["run_dir=r"]) == code
    said = capsys.readouterr().err
    assert words in said and ("interrupted" in said) == (code > 1)


def test_a_signal_after_the_workers_are_gone_is_heard(capsys):
    stop = Stop()
    assert list(run_tasks(None, [], None, 2, stop)) == []
    stop.request(signal.SIGTERM)
    assert stop.signal == signal.SIGTERM and "finishing" in capsys.readouterr().err


def test_an_alarm_that_rings_late_leaves_nothing_behind(tmp_path, monkeypatch):
    """The limit is reached when the call has just ended: its process is not ended later on."""
    before = signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr("sbi_core.interrupts.GRACE", 1000)
    monkeypatch.setattr(signal, "setitimer", lambda which, seconds: seconds or signal.raise_signal(signal.SIGALRM))
    with pytest.raises(RowTimeout), alarm(1000, tmp_path / "note"):
        pass
    watches = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for watch in watches:
        watch.join(0.5)
    assert not any(watch.is_alive() for watch in watches) and signal.getsignal(signal.SIGALRM) == before


def test_a_time_limit_that_nothing_keeps_is_refused(monkeypatch):
    monkeypatch.delattr(signal, "SIGALRM")
    with pytest.raises(InputError, match=r"time_limit = 3: .*leave it out"):
        run(row_by_row(), 10, time_limit=3)
    assert len(run(row_by_row(), 10)) == 10


def test_a_signal_to_all_processes_is_left_to_the_first(tmp_path, monkeypatch):
    """Ctrl-C reaches the worker processes too, which finish their row and keep it."""
    monkeypatch.setattr("sbi_core.campaign.try_out", lambda plan, seconds: plan.trial())

    def both():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.5)

    with pytest.raises(KeyboardInterrupt):
        run(interrupting(5, both), 60, store=tmp_path / "run.zarr", chunk_rows=10, time_limit=60)
    ended(tmp_path / "run.zarr", 6)
