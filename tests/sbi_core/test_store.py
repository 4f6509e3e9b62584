import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import distributions as td
from toys import GlobalState, Shift, commits, same_bits

from sbi_core import Events, Store, StoreError, UniformPrior, simulate
from sbi_core.simulations import MISSING
from sbi_core.simulators import GaltonBoard


@pytest.fixture
def rows():
    return simulate(Shift(), 2500, seed=1, progress=False)


@pytest.fixture
def store(tmp_path):
    return simulate(Shift(), 2500, store=tmp_path / "run.zarr", seed=1, progress=False, chunk_rows=1000)


def chunk_file(store, name, chunk):
    return Path(store.path, name, "c", str(chunk), *["0"] * (name in ("theta", "x", "z")))


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        np.int64(1700),
        slice(None),
        slice(995, 1005),
        slice(2490, 9999),
        slice(10, 2000, 7),
        slice(5, 5),
        torch.tensor([2400, 3, 3, 1999]),
        np.array([7, 1000]),
        torch.arange(2500) % 100 == 3,
    ],
)
def test_reading_is_that_of_simulations(store, rows, index):
    assert same_bits(store[index], rows[index])


@pytest.mark.parametrize("index", [2500, -2501])
def test_row_that_is_not_there(store, index):
    with pytest.raises(IndexError):
        store[index]


def test_store_knows_where_it_came_from(store, rows):
    again = Store(store.path)
    assert again.info.to_json() == rows.info.to_json()
    assert (again.info.simulator, again.info.version, again.info.seed) == ("Shift", "1", 1)
    assert isinstance(again.info.proposal, UniformPrior)
    assert again.packages["torch"] == torch.__version__.split("+")[0] or again.packages["torch"] == torch.__version__
    assert torch.equal(again.theta, rows.theta) and torch.equal(again.x, rows.x) and len(again) == 2500


def test_partly_filled_chunk_is_padded_with_nan(store):
    raw = zarr.open_group(str(store.path), mode="r")
    assert raw["x"].shape == (3000, 1) and len(store) == 2500
    assert np.isnan(raw["x"][2500:]).all() and np.isnan(raw["theta"][2500:]).all()
    assert (raw["status"][2500:] == MISSING).all()


def test_rows_without_a_commit_mark_do_not_count(store, rows):
    commits(store.path)[1].unlink()
    assert len(store) == 1500
    assert same_bits(store[:], rows[torch.cat([torch.arange(1000), torch.arange(2000, 2500)])])
    assert store[1200].row.item() == 2200


def test_data_without_a_commit_mark_do_not_count(store, rows):
    store.reserve(9000)
    raw = zarr.open_group(str(store.path), mode="r+")
    raw["x"][5000:6000] = 7.0
    assert len(store) == len(Store(store.path)) == 2500
    Path(store.path, "commits", "00000005.123.partial").write_text("{")
    assert same_bits(Store(store.path)[:], rows)


@pytest.mark.parametrize("name", ["x", "theta", "status", "z"])
def test_missing_chunk_file_is_an_error(store, name):
    assert len(store[:]) == 2500
    chunk_file(store, name, 1).unlink()
    for index in (slice(None), 1500, torch.tensor([0, 1999])):
        with pytest.raises(StoreError) as caught:
            store[index]
        assert all(word in str(caught.value) for word in (str(store.path), "chunk 1", "missing"))
    assert len(store[:1000]) == 1000, "the other chunks can still be read"


def test_missing_column_is_an_error(store):
    Path(store.path, "x", "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"run.zarr.* x is missing"):
        Store(store.path)[:]


@pytest.mark.parametrize("name", ["x", "theta", "status"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
def test_flipped_bit_is_found(store, name, place):
    file = chunk_file(store, name, 0)
    data = bytearray(file.read_bytes())
    data[round(place * (len(data) - 1))] ^= 1 << 3
    file.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        store[:10]
    assert all(word in str(caught.value) for word in (str(store.path), name, "checksum"))


@pytest.mark.parametrize("length", [0, 3, 100])
def test_truncated_chunk_is_found(store, length):
    file = chunk_file(store, "x", 0)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(StoreError, match=r"run.zarr.*x.*checksum or length"):
        store[:10]


def test_opening_runs_no_code(tmp_path):
    mixture = td.MixtureSameFamily(
        td.Categorical(torch.ones(2)), td.Independent(td.Normal(torch.tensor([[0.0], [1.0]]), torch.ones(2, 1)), 1)
    )
    store = simulate(Shift(), 10, store=tmp_path / "run.zarr", proposal=mixture, seed=1, progress=False)
    assert Store(store.path).info.proposal is None
    files = [path for path in Path(store.path).rglob("*") if path.is_file()]
    assert not any(b"\x80\x04" in path.read_bytes()[:4] for path in files), "no pickle among the files"


def test_other_readers_list_the_folder_without_warnings(store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(str(store.path), mode="r")
        assert {name for name, _ in group.arrays()} == {"theta", "x", "z", "status", "row"}
        assert {name for name, _ in group.members()} == {"theta", "x", "z", "status", "row", "commits"}
        assert group.attrs["sbi_core"]["chunk_rows"] == 1000


def test_chunk_of_failed_rows_is_no_missing_chunk(tmp_path):
    class Fails(GlobalState):
        def sample(self, theta, design, generator):
            return torch.full_like(theta, torch.nan), None

    store = simulate(Fails(), 20, store=tmp_path / "run.zarr", seed=1, progress=False)
    assert store[:].x.isnan().all() and not store[:].valid.any()


def test_runs_without_events_are_no_missing_chunk(tmp_path):
    runs = Events(Shift(), luminosity=1e-6)
    store = simulate(runs, 20, store=tmp_path / "run.zarr", seed=1, progress=False)
    assert store[:].n_events.tolist() == 20 * [0]


@pytest.mark.parametrize("content", [None, "rows.csv"])
def test_folder_that_is_no_store_is_refused(tmp_path, content):
    if content:
        (tmp_path / content).touch()
        with pytest.raises(StoreError, match="not empty and is not a store"):
            simulate(Shift(), 10, store=tmp_path, progress=False)
    with pytest.raises(StoreError, match=r"no zarr.json"):
        Store(tmp_path)


def test_store_may_be_made_in_folders_that_do_not_exist_yet(tmp_path):
    store = simulate(Shift(), 10, store=tmp_path / "a" / "b.zarr", seed=1, progress=False)
    assert len(store) == 10
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.zarr"], "nothing is left beside it"


def test_other_format_is_refused(store):
    file = Path(store.path, "zarr.json")
    content = json.loads(file.read_text())
    content["attributes"]["sbi_core"]["format"] = 99
    file.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="version found 99, supported 1"):
        Store(store.path)


def test_writing_needs_every_column(store, rows):
    columns = rows[:10].columns()
    columns.pop("z")
    with pytest.raises(StoreError, match=r"columns .* do not fit"):
        store.write(0, columns)
    assert same_bits(store[:], rows)


def test_labels_and_paths_keep_their_type(tmp_path):
    store = simulate(GaltonBoard(), 100, store=tmp_path / "run.zarr", seed=1, progress=False)
    assert store[:].x.dtype == store[:].z.dtype == torch.float32 and store.info.categories == 32
