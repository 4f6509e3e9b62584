"""Les Houches event files (hep-ph/0609017, arXiv:1405.1067), with the weights of a reweighting.

A file of any length takes the memory of its observables and weights: see `LheReader`.
"""

import gzip
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbi_core.errors import InputError, nearest
from sbi_core.simulators.event_files import StoredEvents
from sbi_core.simulators.lhe_reader import OWN, LheReader, Particles

_ROW = " ".join(["%d"] * 6 + ["%.12e"] * 7) + "\n"


def read_lhe(
    path: str | Path,
    observables: Callable[[Particles], Sequence[float] | None],
    benchmarks: Mapping[str, Sequence[float]],
    *,
    normalisation: str = "auto",
) -> StoredEvents:
    """Read a Les Houches event file, plain or gzipped, with weights at several parameter points.

    Generators write weights in several ways. "sum": they sum to the cross-section; "average": their mean is it; "unit":
    they are 1 or -1, and the cross-section is in the file's head. "auto" takes the one that agrees with the head.

    Args:
        path: the file.
        observables: the numbers of an event, the same number for each, or `None` for one that is not selected. This is
            where a detector may be added, with random numbers of your own.
        benchmarks: theta (D,) of each weight's id; the id of the event's own weight is "XWGTUP".
        normalisation: "auto", "sum", "average" or "unit".

    Returns:
        Events with weights in pb, whose sums are cross-sections of what was selected.

    Raises:
        InputError: for a file that is cut off or is something else, an event without one of the weights, or weights
            that do not agree with the cross-section of the head.
    """
    if normalisation not in ("auto", "sum", "average", "unit"):
        raise InputError(f"normalisation = {normalisation!r}, expected 'auto', 'sum', 'average' or 'unit'.")
    if not benchmarks or len({len(theta) for theta in benchmarks.values()}) > 1:
        raise InputError(
            f"benchmarks = {dict(benchmarks)}, expected the same number of parameters for each weight's id."
        )
    points = torch.as_tensor([list(theta) for theta in benchmarks.values()], dtype=torch.float64)
    reader = LheReader(Path(path))
    x, weights, own, shape = array("d"), array("d"), array("d"), (0,)
    for particles, found in reader.events():
        own.append(found[OWN])
        numbers = observables(particles)
        if numbers is None:
            continue
        each = _array(numbers)
        if not each.ndim or not np.isfinite(each).all() or (len(weights) and each.shape != shape):
            raise InputError(
                f"{path}: observables of event {len(own)} are {numbers!r}, expected finite numbers, as many in every "
                "event; None leaves an event out."
            )
        shape = each.shape
        x.extend(each.ravel())
        for name in benchmarks:
            if name not in found:
                raise InputError(f"{path}: event {len(own)} has no weight '{name}'; {nearest(name, found)[:500]}")
            weights.append(found[name])
    if not len(weights):
        raise InputError(f"{path}: of {len(own)} events none was selected, expected some.")
    rule, factor = _normalise(path, normalisation, np.asarray(own), reader.cross_section)
    return StoredEvents(
        x=torch.from_numpy(np.array(x).reshape(-1, *shape)),
        weights=torch.from_numpy(np.array(weights).reshape(-1, len(benchmarks)) * factor),
        benchmarks=points,
        names=tuple(benchmarks),
        read=len(own),
        cross_section=reader.cross_section,
        normalisation=rule,
    )


def _array(numbers: Any) -> np.ndarray:
    """As an array; of no dimension if that cannot be."""
    try:
        return np.asarray(numbers, dtype=float)
    except (TypeError, ValueError):
        return np.array(math.nan)


def write_lhe(
    path: str | Path,
    particles: Any,
    weights: Any,
    names: Sequence[str],
    cross_section: float,
    *,
    beam_energy: float = 6500.0,
) -> None:
    """Write events with weights in the layout that reweighting generators use, gzipped if the name ends in .gz.

    Args:
        path: the file, which is overwritten.
        particles: as `Particles.table`, (N, n, 13).
        weights: in pb, such that they sum to cross-sections, (N, B); in the file their average is it.
        names: ids of the B weights; the first is the event's own too.
        cross_section: that of the first weight, in pb.
        beam_energy: of each proton, in GeV.
    """
    table, values = np.asarray(particles, dtype=float), np.asarray(weights, dtype=float)
    opened: Any = partial(gzip.open, compresslevel=3) if str(path).endswith(".gz") else open
    declared = "".join(f"<weight id='{name}'> </weight>\n" for name in names)
    with opened(path, "wt", encoding="ascii") as file:
        file.write(f'<LesHouchesEvents version="3.0">\n<header>\n<initrwgt>\n<weightgroup>\n{declared}')
        file.write("</weightgroup>\n</initrwgt>\n</header>\n<init>\n")
        file.write(
            f"2212 2212 {beam_energy:.6e} {beam_energy:.6e} 0 0 0 0 -4 1\n{cross_section:.8e} 0.0 1.0 1\n</init>\n"
        )
        for event, each in zip(table, values * len(values), strict=True):
            file.write(f"<event>\n{len(event)} 1 {each[0]:.12e} -1.0 -1.0 -1.0\n")
            file.writelines(_ROW % tuple(row) for row in event.tolist())
            kept = "".join(f"<wgt id='{name}'> {v:.12e} </wgt>\n" for name, v in zip(names, each, strict=True))
            file.write(f"<rwgt>\n{kept}</rwgt>\n</event>\n")
        file.write("</LesHouchesEvents>\n")


def _normalise(path: str | Path, rule: str, own: np.ndarray, stated: tuple[float, float] | None) -> tuple[str, float]:
    """How weights become cross-sections: the rule, and the factor for each weight."""
    total, known = float(own.sum()), stated[0] if stated else math.nan
    factors = {"sum": 1.0, "average": 1 / len(own), "unit": known / total if total else math.nan}
    if rule == "auto":
        unit = bool((np.abs(own) == 1).all())
        off = {way: abs(math.log(max(factors[way] * total / known, 1e-300))) for way in ("sum", "average") if known > 0}
        nearest_way = min(off, key=lambda way: off[way]) if off else ""
        allowed = min(0.5, max(0.1, 5 * float(np.sqrt((own**2).sum())) / abs(total))) if total else 0.1
        if off and off[nearest_way] < allowed:
            rule = nearest_way
        elif known > 0 and unit:
            rule = "unit"
        else:
            raise InputError(
                f"{path}: {len(own)} weights sum to {total:.4g}, on average {total / len(own):.4g}, and the head "
                f"states a cross-section of {known:.4g} pb. Say which it is: normalisation='sum', 'average' or 'unit'."
            )
    if not math.isfinite(factors[rule]) or factors[rule] <= 0:
        raise InputError(
            f"{path}: the head states a cross-section of {known:.4g} pb, which normalisation='unit' needs."
        )
    return rule, factors[rule]
