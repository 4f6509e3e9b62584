"""One pass through a Les Houches event file: its head, and event after event."""

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np

from sbi_core.errors import InputError

OWN = "XWGTUP"
"""What an event's own weight is called, beside those of the reweighting."""

_LONGEST = 1_000_000
"""Characters of a line, at most."""

_LARGEST = 4_000_000
"""Characters of an event, of the init block, and of all names in the head, at most."""

_WEIGHT = re.compile(r"<wgt\s([^<>]*)>([^<]*)</wgt\s*>")
_LISTED = re.compile(r"<weights\b[^<>]*>([^<]*)</weights\s*>")
_DECLARED = re.compile(r"<weight\s([^<>]*)>")
_ID = re.compile(r"""\bid\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_COLUMNS = 13


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


class LheReader:
    """One pass through a file, plain or gzipped: first its head, then its events.

    It is read line by line and never as XML: nothing is expanded or fetched, and headers need not be well-formed. No
    pattern looks beyond the next tag, so that the time is in proportion to the length, whatever is in the file; no more
    than an event is kept.

    Attributes:
        cross_section: of all processes in the head, and its error, in pb.

    Raises:
        InputError: where the file is cut off, or is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cross_section: tuple[float, float] | None = None
        self._declared: list[str] = []
        self._named = 0
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
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error}). Expected a Les Houches event file.") from None

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
        for line in chain([first], lines):
            tag = line.lstrip()
            begun, ended = tag.rfind("<!--"), tag.rfind("-->")
            hidden = begun > ended if begun != ended else hidden
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
                self._declare(tag)
        raise InputError(f"{self.path} is cut off after line {self._line}: no </LesHouchesEvents>.")

    def _block(self, lines: Iterator[str], end: str) -> str:
        kept: list[str] = []
        length = 0
        for line in lines:
            if line.lstrip().startswith(end):
                return "".join(kept)
            kept.append(line)
            length += len(line)
            self._check_size(length, f"before {end}>")
        raise InputError(f"{self.path} is cut off after line {self._line}: no {end}>.")

    def _check_size(self, length: int, what: str) -> None:
        if length > _LARGEST:
            raise InputError(
                f"{self.path}, line {self._line}: more than {_LARGEST} characters {what}, which no event file has."
            )

    def _declare(self, text: str) -> None:
        """Keep the names of weights that the head lists, for events that have no names."""
        self._declared += [name for tag in _DECLARED.findall(text) if (name := _name(tag)) is not None]
        self._named += len(text)
        self._check_size(self._named, "declare weights")

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
                said = str(error)[:80]
                raise InputError(f"{self.path}, before line {self._line}: {what} is not numbers ({said}).") from None

    def _read_init(self, text: str) -> None:
        numbers = self._numbers(text, "the init block")
        count = _whole(numbers[9:10])
        rows = numbers[10 : 10 + 4 * count]
        if count < 1 or len(rows) < 4 * count:
            raise InputError(f"{self.path}: the init block has {len(numbers)} numbers, expected 10 and 4 a process.")
        self.cross_section = float(rows[::4].sum()), float(np.sqrt((rows[1::4] ** 2).sum()))
        self._declare(text)

    def _read_event(self, text: str) -> tuple[Particles, dict[str, float]]:
        numbers = self._numbers(text, "an event")
        count = _whole(numbers[:1])
        expected = 6 + _COLUMNS * count if count >= 0 else f"6 and {_COLUMNS} a particle"
        if len(numbers) != expected:
            raise InputError(
                f"{self.path}, before line {self._line}: an event of {'no' if not len(numbers) else f'{numbers[0]:g}'} "
                f"particles has {len(numbers)} numbers, expected {expected}."
            )
        found = [(name, value) for tag, value in _WEIGHT.findall(text) if (name := _name(tag)) is not None]
        if listed := _LISTED.search(text):
            values = listed[1].split()
            if len(values) != len(self._declared):
                raise InputError(
                    f"{self.path}, before line {self._line}: {len(values)} <weights>, but the head declares "
                    f"{len(self._declared)}."
                )
            found += zip(self._declared, values, strict=True)
        weights: dict[str, float] = {}
        for name, value in [*found, (OWN, str(numbers[2]))]:
            each = self._weight(value)
            if not math.isfinite(each) or (name != OWN and weights.get(name, each) != each):
                other = f", and before that {weights[name]:.6g}" if name in weights else ""
                raise InputError(
                    f"{self.path}, before line {self._line}: weight '{name[:80]}' is {each:.6g}{other}, expected one "
                    "finite number an event."
                )
            weights[name] = each
        return Particles(numbers[6:].reshape(count, _COLUMNS)), weights

    def _weight(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            found = self._numbers(text, "a weight")
        if len(found) != 1:
            raise InputError(f"{self.path}, before line {self._line}: a weight is {text[:40]!r}, expected a number.")
        return float(found[0])


def _name(attributes: str) -> str | None:
    """The id among the attributes of a tag; `None` if there is none."""
    found = _ID.search(attributes)
    return (found[1] if found[2] is None else found[2]) if found else None


def _whole(number: np.ndarray) -> int:
    """The number (1,) if it counts something, else -1; none at all is 0."""
    value = float(number[0]) if len(number) else 0.0
    return int(value) if 0 <= value < _LARGEST and value.is_integer() else -1
