"""Rows that fail, workers that die, calls that hang, signals: the rest of the campaign is kept (faults F45 to F49)."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from toys import BOX, HERE, Shift, Slow, commits, row_by_row, run, same_bits, shifted

from sbi_core import FunctionSimulator, InputError, SbiWarning, Simulations, SimulatorError, Store
from sbi_core.simulations import FAILED, INVALID, OK, TIMED_OUT

WORST = 1.96  # two of the 400 rows
KILLS = 1.9675  # one of them
SLOW = pytest.mark.slow


def raising(theta, rng):
    if theta[0] > WORST:
        raise OSError("licence server is down")
    return shifted(theta, rng)


def killing(worst, theta, rng):
    if theta[0] > worst:
        os.kill(os.getpid(), signal.SIGKILL)
    return shifted(theta, rng)


def hanging(theta, rng):
    if theta[0] > WORST:
        try:
            time.sleep(1000)
        except Exception:
            time.sleep(1000)
    return shifted(theta, rng)


def stuck(theta, rng):
    """No signal handler of Python runs while the C code of a lock waits without a pause."""
    if theta[0] > WORST:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(1000)
    return shifted(theta, rng)


@pytest.fixture(scope="module")
def clean():
    return run(row_by_row(), 400)


def bad_rows(clean):
    rows = (clean.theta[:, 0] > WORST).nonzero().flatten().tolist()
    assert 1 <= len(rows) <= 4
    return rows


def check(made, clean, status, word, worst=WORST):
    """All other rows are as they would have been; the failed ones have theta, a status and a text."""
    made, bad = made[:], (clean.theta[:, 0] > worst).nonzero().flatten().tolist()
    good = torch.ones(len(clean), dtype=torch.bool)
    good[bad] = False
    assert torch.equal(made.theta, clean.theta) and torch.equal(made.x[good], clean.x[good])
    assert made.x[bad].isnan().all() and (made.status[bad] == status).all() and (made.status[good] == OK).all()
    assert sorted(made.failures) == bad and all(word in text for text in made.failures.values())
    assert not made.valid[bad].any()


@pytest.mark.parametrize(("workers", "stored"), [(1, False), (1, True), pytest.param(2, True, marks=SLOW)])
def test_rows_that_raise_are_marked_and_the_rest_goes_on(tmp_path, clean, workers, stored):
    store = tmp_path / "run.zarr" if stored else None
    first = bad_rows(clean)[0]
    with pytest.warns(SbiWarning, match=rf"row {first}, theta = \[1\.96.*raised OSError: licence server is down"):
        made = run(row_by_row(raising), 400, store=store, chunk_rows=100, workers=workers)
    check(made, clean, FAILED, "OSError: licence server is down")
    if stored:
        assert sorted(Store(store).failures) == bad_rows(clean)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(row_by_row(raising), 400, store=store)  # nothing is left to do


def test_reading_failed_rows_looks_only_where_they_are(tmp_path, clean, monkeypatch):
    with pytest.warns(SbiWarning):
        store = run(row_by_row(raising), 400, store=tmp_path / "run.zarr", chunk_rows=10)
    assert sorted(store[:].failures) == bad_rows(clean)
    first, committed = bad_rows(clean)[0], store.committed()
    monkeypatch.setattr(Store, "committed", lambda self: committed)
    for mark in commits(store.path):
        if int(mark.stem) != first // 10:
            mark.write_text("unreadable")
    assert list(store[first].failures) == [first] and not store[:first].failures
    with pytest.raises(json.JSONDecodeError):
        store[:]


def test_more_failures_than_allowed_end_the_campaign(tmp_path, clean):
    first = bad_rows(clean)[0]
    with pytest.raises(SimulatorError, match=rf"OSError: licence.*row {first}, theta = \[1.*max_failures") as caught:
        run(row_by_row(raising), 400, store=tmp_path / "run.zarr", chunk_rows=100, max_failures=0)
    assert isinstance(caught.value.__cause__, OSError)
    assert same_bits(caught.value.simulations, clean[:first]) and len(Store(tmp_path / "run.zarr")) == first
    with pytest.warns(SbiWarning):
        again = run(row_by_row(raising), 400, store=tmp_path / "run.zarr")
    check(again, clean, FAILED, "OSError")


def test_failures_are_counted_over_chunks_and_calls(tmp_path):
    def odd(theta, rng):
        if int(1e6 * theta[0]) % 2:
            raise ValueError("odd")
        return shifted(theta, rng)

    for workers in (1, 2):
        with pytest.raises(SimulatorError, match="max_failures"):
            run(row_by_row(odd), 60, chunk_rows=10, max_failures=6, workers=workers)
    with pytest.raises(SimulatorError, match="max_failures") as caught:
        run(row_by_row(odd), 60, store=tmp_path / "run.zarr", chunk_rows=10, max_failures=6)
    assert len(Store(tmp_path / "run.zarr").failures) == 6 == len(caught.value.simulations.failures)
    with pytest.raises(SimulatorError, match="max_failures"):
        run(row_by_row(odd), 60, store=tmp_path / "run.zarr", max_failures=6)
    assert len(Store(tmp_path / "run.zarr").failures) == 6
    with pytest.warns(SbiWarning):
        made = run(row_by_row(odd), 60, store=tmp_path / "run.zarr", max_failures=60)
    with pytest.warns(SbiWarning):
        assert same_bits(made, run(row_by_row(odd), 60, max_failures=60))


def test_code_that_always_fails_is_told_at_once(tmp_path):
    calls = []

    def broken(theta, rng):
        calls.append(theta)
        raise KeyError("mass")

    with pytest.raises(SimulatorError, match=r"each of 10 trial calls.*KeyError: 'mass'.*theta = \["):
        run(row_by_row(broken), 1000, store=tmp_path / "run.zarr", max_failures=1000)
    assert len(calls) == 10 and not (tmp_path / "run.zarr").exists()


def test_a_block_fails_as_a_whole():
    class Half(Shift):
        rows_per_seed = 50

        def sample(self, theta, design, generator):
            x, z = super().sample(theta, design, generator)
            if x[0] > 2:
                raise ArithmeticError("diverges")
            return x.float(), z

    with pytest.warns(SbiWarning):
        made = run(Half(), 1010, max_failures=900, seed=2)
    failed = made.status == FAILED
    assert failed.any() and made.x.dtype == torch.float32 and made.z[failed].isnan().all()
    assert all(part.all() or not part.any() for part in failed.split(50)) and len(made.failures) == int(failed.sum())


def test_a_broken_contract_is_no_failed_row():
    def growing(theta, rng):
        return np.zeros(3 if theta[0] > WORST else 2)

    with pytest.raises(SimulatorError, match=r"shape \(1, 3\), expected \(1, 2\)"):
        run(row_by_row(growing), 400, max_failures=400)


@pytest.mark.parametrize(
    ("chunk_rows", "stored"), [(200, True), pytest.param(100, True, marks=SLOW), pytest.param(50, False, marks=SLOW)]
)
def test_a_killed_worker_costs_its_row_alone(tmp_path, clean, chunk_rows, stored):
    store, worst = tmp_path / "run.zarr" if stored else None, KILLS if chunk_rows == 200 else WORST
    with pytest.warns(SbiWarning, match="process twice"):
        made = run(row_by_row(partial(killing, worst)), 400, store=store, chunk_rows=chunk_rows, workers=2)
    check(made, clean, FAILED, "process twice", worst)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=SLOW)])
def test_a_call_that_hangs_is_ended(tmp_path, clean, workers, monkeypatch):
    start = time.monotonic()
    if workers == 1:
        monkeypatch.setattr("sbi_core.campaign.try_out", lambda plan, seconds: plan.trial())  # one process is enough
    with pytest.warns(SbiWarning, match="timed out: no answer within 0.3 s"):
        made = run(row_by_row(hanging), 400, chunk_rows=100, workers=workers, time_limit=0.3, store=tmp_path / "r.zarr")
    check(made, clean, TIMED_OUT, "0.3 s")
    assert time.monotonic() - start < 60
    if workers > 1:
        calm = run(row_by_row(), 400, chunk_rows=100, workers=workers, time_limit=30)
        assert same_bits(calm, clean), "a limit that is not reached changes nothing"


@SLOW
def test_a_call_that_no_signal_reaches_is_ended_with_its_process(clean):
    with pytest.warns(SbiWarning, match="no way to interrupt"):
        made = run(row_by_row(stuck), 400, chunk_rows=100, time_limit=0.3)
    check(made, clean, TIMED_OUT, "no way to interrupt")


def test_a_trial_that_hangs_is_ended():
    def asleep(theta, rng):
        time.sleep(1000)

    with pytest.raises(SimulatorError, match=r"each of 10 trial calls.*no answer within 0\.1 s"):
        run(row_by_row(asleep), 400, time_limit=0.1)


@pytest.mark.parametrize(("option", "value"), [("max_failures", -1), ("max_failures", 0.5), ("time_limit", 0.0)])
def test_limits_that_make_no_sense_are_refused(option, value):
    with pytest.raises(InputError, match=f"{option} = {value}"):
        run(Shift(), 10, **{option: value})


def test_tables_keep_what_failed():
    with pytest.warns(SbiWarning):
        made = run(row_by_row(raising), 400)
    some, first = made[made.status == FAILED], min(made.failures)
    assert set(some.row.tolist()) == set(some.failures) == set(made.failures) and len(some) > 1
    for part in (made[first], made[[first]], made[: first + 1], made.split(0.5, seed=1)[0]):
        own = part.row[part.status == FAILED].tolist()
        assert sorted(part.failures) == sorted(own), "the failures of its own rows, by their number in the campaign"
    assert not made[made.valid].failures
    with pytest.warns(SbiWarning):
        other = run(row_by_row(raising), 400, seed=5, max_failures=40)
    both = Simulations.concat([made, other])
    assert sorted(both.failures) == (both.status == FAILED).nonzero().flatten().tolist()
    invalid = Simulations.from_arrays(made.theta, made.x)
    assert set(invalid.status.tolist()) == {OK, INVALID}


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # who is started in the background ignores it
from toys import BOX, Slow
from sbi_core import FunctionSimulator, simulate
toy = FunctionSimulator(Slow(0.002), BOX, vectorized=False)
simulate(toy, 5000, store=sys.argv[1], seed=1, chunk_rows=100, progress=False, workers=int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("number", "codes", "workers"),
    [
        (signal.SIGTERM, (143,), 1),
        pytest.param(signal.SIGINT, (130, -signal.SIGINT), 2, marks=SLOW),
        pytest.param(signal.SIGINT, (130, -signal.SIGINT), 1, marks=SLOW),
        pytest.param(signal.SIGTERM, (143,), 2, marks=SLOW),
    ],
)
def test_signals_end_in_good_order(tmp_path, number, codes, workers):
    path = str(tmp_path / "run.zarr")
    command = [sys.executable, "-c", INTERRUPTED, path, str(workers)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, env=HERE) as job:
        while len(commits(path)) < 2 and job.poll() is None:
            time.sleep(0.01)
        time.sleep(0.1)
        os.killpg(job.pid, number)  # as a terminal, or a batch system, does
        _, said = job.communicate(timeout=30)
    assert job.returncode in codes and f"are in {path}; the same call goes on" in said
    kept = Store(path)[:]
    assert 200 <= len(kept) < 5000 and kept.valid.all()
    assert len(kept) % 100 or workers > 1, "the rows of the chunk in progress are kept too"
    toy = FunctionSimulator(Slow(), BOX, vectorized=False)
    assert same_bits(run(toy, 600, store=path)[:][:600], run(toy, 600)[Store(path)[:].row[:600]])


def test_handlers_are_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    run(Shift(), 10)
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
