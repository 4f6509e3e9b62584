import sys

import h5py
import numpy as np
import pytest
import torch

from sbi_core import InputError
from sbi_core.simulators import WeightedEvents, read_madminer


def madminer(path, *, bytes_of_names=True, **changes):
    """Write a file in MadMiner's layout: two parameters, three benchmarks of which one is of a nuisance parameter."""

    def text(names):
        return np.array(names, dtype="S256") if bytes_of_names else np.array(names, dtype=h5py.string_dtype())

    layout = {
        "parameters/names": text(["CWL2", "CPWL2"]),
        "parameters/lha_blocks": text(["dim6", "dim6"]),
        "parameters/lha_ids": np.array([2, 5]),
        "parameters/max_power": np.array([[1], [1]]),
        "parameters/ranges": np.array([[-10.0, 10.0], [-5.0, 5.0]]),
        "parameters/transforms": text(["", "16.52*theta"]),
        "benchmarks/names": text(["sm", "w", "up", "x"]),
        "benchmarks/values": np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 0.0], [-4.0, 4.0]]),
        "benchmarks/is_nuisance": np.array([0, 0, 1, 0]),
        "benchmarks/is_reference": np.array([1, 0, 0, 0]),
        "morphing/components": np.array([[0, 0], [1, 0], [0, 1]]),
        "morphing/morphing_matrix": np.eye(3),
        "observables/names": text(["pt", "phi"]),
        "observables/definitions": text(["j[0].pt", ""]),
        "samples/observations": np.arange(10.0).reshape(5, 2),
        "samples/weights": np.arange(101.0, 121.0).reshape(5, 4) * 1e-3,
        "samples/sampling_benchmarks": np.array([0, 0, 1, 1, -1]),
        "sample_summary/signal_events_per_benchmark": np.array([3000, 1000, 0, 0]),
        "sample_summary/background_events": np.array(7),
    }
    with h5py.File(path, "w") as file:
        for name, value in (layout | changes).items():
            if value is not None:
                file.create_dataset(name, data=value)
    return path


@pytest.mark.parametrize("bytes_of_names", [True, False])
def test_madminer_file_is_read(tmp_path, bytes_of_names):
    found = read_madminer(madminer(tmp_path / "events.h5", bytes_of_names=bytes_of_names))
    assert [(p.name, p.low, p.high) for p in found.parameters] == [("CWL2", -10, 10), ("CPWL2", -5, 5)]
    assert found.names == ("sm", "w", "x") and found.observables == ("pt", "phi")
    assert found.benchmarks.tolist() == [[0, 0], [8, 0], [-4, 4]]
    raw = torch.arange(101.0, 121.0).double().reshape(5, 4)[:, [0, 1, 3]] * 1e-3
    shares = torch.tensor([0.75, 0.75, 0.25, 0.25, 1.0]).double()
    assert torch.allclose(found.weights, raw * shares[:, None]) and found.read == 5
    assert not torch.allclose(found.weights, raw), "saboteur: without the shares"
    assert np.asarray(found.degree).tolist() == [[0, 0], [1, 0], [0, 1]]
    events = WeightedEvents(found.x, found.weights, found.benchmarks, found.parameters, degree=found.degree)
    assert torch.allclose(events.rate(found.benchmarks), found.weights.sum(0)) and len(events) == 5


def test_madminer_file_of_one_sample(tmp_path):
    """Older files do not say where events were sampled, nor how to morph."""
    missing = dict.fromkeys(
        (
            "samples/sampling_benchmarks",
            "sample_summary/signal_events_per_benchmark",
            "morphing/components",
            "benchmarks/is_nuisance",
            "observables/names",
        )
    )
    found = read_madminer(madminer(tmp_path / "old.h5", **missing))
    assert found.weights[0].tolist() == pytest.approx([0.101, 0.102, 0.103, 0.104]) and found.degree == 2
    one = {"samples/sampling_benchmarks": np.zeros(5), "sample_summary/signal_events_per_benchmark": None}
    assert read_madminer(madminer(tmp_path / "one.h5", **one)).weights[4, 0] == pytest.approx(0.117)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"samples/weights": None}, "has no 'samples/weights', which MadMiner's files have. Events come with"),
        ({"parameters/names": None}, "has no 'parameters/names'"),
        ({"samples/weights": np.ones((5, 3))}, r"weights have shape \(5, 3\), expected \(N, 4\)"),
        ({"sample_summary/signal_events_per_benchmark": None}, "sampled at 2 benchmarks, and the file does not say"),
        (
            {"samples/sampling_benchmarks": np.zeros(4)},
            r"sampling_benchmarks' has shape \(4,\), expected 5 as 'samples/ob",
        ),
        ({"samples/sampling_benchmarks": np.full(5, 0.5)}, "sampling_benchmarks' has numbers that are not whole"),
        ({"samples/sampling_benchmarks": np.array([0, 0, 1, 2, 0])}, r"sampled at benchmarks \[0, 1, 2\], and of each"),
        ({"samples/sampling_benchmarks": np.array([0, 0, 1, 9, 0])}, "expected some of each that has events"),
        ({"sample_summary/signal_events_per_benchmark": np.array([3e3, np.nan])}, "expected some of each"),
        (
            {"samples/observations": np.ones((4, 2))},
            r"weights' has shape \(5, 4\), expected 4 as 'samples/observations'",
        ),
        ({"samples/observations": np.ones(5)}, r"observations' is of shape \(5,\), expected numbers in 2 dimensions"),
        ({"samples/observations": h5py.Empty("f8")}, "observations' is of shape None"),
        ({"samples/observations": np.array([[b"x", b"y"]])}, "observations' is of type .S1"),
        ({"samples/observations/more": np.ones(5), "samples/observations": None}, "observations' is a group"),
        ({"observables/names": np.array([b"pt"])}, r"observables/names' has shape \(1,\), expected 2 as 'samples"),
        ({"parameters/names": np.ones(2)}, "parameters/names' is of type float64, expected names in 1"),
        ({"parameters/names": np.array([b"CWL2", b"a b"])}, "Parameter name 'a b': expected letters"),
        (
            {"parameters/names": np.array([b"CWL2"])},
            r"ranges' has shape \(2, 2\), expected 1 as 'parameters/names' has",
        ),
        ({"parameters/ranges": np.ones((2, 3))}, r"ranges' has shape \(2, 3\), expected 2\."),
        ({"parameters/ranges": np.ones((2, 2))}, "low = 1.0 must be below high = 1.0"),
        ({"benchmarks/values": np.zeros((3, 2))}, r"values' has shape \(3, 2\), expected 4 as 'benchmarks/names' has"),
        ({"benchmarks/is_nuisance": np.zeros(3)}, r"is_nuisance' has shape \(3,\), expected 4"),
        (
            {"morphing/components": np.ones((3, 1))},
            r"components' has shape \(3, 1\), expected 2 as 'parameters/names' has",
        ),
        ({"morphing/components": np.full((3, 2), np.inf)}, "components' has numbers that are not whole"),
        ({"observables/names": np.array([b"x" * 2000, b"y"])}, "or one longer than 1000"),
    ],
)
def test_broken_madminer_files_are_refused(tmp_path, changes, text):
    with pytest.raises(InputError, match=text):
        read_madminer(madminer(tmp_path / "events.h5", **changes))


