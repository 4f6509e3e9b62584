"""What can go wrong, by name. Every message states the argument, what came, what was expected, and the cure."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class SbiError(Exception):
    """Anything that sbi-core raises on purpose."""


class InputError(SbiError, ValueError):
    """An argument cannot be used: wrong shape, type, size or value."""


class MissingGold(SbiError):
    """Something was asked for that needs gold (a joint ratio or a joint score) which the data do not have."""


class GoldError(SbiError):
    """The gold contradicts the simulations (see `check_gold`)."""


class StoreError(SbiError):
    """A store cannot be read or does not belong to the campaign that asks for it."""


class TrainingError(SbiError):
    """Training cannot start or broke down.

    `fit` holds the record and the best weights until then (`None` if it did not start).
    """

    fit: Any = None


class SimulatorError(SbiError):
    """The simulator broke its contract.

    `simulations` holds the rows that were complete before, a `Store` if they are in one (`None` if there are none).
    """

    simulations: Any = None


class SbiWarning(UserWarning):
    """Something that a careful reader of the result should know; results carry the same text as a flag."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return a half-sentence that helps with a misspelt name.

    >>> nearest("alic", ["alice", "carl"])
    "did you mean 'alice'? Known: alice, carl."
    """
    known = sorted(options)
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    guess = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{guess}Known: {', '.join(known)}."
