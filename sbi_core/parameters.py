"""Parameters and designs: what the axes of theta and of the experiment setting mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

from sbi_core.errors import InputError, nearest


@dataclass(frozen=True)
class Parameter:
    r"""One axis of theta, or of a design.

    Args:
        name: how everything refers to it; letters, digits and underscores.
        low: lower end of its range (closed), in `unit`.
        high: upper end of its range (closed), in `unit`.
        unit: for tables and axis labels.
        latex: the symbol without dollar signs, such as ``r"\theta_{13}"``.
        integer: whether only whole numbers make sense.

    Raises:
        InputError: for an unusable name or an empty range.

    >>> Parameter("mass", 0.5, 2.0, unit="GeV", latex="m").label
    '$m$ [GeV]'
    """

    name: str
    low: float
    high: float
    unit: str = ""
    latex: str = ""
    integer: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier() or len(self.name) > 100:
            raise InputError(
                f"Parameter name {self.name!r}: expected letters, digits and underscores, starting with a letter."
            )
        if isnan(self.low) or isnan(self.high) or not self.low < self.high:
            raise InputError(f"Parameter '{self.name}': low = {self.low} must be below high = {self.high}.")

    @property
    def label(self) -> str:
        """The axis label: symbol and unit."""
        symbol = f"${self.latex}$" if self.latex else self.name
        return f"{symbol} [{self.unit}]" if self.unit else symbol


def names(parameters: Sequence[Parameter]) -> list[str]:
    """Return the names of a tuple of parameters, in order."""
    return [parameter.name for parameter in parameters]


def match(wanted: Sequence[Parameter], given: Sequence[Parameter], where: str) -> list[int]:
    """Return, for each wanted parameter, its position among the given ones.

    Args:
        wanted: the order that is needed.
        given: the order that `where` has.
        where: what the given parameters belong to, for the message.

    Raises:
        InputError: if the two do not have the same names.

    >>> a, b = Parameter("a", 0, 1), Parameter("b", 0, 1)
    >>> match([a, b], [b, a], "the file")
    [1, 0]
    """
    have = names(given)
    for name in names(wanted):
        if name not in have:
            raise InputError(f"{where} has no parameter '{name}'; {nearest(name, have)}")
    if len(have) != len(wanted):
        surplus = sorted(set(have) - set(names(wanted)))
        raise InputError(f"{where} has parameters {surplus} beyond the expected {names(wanted)}.")
    return [have.index(name) for name in names(wanted)]


def positions(wanted: Sequence[str], given: Sequence[Parameter]) -> list[int]:
    """Return where the wanted names stand among the given parameters.

    Raises:
        InputError: if a name is not there, or there is none.

    >>> positions(["b"], [Parameter("a", 0, 1), Parameter("b", 0, 1)])
    [1]
    """
    have = names(given)
    if isinstance(wanted, str) or not wanted or len(set(wanted)) < len(wanted):
        raise InputError(f"expected a sequence of different parameter names, got {wanted!r}; known are {have}.")
    for name in wanted:
        if name not in have:
            raise InputError(f"there is no parameter '{name}'; {nearest(name, have)}")
    return [have.index(name) for name in wanted]
