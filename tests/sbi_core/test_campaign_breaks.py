"""A campaign that breaks down or is killed keeps the rows it has, and goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest
from toys import BOX, HERE, Fragile, Shift, Slow, commits, run, same_bits

from sbi_core import FunctionSimulator, Simulations, SimulatorError, Store


@pytest.mark.parametrize("breaks_at", [0, 3, 4, 11])
@pytest.mark.parametrize("stored", [False, True])
def test_rows_before_a_breakdown_are_kept(tmp_path, breaks_at, stored):
    store = tmp_path / "run.zarr" if stored else None
    whole = run(Shift(), 200)
    assert same_bits(run(Fragile(), 200).to("cpu"), clean := run(Fragile(), 200)) and not same_bits(clean, whole)
    with pytest.raises(SimulatorError, match="out of nails") as caught:
        run(Fragile(breaks_at), 200, store=store, chunk_rows=30)
    kept = caught.value.simulations
    assert isinstance(kept, Store if stored else Simulations) or not breaks_at, "what is on disk stays there"
    assert (0 if kept is None else len(kept)) == 10 * breaks_at
    if breaks_at:
        assert same_bits(kept, clean[: 10 * breaks_at])
    if stored:
        assert len(Store(store)) == 10 * breaks_at
        assert same_bits(run(Fragile(), 200, store=store), clean), "the same call again goes on"


def test_other_errors_name_simulator_and_error():
    with pytest.raises(SimulatorError, match="'Fragile' raised OSError: out of nails") as caught:
        run(Fragile(4), 200)
    assert isinstance(caught.value.__cause__, OSError)


def test_breakdown_in_a_worker_keeps_what_is_done(tmp_path):
    with pytest.raises(SimulatorError, match="out of nails"):
        run(Fragile(0), 200, store=tmp_path / "run.zarr", chunk_rows=10, workers=2)
    assert len(Store(tmp_path / "run.zarr")) < 200
    assert same_bits(run(Fragile(), 200, store=tmp_path / "run.zarr"), run(Fragile(), 200))


def test_breakdown_while_extending_loses_no_committed_row(tmp_path):
    store = tmp_path / "run.zarr"
    run(Fragile(), 50, store=store, chunk_rows=100)
    with pytest.raises(SimulatorError):
        run(Fragile(1), 100, store=store)
    assert same_bits(Store(store), run(Fragile(), 50))


SLOW_CAMPAIGN = """
import sys
from toys import BOX, Slow
from sbi_core import FunctionSimulator, simulate
toy = FunctionSimulator(Slow(0.001), BOX, vectorized=False)
simulate(toy, 500, store=sys.argv[1], seed=1, chunk_rows=7, progress=False, workers=int(sys.argv[2]))
"""


def kill_midway(store, at_least, workers, pause):
    """Start the slow campaign, kill its process group once it has committed chunks, and return how many it had."""
    command = [sys.executable, "-c", SLOW_CAMPAIGN, store, str(workers)]
    with subprocess.Popen(command, start_new_session=True, env=HERE) as job:
        while len(commits(store)) < at_least and job.poll() is None:
            time.sleep(0.002)
        time.sleep(pause)
        before = len(commits(store))
        os.killpg(job.pid, signal.SIGKILL)
    return before


@pytest.mark.parametrize(
    ("kills", "workers"),
    [
        (1, 1),
        pytest.param(20, 1, marks=pytest.mark.slow),
        pytest.param(10, 2, marks=pytest.mark.slow),
    ],
)
def test_killed_campaign_goes_on(tmp_path, kills, workers):
    path = str(tmp_path / "run.zarr")
    toy = FunctionSimulator(Slow(), BOX, vectorized=False)
    whole = run(toy, 500)
    for number in range(kills):
        before = kill_midway(path, min(10 + 2 * number, 65), workers, pause=0.0013 * number)
        kept = Store(path)[:]
        assert len(kept) >= min(7 * before, 500), "every acknowledged row is there"
        assert same_bits(kept, whole[kept.row]) and len(kept.row.unique()) == len(kept)
    assert same_bits(run(toy, 500, store=path), whole)
    assert same_bits(run(toy, 600, seed=None, store=path), run(toy, 600))
