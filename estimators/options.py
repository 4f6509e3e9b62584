"""What the options of `fit` may be."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sbi_core.errors import TrainingError

_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "batch_size": (lambda value: value is None or value >= 1, "at least 1"),
    "validation_fraction": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "learning_rate": (lambda value: value is None or 0 < value < math.inf, "above 0"),
    "weight_decay": (lambda value: value is None or 0 <= value < math.inf, "at least 0"),
    "max_epochs": (lambda value: value is None or value >= 1, "at least 1"),
    "patience": (lambda value: value is None or value >= 1, "at least 1"),
    "contrasts": (lambda value: value is None or value >= 1, "at least 1"),
    "memory": (lambda value: value > 0, "above 0 bytes"),
}


def check_options(given: Mapping[str, Any]) -> None:
    """Raise `TrainingError` for a value that an option of `fit` cannot have."""
    for name, (good, expected) in _OPTIONS.items():
        if not good(given[name]):
            raise TrainingError(f"{name} = {given[name]}, expected {expected}.")


def device_of(asked: str | torch.device) -> torch.device:
    """The device of that name; "auto" is a CUDA device if there is one.

    Raises:
        TrainingError: if it cannot be used here.
    """
    if str(asked) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(asked)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device = {asked} cannot be used here: {str(error).splitlines()[0]} Use 'cpu'.") from None
    return place
