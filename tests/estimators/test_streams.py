"""Stores larger than memory: whole chunks, shuffled."""

import numpy as np
import pytest
import torch
from runs import BOX, WORLD, bits, quick
from test_training import Silent, squared_errors

from sbi_core import FunctionSimulator, InputError, SbiWarning, UniformPrior, infer, simulate
from sbi_core.estimators import carl, streams
from sbi_core.simulators import LinearGaussian

CHUNK = 100


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "rows.zarr"
    return simulate(WORLD, 2000, store=folder, seed=1, chunk_rows=1000, progress=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """20 chunks of 100 rows."""

    world = LinearGaussian(2)
    world.rows_per_seed = CHUNK
    folder = tmp_path_factory.mktemp("small") / "rows.zarr"
    return simulate(world, 2000, store=folder, seed=1, chunk_rows=CHUNK, progress=False)


def bytes_for(store, chunks):
    """Memory for so many chunks at once."""
    return 4.01 * chunks * store.chunk_rows * store.row_bytes


def test_every_pass_visits_every_training_row_once(small):
    """No row is held out and trained on, and the order of the chunks is another in every pass."""
    seen, held = [], []

    def watching(estimator, batch):
        (seen if torch.is_grad_enabled() else held).append(batch.theta.clone())
        return carl(estimator, batch)

    run = quick(small, watching, simulator=None, memory=bytes_for(small, 3), batch_size=50, max_epochs=2)
    assert run.rows == (1800, 200)
    theta, held = torch.cat(seen), torch.cat(held[: len(held) // 2]).unique(dim=0)
    first, second = theta[:1800], theta[1800:]
    assert len(first.unique(dim=0)) == len(second.unique(dim=0)) == 1800 and len(held) == 200
    assert not torch.equal(first, second)
    assert len(torch.cat([first, held]).unique(dim=0)) == 2000
    place = {tuple(row): k // CHUNK for k, row in enumerate(small.theta.tolist())}
    chunks = [[place[tuple(row)] for row in part.tolist()] for part in (first, second)]
    assert all(len(set(chunk[:300])) == 3 for chunk in chunks), "a part is three chunks ..."
    assert any(chunk[k] != chunk[k + 1] for chunk in chunks for k in range(10)), "... shuffled together"
    assert {len(set(chunk[k : k + 300])) for chunk in chunks for k in range(0, 1800, 300)} == {3}


@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_f22_wild_rows_are_named_in_whichever_chunk_they_are(tmp_path):
    def sometimes_wild(theta, rng):
        return np.where(theta[:, :1] > 1.9, 1e12, theta + 0.3 * rng.standard_normal(theta.shape))

    world = FunctionSimulator(sometimes_wild, BOX)
    world.rows_per_seed = CHUNK
    store = simulate(world, 1000, store=tmp_path / "rows.zarr", seed=1, chunk_rows=CHUNK, progress=False)
    wild = (store[:].x.amax(1) == 1e12).nonzero()[:, 0].tolist()
    assert len({row // CHUNK for row in wild}) > 5
    run = quick(store, carl, simulator=None, memory=bytes_for(store, 2), max_epochs=1)
    shown = ", ".join(map(str, wild[:10]))
    assert any(f"far out in {len(wild)} rows (rows {shown}, ...)" in flag for flag in run.flags)


def test_what_fits_into_memory_is_not_streamed(small, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(streams, "_streamed", refuse)
    whole = quick(small, carl, simulator=None, memory=len(small) * small.row_bytes)
    assert bits(whole) == bits(quick(small[:], carl, simulator=None))
    with pytest.raises(AssertionError):
        quick(small, carl, simulator=None, memory=len(small) * small.row_bytes - 1)


def test_a_stream_learns_with_gold(store):
    """As well as memory does: the log ratio is right within one part in forty of what saying nothing costs."""
    bar = 0.025 * float(squared_errors(Silent()).mean())
    options = {"hidden": (32, 32), "max_epochs": 60, "gold_check": False, "validation_fraction": 0.5}
    run = quick(store, memory=bytes_for(store, 1), **options)
    assert run.rows == (1000, 1000)
    right = squared_errors(run.estimator)
    assert (right.mean() - bar) / (right.std() / len(right) ** 0.5) < -4
    wrong = squared_errors(quick(store, memory=bytes_for(store, 1), **options | {"max_epochs": 1}).estimator)
    assert not (wrong.mean() - bar) / (wrong.std() / len(wrong) ** 0.5) < -4, "saboteur: one epoch"


def test_a_stream_resumes_with_the_same_bits(small, tmp_path, monkeypatch):
    monkeypatch.setattr("sbi_core.estimators.checkpoints.SECONDS", 0.0)
    options = {"simulator": None, "memory": bytes_for(small, 3), "max_epochs": 4, "patience": 9}
    whole = quick(small, carl, **options)

    def stop(line):
        if line["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(small, carl, checkpoint=tmp_path, callback=stop, **options)
    assert bits(quick(small, carl, checkpoint=tmp_path, **options)) == bits(whole)
    assert bits(quick(small, carl, **options | {"seed": 2})) != bits(whole), "saboteur: another seed"


def test_rows_that_are_not_finite(tmp_path):
    def fails(theta, rng):
        """One whole chunk in three, and one row in ten."""
        lost = rng.random((len(theta), 1)) < (0.1 if rng.random() < 2 / 3 else 1)
        return np.where(lost, np.nan, rng.normal(theta))

    world = FunctionSimulator(fails, BOX)
    world.rows_per_seed = CHUNK
    store = simulate(world, 1000, store=tmp_path / "rows.zarr", seed=1, chunk_rows=CHUNK, progress=False)
    options = {"simulator": None, "memory": bytes_for(store, 2), "max_epochs": 1}
    with pytest.raises(InputError, match=r"x is not finite .* of 1000 rows, .* invalid='drop'"):
        quick(store, carl, **options)
    with pytest.warns(SbiWarning, match="they were left out"):
        run = quick(store, carl, invalid="drop", **options)
    assert sum(run.rows) == int((store.column("status") == 1).sum()) < 1000


def test_one_chunk_cannot_be_streamed(tmp_path):
    store = simulate(WORLD, 1000, store=tmp_path / "rows.zarr", seed=1, chunk_rows=1000, progress=False)
    with pytest.raises(InputError, match=r"holds its 1000 rows in one chunk, more than memory = .* smaller chunk_rows"):
        quick(store, carl, memory=1000)


@pytest.mark.slow
def test_twenty_million_rows(tmp_path):
    """More than 2^24, which some of torch's functions cannot count, in parts of about a million (F67)."""

    def noisy(theta, rng):
        return theta + 0.3 * rng.standard_normal(theta.shape)

    world = FunctionSimulator(noisy, BOX)
    world.rows_per_seed = 100_000
    store = simulate(world, 20_000_000, store=tmp_path / "rows.zarr", seed=1, progress=False)
    run = quick(store, carl, simulator=None, hidden=(32, 32), max_epochs=1, batch_size=8192, memory=2.5e8)
    assert run.rows == (19_900_000, 100_000)
    posterior = infer(run.estimator, UniformPrior(BOX), [0.5, -0.5])
    offset, ratio = (posterior.mean - torch.tensor([0.5, -0.5])) / 0.3, posterior.stddev / 0.3
    assert bool(((offset.abs() < 0.5) & (ratio > 0.7) & (ratio < 1.4)).all())
