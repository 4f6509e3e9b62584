"""Worker processes: they go with the process that began them, and leave their signals to it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from toys import Shift, commits, row_by_row, run

from sbi_core import SimulatorError
from sbi_core.campaign import _plan
from sbi_core.chunks import Task, draw_chunk

ORPHANED = """
import subprocess, sys, time
from sbi_core import FunctionSimulator, Parameter, simulate
python, folder = sys.executable, sys.argv[1]
class Beating:
    begun = False
    def __call__(self, theta, rng):
        if not self.begun:
            Beating.begun = True
            program = "from signal import *; print(getsignal(SIGTERM) == SIG_DFL, getsignal(SIGINT) == SIG_IGN)"
            with open(folder + "/said", "w") as said:
                subprocess.run([python, "-S", "-E", "-c", program], stdout=said)
        with open(folder + "/heart", "a") as heart:
            heart.write(".")
        time.sleep(0.01)
        return theta
toy = FunctionSimulator(Beating(), [Parameter("a", -2, 2)], vectorized=False)
simulate(toy, 800, store=folder + "/run.zarr", seed=1, chunk_rows=800, progress=False, time_limit=60)
"""


@pytest.fixture(scope="module")
def orphaned(tmp_path_factory):
    """Folder of a campaign with one worker, whose own process alone was killed."""
    folder = tmp_path_factory.mktemp("orphaned")
    heart = folder / "heart"
    with subprocess.Popen([sys.executable, "-c", ORPHANED, folder], start_new_session=True) as job:
        while job.poll() is None and not (heart.exists() and heart.stat().st_size > 100):
            time.sleep(0.01)
        job.kill()
    yield folder
    with suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)


def test_workers_go_with_the_process_that_began_them(orphaned):
    beats, began = -1, time.monotonic()
    while beats != (beats := (orphaned / "heart").stat().st_size):
        assert time.monotonic() - began < 4, "the worker goes on alone"
        time.sleep(0.3)
    assert 100 < beats < 800 and not commits(orphaned / "run.zarr")


def test_programs_of_a_worker_may_be_told_to_end(orphaned):
    assert (orphaned / "said").read_text() == "True False\n"


def test_a_chunk_is_in_progress_until_it_has_arrived(tmp_path, monkeypatch):
    """A process that ends in the middle of writing has begun: the block that it was at is known."""

    def killed(*arguments):
        raise InterruptedError

    monkeypatch.setattr("sbi_core.chunks.Store", killed)
    task = Task(number=2, rows=10, done=0, allowed=0, notes=tmp_path)
    plan = replace(_plan(row_by_row(), 30, None, None, seed=1), chunk_rows=10)
    with pytest.raises(InterruptedError):
        draw_chunk(plan, task, tmp_path)
    assert task.note.read_text() == "29"


class Poison(Shift):
    """Ends the process that reads it."""

    def __setstate__(self, state):
        os._exit(1)

    def __getstate__(self):
        return {}


def test_workers_that_cannot_begin_end_the_campaign(tmp_path):
    store = tmp_path / "run.zarr"
    run(Shift(), 1000, store=store, chunk_rows=1000)
    poison = type("Shift", (Poison,), {})()
    with pytest.raises(SimulatorError, match="die before they begin") as caught:
        run(poison, 3000, store=store, time_limit=9)
    assert len(caught.value.simulations) == 1000
