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
        ({"samples/sampling_benchmarks": np.zeros(4)}, "do not fit 5 events"),
    ],
)
def test_broken_madminer_files_are_refused(tmp_path, changes, text):
    with pytest.raises(InputError, match=text):
        read_madminer(madminer(tmp_path / "events.h5", **changes))


def test_files_that_are_not_hdf5_are_refused(tmp_path):
    path = tmp_path / "events.lhe"
    path.write_text("<LesHouchesEvents>")
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        read_madminer(path)


def test_missing_h5py_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"this needs h5py, which is not installed: pip install 'sbi-core\[hdf5\]'"):
        read_madminer(tmp_path / "events.h5")
