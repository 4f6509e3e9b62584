"""Files of weighted events as tables: what `WeightedEvents` is made from. Reading them runs no code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.parameters import Parameter


@dataclass(frozen=True)
class StoredEvents:
    """Events of a file: ``WeightedEvents(file.x, file.weights, file.benchmarks, file.parameters)`` and so on.

    Attributes:
        x: observables (N, ...), float64.
        weights: (N, B), float64, whose sums over all events of the file are cross-sections in pb.
        benchmarks: (B, D), float64.
        names: of the benchmarks.
        observables: names of the numbers in x, where the file has them.
        parameters: the D axes of theta, where the file has them.
        degree: of the polynomial, as `WeightedEvents` takes it.
        read: events in the file, of which those without observables are not among the N.
        cross_section: what the file states for its own weights, and its error, in pb; `None` if it does not.
        normalisation: how weights were turned into cross-sections.
    """

    x: Tensor
    weights: Tensor
    benchmarks: Tensor
    names: tuple[str, ...]
    observables: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    degree: Any = 2
    read: int = 0
    cross_section: tuple[float, float] | None = None
    normalisation: str = "sum"

    def __len__(self) -> int:
        return len(self.x)


def read_madminer(path: str | Path) -> StoredEvents:
    """Read an HDF5 file of MadMiner (arXiv:1907.10621): parameters, benchmarks, observables, events and weights.

    Its weights are in pb and sum to the cross-sections for the events of each benchmark they were sampled at; those of
    several are weighted with their share of the generated events, n_b / sum n, as MadMiner does, and background events
    with 1. Benchmarks of nuisance parameters are left out. The powers of its morphing are the degree.

    Args:
        path: the file; it is read whole.

    Raises:
        InputError: without h5py, for a file that is no such file, or one without events.
    """
    try:
        import h5py
    except ImportError:
        raise InputError("this needs h5py, which is not installed: pip install 'sbi-core[hdf5]'.") from None
    try:
        with h5py.File(path, "r") as file:
            table = {name: file[name][()] for name in _names(file)}
    except OSError as error:
        raise InputError(f"{path} cannot be read as HDF5 ({error}). Expected a file that MadMiner wrote.") from None
    needed = ("parameters/names", "parameters/ranges", "benchmarks/names", "benchmarks/values")
    for name in (*needed, "samples/observations", "samples/weights"):
        if name not in table:
            cure = "Events come with its readers of LHE or Delphes files." if name.startswith("samples") else ""
            raise InputError(f"{path} has no '{name}', which MadMiner's files have. {cure}".rstrip())
    ranges = np.asarray(table["parameters/ranges"], dtype=float)
    parameters = tuple(
        Parameter(name, float(low), float(high))
        for name, (low, high) in zip(_text(table["parameters/names"]), ranges, strict=True)
    )
    names = _text(table["benchmarks/names"])
    physical = ~np.asarray(table.get("benchmarks/is_nuisance", np.zeros(len(names)))).astype(bool)
    weights = np.asarray(table["samples/weights"], dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] < len(names):
        raise InputError(f"{path}: weights have shape {weights.shape}, expected (N, {len(names)}): one per benchmark.")
    weights = weights[:, : len(names)][:, physical] * _shares(path, table, len(weights))[:, None]
    x = np.asarray(table["samples/observations"], dtype=np.float64)
    degree = table.get("morphing/components", 2)
    return StoredEvents(
        x=torch.from_numpy(x),
        weights=torch.from_numpy(weights),
        benchmarks=torch.from_numpy(np.asarray(table["benchmarks/values"], dtype=np.float64)[physical]),
        names=tuple(name for name, keep in zip(names, physical, strict=True) if keep),
        observables=tuple(_text(table.get("observables/names", []))),
        parameters=parameters,
        degree=np.asarray(degree).astype(np.int64) if np.ndim(degree) else degree,
        read=len(x),
    )


def _names(file: Any) -> list[str]:
    """Paths of the data sets that are wanted and there."""
    wanted = {
        "parameters": ("names", "ranges"),
        "benchmarks": ("names", "values", "is_nuisance"),
        "morphing": ("components",),
        "observables": ("names",),
        "samples": ("observations", "weights", "sampling_benchmarks"),
        "sample_summary": ("signal_events_per_benchmark",),
    }
    return [f"{group}/{name}" for group, members in wanted.items() for name in members if f"{group}/{name}" in file]


def _text(values: Any) -> list[str]:
    """Names, which are bytes or strings as the version has it."""
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]


def _shares(path: str | Path, table: dict[str, Any], events: int) -> np.ndarray:
    """Factor of each event (N,): the share of the generated events that its benchmark has; 1 for background (-1)."""
    if "samples/sampling_benchmarks" not in table:
        return np.ones(events)
    origin = np.asarray(table["samples/sampling_benchmarks"]).astype(np.int64)
    signal = np.unique(origin[origin >= 0])
    if "sample_summary/signal_events_per_benchmark" in table:
        generated = np.asarray(table["sample_summary/signal_events_per_benchmark"], dtype=float)
    elif len(signal) <= 1:
        return np.ones(events)
    else:
        raise InputError(
            f"{path}: events were sampled at {len(signal)} benchmarks, and the file does not say how many at each "
            "(sample_summary). Write it again with a newer MadMiner."
        )
    factors = np.append(generated / max(generated.sum(), 1.0), 1.0)
    if len(origin) != events or (len(signal) and signal.max() >= len(generated)):
        raise InputError(f"{path}: sampling_benchmarks do not fit {events} events and {len(generated)} benchmarks.")
    return factors[np.where(origin < 0, -1, origin)]