@pytest.mark.parametrize("name", ["samples", "samples/weights"])
@pytest.mark.parametrize("link", [h5py.SoftLink("/morphing"), h5py.ExternalLink("other.h5", "samples")])
def test_links_are_not_followed(tmp_path, name, link):
    """To elsewhere in the file, and to another one, which would be read as if it were this."""
    madminer(tmp_path / "other.h5")
    with h5py.File(madminer(tmp_path / "events.h5"), "a") as file:
        del file[name]
        file[name] = link
    with pytest.raises(InputError, match="is a link to another place, expected numbers in 2 dimensions, in this file"):
        read_madminer(tmp_path / "events.h5")


def test_numbers_of_other_files_are_not_read(tmp_path):
    """A virtual data set, and one with its bytes elsewhere, here those of a file that is nobody's business."""
    (tmp_path / "secret").write_bytes(bytes(range(160)))
    layout = h5py.VirtualLayout((5, 4), "f8")
    layout[:] = h5py.VirtualSource(madminer(tmp_path / "other.h5"), "samples/weights", shape=(5, 4))
    for kind in ("virtual", "external"):
        path = madminer(tmp_path / f"{kind}.h5", **{"samples/weights": None})
        with h5py.File(path, "a") as file:
            if kind == "virtual":
                file.create_virtual_dataset("samples/weights", layout)
            else:
                file.create_dataset("samples/weights", (5, 4), "f8", external=[(tmp_path / "secret", 0, 160)])
        with pytest.raises(InputError, match="'samples/weights' is kept in other files, expected"):
            read_madminer(path)


@pytest.mark.parametrize("name", ["samples/observations", "parameters/names"])
def test_what_would_fill_the_memory_is_refused(tmp_path, name):
    """Shapes cost nothing: 10^12 numbers of which none was written, in a small file."""
    path = madminer(tmp_path / "events.h5", **{name: None})
    with h5py.File(path, "a") as file:
        if name == "samples/observations":
            file.create_dataset(name, (5 * 10**11, 2), "f8", chunks=(1000, 2), compression="gzip")
        else:
            file.create_dataset(name, (10**12,), h5py.string_dtype(), chunks=(1000,))
    with pytest.raises(InputError, match=f"'{name}' has shape .* more numbers than a file of .* bytes holds"):
        read_madminer(path)


def test_names_that_are_one_long_text_are_refused(tmp_path):
    path = madminer(tmp_path / "events.h5", **{"observables/names": np.array(["x" * 10**6] * 2, dtype=object)})
    with pytest.raises(InputError, match="or one longer than 1000"):
        read_madminer(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_files_that_are_cut_off_are_refused(tmp_path, part):
    path = madminer(tmp_path / "events.h5")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        read_madminer(path)


def test_damaged_files_are_refused_or_read(tmp_path):
    """One bit changed, in 300 files one after the other: an error of ours, or other numbers, never anything else."""
    path, rng, refused = madminer(tmp_path / "events.h5"), np.random.default_rng(1), 0
    whole = path.read_bytes()
    for place in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read_madminer(path)
        except InputError:
            refused += 1
    assert refused > 0


def test_files_that_are_not_hdf5_are_refused(tmp_path):
    path = tmp_path / "events.lhe"
    path.write_text("<LesHouchesEvents>")
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        read_madminer(path)


def test_missing_h5py_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"this needs h5py, which is not installed: pip install 'sbi-core\[hdf5\]'"):
        read_madminer(tmp_path / "events.h5")
