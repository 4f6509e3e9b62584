"""Files of weighted events as tables: what `WeightedEvents` is made from. Reading them runs no code."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.parameters import Parameter

_TEXT, _NUMBERS = "names", "numbers"

_LAYOUT = {
    "parameters/names": (_TEXT, "D"),
    "parameters/ranges": (_NUMBERS, "D2"),
    "benchmarks/names": (_TEXT, "B"),
    "benchmarks/values": (_NUMBERS, "BD"),
    "samples/observations": (_NUMBERS, "NF"),
    "samples/weights": (_NUMBERS, "NW"),
    "benchmarks/is_nuisance": (_NUMBERS, "B"),
    "morphing/components": (_NUMBERS, "CD"),
    "observables/names": (_TEXT, "F"),
    "samples/sampling_benchmarks": (_NUMBERS, "N"),
    "sample_summary/signal_events_per_benchmark": (_NUMBERS, "G"),
}
"""Of MadMiner's data sets those that are read, what they hold, and a letter for the length of each axis."""

_NEEDED = 6
"""So many of them are in every file."""

_INFLATED, _SMALL = 100, 1_000_000
"""Bytes that may come out of each byte of a file, and out of any file: numbers are never packed more densely."""

_NAMES, _NAME = 10_000, 1000
"""Names in a data set, and bytes of a name, at most."""


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

    Nothing but this file is opened, whatever it links to, and no more is read than a file of its size can hold.

    Args:
        path: the file; it is read whole.

    Raises:
        InputError: without h5py, for a file that is no such file, one without events, or whose parts do not fit.
    """
    try:
        import h5py
    except ImportError:
        raise InputError("this needs h5py, which is not installed: pip install 'sbi-core[hdf5]'.") from None
    table: dict[str, Any] = {}
    try:
        with h5py.File(path, "r") as file:
            left = _SMALL + _INFLATED * Path(path).stat().st_size
            for name, dataset in _datasets(path, file):
                left -= dataset.size * max(8, dataset.dtype.itemsize)
                if left < 0:
                    raise InputError(
                        f"{path}: '{name}' has shape {dataset.shape}, more numbers than a file of "
                        f"{Path(path).stat().st_size} bytes holds. It is damaged, or made to fill the memory."
                    )
                table[name] = _text(path, name, dataset) if _LAYOUT[name][0] == _TEXT else dataset[()]
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be read as HDF5 ({error}). Expected a file that MadMiner wrote.") from None
    _check_shapes(path, table)
    names = table["benchmarks/names"]
    physical = ~np.asarray(table.get("benchmarks/is_nuisance", np.zeros(len(names)))).astype(bool)
    weights = np.asarray(table["samples/weights"], dtype=np.float64)
    weights = weights[:, : len(names)][:, physical] * _shares(path, table, len(weights))[:, None]
    x = np.asarray(table["samples/observations"], dtype=np.float64)
    return StoredEvents(
        x=torch.from_numpy(x),
        weights=torch.from_numpy(weights),
        benchmarks=torch.from_numpy(np.asarray(table["benchmarks/values"], dtype=np.float64)[physical]),
        names=tuple(name for name, keep in zip(names, physical, strict=True) if keep),
        observables=tuple(table.get("observables/names", ())),
        parameters=tuple(
            Parameter(name, float(low), float(high))
            for name, (low, high) in zip(table["parameters/names"], table["parameters/ranges"], strict=True)
        ),
        degree=_whole(path, table, "morphing/components") if "morphing/components" in table else 2,
        read=len(x),
    )


def _datasets(path: str | Path, file: Any) -> Iterator[tuple[str, Any]]:
    """Names and data sets of the layout that are there: parts of this very file, of numbers or of names."""
    import h5py

    for position, (name, (kind, axes)) in enumerate(_LAYOUT.items()):
        found, said = file, ""
        for step in name.split("/"):
            if not isinstance(found, h5py.Group) or step not in found:
                found = None
                break
            if not isinstance(found.get(step, getlink=True), h5py.HardLink):
                said = "a link to another place"
                break
            found = found[step]
        if found is None and position >= _NEEDED:
            continue
        if found is None:
            cure = "Events come with its readers of LHE or Delphes files." if name.startswith("samples") else ""
            raise InputError(f"{path} has no '{name}', which MadMiner's files have. {cure}".rstrip())
        if not said and not isinstance(found, h5py.Dataset):
            said = "a group"
        elif not said and (found.is_virtual or found.external):
            said = "kept in other files"
        elif not said:
            text = h5py.check_string_dtype(found.dtype) is not None
            if text != (kind == _TEXT) or not (text or found.dtype.kind in "biuf"):
                said = f"of type {found.dtype}"
            elif found.shape is None or len(found.shape) != len(axes):
                said = f"of shape {found.shape}"
        if said:
            raise InputError(f"{path}: '{name}' is {said}, expected {kind} in {len(axes)} dimensions, in this file.")
        yield name, found


def _text(path: str | Path, name: str, dataset: Any) -> list[str]:
    """Names, which are bytes or strings as the version has it."""
    values: list[str] = []
    for k in range(min(len(dataset), _NAMES + 1)):  # one by one: each may refer to the same long text
        value = dataset[k]
        values.append(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))
        if len(values) > _NAMES or len(values[-1]) > _NAME:
            raise InputError(f"{path}: '{name}' has more than {_NAMES} names, or one longer than {_NAME}.")
    return values


def _check_shapes(path: str | Path, table: dict[str, Any]) -> None:
    """Raise where an axis is not as long in one data set as in another; weights of more than the benchmarks may be."""
    known: dict[str, tuple[int, str]] = {"2": (2, "")}
    for name, value in table.items():
        for axis, length in zip(_LAYOUT[name][1], np.shape(value), strict=True):
            expected, where = known.setdefault(axis, (length, name))
            if length != expected:
                because = f" as '{where}' has" if where else ""
                raise InputError(f"{path}: '{name}' has shape {np.shape(value)}, expected {expected}{because}.")
    weights, benchmarks = np.shape(table["samples/weights"]), known["B"][0]
    if weights[1] < benchmarks:
        raise InputError(f"{path}: weights have shape {weights}, expected (N, {benchmarks}): one per benchmark.")


def _whole(path: str | Path, table: dict[str, Any], name: str) -> np.ndarray:
    """A data set as whole numbers."""
    values = np.asarray(table[name])
    if not np.isfinite(values).all() or (values != np.round(values)).any() or (np.abs(values) > 2**31).any():
        raise InputError(f"{path}: '{name}' has numbers that are not whole.")
    return values.astype(np.int64)


def _shares(path: str | Path, table: dict[str, Any], events: int) -> np.ndarray:
    """Factor of each event (N,): the share of the generated events that its benchmark has; 1 for background (-1)."""
    if "samples/sampling_benchmarks" not in table:
        return np.ones(events)
    origin = _whole(path, table, "samples/sampling_benchmarks")
    signal = np.unique(origin[origin >= 0])
    if "sample_summary/signal_events_per_benchmark" not in table:
        if len(signal) <= 1:
            return np.ones(events)
        raise InputError(
            f"{path}: events were sampled at {len(signal)} benchmarks, and the file does not say how many at each "
            "(sample_summary). Write it again with a newer MadMiner."
        )
    generated = np.asarray(table["sample_summary/signal_events_per_benchmark"], dtype=float)
    known = signal[signal < len(generated)]
    if (
        len(known) < len(signal)
        or not (np.isfinite(generated) & (generated >= 0)).all()
        or (generated[known] < 1).any()
    ):
        raise InputError(
            f"{path}: events were sampled at benchmarks {signal.tolist()[:20]}, and of each "
            f"{generated.tolist()[:20]} were generated: expected some of each that has events."
        )
    factors = np.append(generated / max(generated.sum(), 1.0), 1.0)
    return factors[np.where(origin < 0, -1, origin)]
