"""Which lenses there are: presets, and hosts drawn or fixed."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.errors import InputError, nearest
from sbi_core.simulators.lens_cosmology import Host

SIGMA_V, LOG_Z, OFFSET = (225.0, 50.0), (-0.25, 0.25), 0.2
"""Mean and standard deviation in km/s; the same of log10 z_l; standard deviation in arcsec along each axis."""

SLOWEST = 50.0
"""Hosts with a smaller velocity dispersion in km/s, 2 in 10,000, are drawn anew: their rings measure .1 arcsec."""

TOP = 0.01
"""Mass of the heaviest subhalo over that of its host."""

_NODES, _REACH = 64, 7.0  # of an average over hosts along each axis; standard deviations that count
_POINTS = 512  # of light along each side of an image
_FIXED = {"sigma_v": SIGMA_V[0], "z_l": 10 ** LOG_Z[0]}
_PRESETS: dict[str, dict[str, Any]] = {
    "full": {"m_min": 1e7, "n_pixels": 64, "pixel_size": 0.1, "oversampling": 1},
    "mini": {"m_min": 1e9, "n_pixels": 32, "pixel_size": 0.2, "oversampling": 2, **_FIXED},
    "catalogue": {"m_min": 1e8, "m_half": 3e8, "width": 0.3, "error": 0.15, **_FIXED},
}
_RANGES = {
    "m_min": (1.0, 1e9, "solar masses"),
    "m_calibration": (1.0, 1e9, "solar masses"),
    "n_pixels": (8, 512, "pixels along each side"),
    "pixel_size": (0.01, 0.5, "arcsec"),
    "oversampling": (1, 16, "points along each side of a pixel"),
    "sigma_v": (SLOWEST, 500.0, "km/s"),
    "z_l": (0.01, 1.0, "(the source is at 1.5)"),
    "m_half": (1.0, 1e11, "solar masses"),
    "width": (0.01, 10.0, "dex"),
    "error": (0.01, 2.0, "dex"),
}


def choose(
    preset: str,
    conventions: str,
    given: Mapping[str, Any],
    image: Mapping[str, Any],
    catalogue: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a preset with what was given instead of `None`.

    Args:
        preset: its name.
        conventions: "physics" or "paper2019".
        given: options of all presets.
        image: options of those that make images.
        catalogue: options of the one that does not.

    Raises:
        InputError: for names that do not exist, options of the other kind of preset, and values out of range.
    """
    if preset not in _PRESETS:
        raise InputError(f"StrongLensing: there is no preset {preset!r}; {nearest(str(preset), _PRESETS)}")
    if conventions not in ("physics", "paper2019"):
        known = nearest(str(conventions), ("physics", "paper2019"))
        raise InputError(f"StrongLensing: there are no conventions {conventions!r}; {known}")
    own, other = (catalogue, image) if preset == "catalogue" else (image, catalogue)
    for name, value in other.items():
        if value is not None:
            raise InputError(f"StrongLensing: preset '{preset}' has no {name} (got {value}). Leave it out.")
    set_here = {name: value for name, value in {**given, **own}.items() if value is not None}
    chosen = {"sigma_v": None, "z_l": None, "offset": None, **_PRESETS[preset], **set_here}
    if conventions == "paper2019" and (preset == "catalogue" or chosen.get("oversampling", 1) > 1):
        what = "catalogues" if preset == "catalogue" else f"oversampling = {chosen['oversampling']}"
        raise InputError(f"StrongLensing: conventions 'paper2019' know no {what}. Take 'physics', or oversampling=1.")
    for name, (low, high, unit) in _RANGES.items():
        value = chosen.get(name)
        if value is not None and not (isinstance(value, int | float) and low <= value <= high):
            raise InputError(f"StrongLensing: {name} = {value}, expected {low:g} to {high:g} {unit}.")
        whole = isinstance(low, int)
        if value is not None and whole and value != int(value):
            raise InputError(f"StrongLensing: {name} = {value}, expected a whole number.")
        chosen |= {} if value is None else {name: int(value) if whole else float(value)}
    faint = 10 ** (_REACH * chosen.get("error", 0.0))
    if chosen["m_min"] < faint:
        raise InputError(
            f"StrongLensing: m_min = {chosen['m_min']:g} with error = {chosen['error']:g} dex, expected at least "
            f"{faint:.3g}: measured log10 masses must stay above 0, which marks the end of a catalogue."
        )
    lowest = min(chosen["m_min"], _PRESETS["full"]["m_min"]) if preset == "full" else chosen["m_min"]
    chosen.setdefault("m_calibration", lowest)
    if chosen["offset"] is not None:
        chosen["offset"] = tuple(map(float, chosen["offset"]))
        if len(chosen["offset"]) != 2:
            raise InputError(f"StrongLensing: offset = {chosen['offset']}, expected two coordinates in arcsec.")
    points = chosen.get("n_pixels", 2) * chosen.get("oversampling", 1)
    if points % 2 or points > _POINTS:
        raise InputError(
            f"StrongLensing: n_pixels = {chosen['n_pixels']} times oversampling = {chosen['oversampling']} is "
            f"{points}, expected an even number, so that no point lies on the centre of the lens, up to {_POINTS}."
        )
    return chosen


def draw_hosts(
    n: int, generator: torch.Generator, sigma_v: float | None, z_l: float | None, offset: tuple[float, float] | None
) -> Host:
    """Draw n hosts, (n,) each number, of which any may be fixed."""
    speed = _normal(n, *SIGMA_V, lambda value: value >= SLOWEST, generator)
    log_z = _normal(n, *LOG_Z, lambda value: value <= 0, generator)
    places = OFFSET * torch.randn(2, n, generator=generator, dtype=torch.float64)
    if sigma_v is not None:
        speed = torch.full_like(speed, sigma_v)
    redshift = 10**log_z if z_l is None else torch.full_like(log_z, z_l)
    if offset is not None:
        places = torch.tensor(offset, dtype=torch.float64)[:, None].expand(2, n)
    return Host(speed, redshift, places[0], places[1])


def host_grid(sigma_v: float | None, z_l: float | None) -> tuple[Host, Tensor]:
    """Hosts (Q,) and weights (Q,) whose weighted mean is that over all hosts, of what does not depend on the source."""
    speed, share = _rule(*SIGMA_V, SLOWEST, math.inf, sigma_v)
    log_z, chance = _rule(*LOG_Z, -math.inf, 0.0, None if z_l is None else math.log10(z_l))
    both = torch.cartesian_prod(speed, 10**log_z)
    zero = torch.zeros(len(both), dtype=torch.float64)
    return Host(both[:, 0], both[:, 1], zero, zero), (share[:, None] * chance).flatten()


def _normal(n: int, mean: float, width: float, fits: Any, generator: torch.Generator) -> Tensor:
    """Draw n normal numbers that fit (n,)."""
    values = torch.full((n,), math.nan, dtype=torch.float64)
    while len(missing := (~fits(values)).nonzero()[:, 0]):
        values[missing] = mean + width * torch.randn(len(missing), generator=generator, dtype=torch.float64)
    return values


def _rule(mean: float, width: float, low: float, high: float, fixed: float | None) -> tuple[Tensor, Tensor]:
    """Nodes and weights (Q,) for the mean over a truncated normal distribution."""
    if fixed is not None:
        return torch.tensor([fixed], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(_NODES))
    low, high = max(low, mean - _REACH * width), min(high, mean + _REACH * width)
    at = (high + low) / 2 + (high - low) / 2 * nodes
    weights = weights * torch.exp(-(((at - mean) / width) ** 2) / 2)
    return at, weights / weights.sum()
