"""Pictures of lenses and of catalogues of subhalos."""

from typing import Any

import torch

from sbi_core.simulations import Simulations


def draw_images(axes: Any, simulations: Simulations) -> None:
    """Draw images x (N, P, P)."""


def draw_catalogues(axes: Any, simulations: Simulations) -> None:
    """Draw catalogues x (N, n_max)."""
