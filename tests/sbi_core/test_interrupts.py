"""Signals and time limits: what they end, and that nothing of a row that they ended is kept."""

import signal
import subprocess
import sys
import warnings

import pytest
from toys import BOX, row_by_row, run, same_bits, shifted

from sbi_core import FunctionSimulator, SimulatorError, Store
from sbi_core.cli import main
from sbi_core.interrupts import terminable


class Interrupting:
    """The reference problem; call number `at`, counted from the first row of the campaign, does something else."""

    def __init__(self, at, what):
        self.at, self.what, self.calls = at, what, -2  # the trial comes first

    def __call__(self, theta, rng):
        self.calls += 1
        if self.calls == self.at:
            self.what()
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
