"""Les Houches event files (hep-ph/0609017, arXiv:1405.1067), with the weights of a reweighting.

The file is read line by line and never as XML: nothing is expanded or fetched, headers need not be well-formed, and a
file of any length takes the memory of its observables and weights.
"""

import gzip
import math
import re
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from sbi_core.errors import InputError, nearest
from sbi_core.simulators.event_files import StoredEvents

OWN = "XWGTUP"
"""What an event's own weight is called, beside those of the reweighting."""

_LONGEST, _LINES = 1_000_000, 100_000
_WEIGHT = re.compile(r"""<wgt\b[^>]*?\bid\s*=\s*(["'])(.*?)\1[^>]*>([^<]*)</wgt\s*>""")
_LISTED = re.compile(r"<weights\b[^>]*>([^<]*)</weights\s*>")
_DECLARED = re.compile(r"""<weight\b[^>]*?\bid\s*=\s*(["'])(.*?)\1""")
_COLUMNS = 13
_ROW = " ".join(["%d"] * 6 + ["%.12e"] * 7) + "\n"


class Particles:
    """The particles of one event, in the order of the file.

    Attributes:
        table: (n, 13): identity, status, two mothers, two colours, px, py, pz, E, mass (GeV), lifetime (mm), spin.
    """

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @property
    def id(self) -> np.ndarray:
        """What each particle is, by the numbers of the Particle Data Group, (n,)."""
        return self.table[:, 0].astype(int)

    @property
    def status(self) -> np.ndarray:
        """-1 incoming, 1 outgoing, 2 intermediate, (n,)."""
        return self.table[:, 1].astype(int)

    @property
    def momentum(self) -> np.ndarray:
        """px, py, pz and E in GeV, (n, 4)."""
        return self.table[:, 6:10]

    def outgoing(self, *identities: int) -> np.ndarray:
        """Momenta (k, 4) of the outgoing particles of these identities."""
        return self.table[(self.table[:, 1] == 1) & np.isin(self.table[:, 0], identities), 6:10]


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
    reader = _Reader(Path(path))
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
                raise InputError(f"{path}: event {len(own)} has no weight '{name}'; {nearest(name, found)}")
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


class _Reader:
    """One pass through a file: first its head, then its events."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cross_section: tuple[float, float] | None = None
        self._declared: list[str] = []
        self._line = 0

    def events(self) -> Iterator[tuple[Particles, dict[str, float]]]:
        """Yield the particles and the weights, by id, of each event."""
        try:
            with open(self.path, "rb") as raw:
                zipped = raw.read(2) == b"\x1f\x8b"
            opened = gzip.open if zipped else open
            with opened(self.path, "rt", encoding="utf-8", errors="replace") as file:
                yield from self._walk(self._lines(file))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{self.path} is cut off or damaged after line {self._line} ({error}).") from None

    def _lines(self, file: TextIO) -> Iterator[str]:
        while line := file.readline(_LONGEST):
            self._line += 1
            if len(line) == _LONGEST:
                raise InputError(f"{self.path}, line {self._line} is longer than {_LONGEST}: no event file.")
            yield line

    def _walk(self, lines: Iterator[str]) -> Iterator[tuple[Particles, dict[str, float]]]:
        first = next(lines, "")
        while first and not first.strip():
            first = next(lines, "")
        if not re.match(r"\s*(<\?xml|<!--|<LesHouchesEvents)", first):
            raise InputError(f"{self.path} begins with {first[:40]!r}, expected <LesHouchesEvents.")
        hidden = False
        for line in lines:
            tag = line.lstrip()
            hidden = (hidden or "<!--" in tag) and "-->" not in tag
            if "<!ENTITY" in tag or "<!DOCTYPE" in tag:
                raise InputError(
                    f"{self.path}, line {self._line} declares entities, which event files have no use for."
                )
            if hidden:
                continue
            if tag.startswith(("<init>", "<init ")):
                self._read_init(self._block(lines, "</init"))
            elif tag.startswith(("<event>", "<event ")):
                yield self._read_event(self._block(lines, "</event"))
            elif tag.startswith("</LesHouchesEvents"):
                return
            elif "<weight" in tag:
                self._declared += [found[1] for found in _DECLARED.findall(tag)]
        raise InputError(f"{self.path} is cut off after line {self._line}: no </LesHouchesEvents>.")

    def _block(self, lines: Iterator[str], end: str) -> str:
        kept: list[str] = []
        for line in lines:
            if line.lstrip().startswith(end):
                return "".join(kept)
            kept.append(line)
            if len(kept) > _LINES:
                break
        raise InputError(f"{self.path} is cut off after line {self._line}: no {end}>.")

    def _numbers(self, text: str, what: str) -> np.ndarray:
        """Numbers in the text before the first tag, without comments; Fortran's exponents too."""
        text = text.partition("<")[0]
        if "#" in text:
            text = "\n".join(line.partition("#")[0] for line in text.splitlines())
        try:
            return np.array(text.split(), dtype=float)
        except ValueError:
            try:
                return np.array(re.sub(r"(?<=[\d.])[dD](?=[+-]?\d)", "e", text).split(), dtype=float)
            except ValueError as error:
                raise InputError(f"{self.path}, before line {self._line}: {what} is not numbers ({error}).") from None

    def _read_init(self, text: str) -> None:
        numbers = self._numbers(text, "the init block")
        count = int(numbers[9]) if len(numbers) > 9 else 0
        rows = numbers[10 : 10 + 4 * count]
        if not count or len(rows) < 4 * count:
            raise InputError(f"{self.path}: the init block has {len(numbers)} numbers, expected 10 and 4 a process.")
        self.cross_section = float(rows[::4].sum()), float(np.sqrt((rows[1::4] ** 2).sum()))
        self._declared += [found[1] for found in _DECLARED.findall(text)]

    def _read_event(self, text: str) -> tuple[Particles, dict[str, float]]:
        numbers = self._numbers(text, "an event")
        count = int(numbers[0]) if len(numbers) else 0
        if len(numbers) < 6 or len(numbers) != 6 + _COLUMNS * count:
            raise InputError(
                f"{self.path}, before line {self._line}: an event of {count} particles has {len(numbers)} numbers, "
                f"expected {6 + _COLUMNS * count}."
            )
        weights = {name: self._weight(value) for _, name, value in _WEIGHT.findall(text)}
        if listed := _LISTED.search(text):
            values = listed[1].split()
            if len(values) != len(self._declared):
                raise InputError(
                    f"{self.path}, before line {self._line}: {len(values)} <weights>, but the head declares "
                    f"{len(self._declared)}."
                )
            weights |= {name: self._weight(value) for name, value in zip(self._declared, values, strict=True)}
        weights[OWN] = float(numbers[2])
        return Particles(numbers[6:].reshape(count, _COLUMNS)), weights

    def _weight(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            found = self._numbers(text, "a weight")
        if len(found) != 1:
            raise InputError(f"{self.path}, before line {self._line}: a weight is {text!r}, expected a number.")
        return float(found[0])


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
