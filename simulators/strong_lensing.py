"""Strong lensing of a galaxy by a halo full of subhalos: what is the law of their masses?"""

import math
from typing import Any

import torch
from torch import Tensor

from sbi_core.errors import InputError, MissingGold
from sbi_core.parameters import Parameter
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator
from sbi_core.simulators.lens_cosmology import Host
from sbi_core.simulators.lens_deflection import deflectors, direct_deflection, host_deflection
from sbi_core.simulators.lens_images import Camera
from sbi_core.simulators.subhalos import MassFunction, Subhalos, draw_log_mass

SLOWEST = 50.0
"""Hosts with a smaller velocity dispersion in km/s are drawn anew: 2 in 10,000, with rings below .1 arcsec."""

_TOP = 0.01  # mass of the heaviest subhalo over that of the host
_IMAGES = 16  # images made together
_PRESETS: dict[str, dict[str, Any]] = {
    "full": {"m_min": 1e7, "n_pixels": 64, "pixel_size": 0.1, "oversampling": 1, "sigma_v": None, "z_l": None},
    "mini": {"m_min": 1e9, "n_pixels": 32, "pixel_size": 0.2, "oversampling": 2, "sigma_v": 225.0, "z_l": 10**-0.25},
}


class StrongLensing(Simulator):
    """A distant galaxy seen through a halo; its subhalos perturb the arcs. x is an image in counts.

    theta = (f_sub, beta): the share of the halo's mass that is in subhalos, and the slope of their number, dn / d ln m
    ~ m^beta. z (6,) = (n, S, sigma_v, z_l, source x, source y), n the number of subhalos and S the sum of ln m.

    Args:
        preset: "full", or "mini".

    Example:
        >>> StrongLensing("mini").x_shape
        (32, 32)
    """

    parameters = (
        Parameter("f_sub", 0.001, 0.2, latex=r"f_\mathrm{sub}"),
        Parameter("beta", -1.5, -0.5, latex=r"\beta"),
    )
    rows_per_seed = 100

    def __init__(self, preset: str = "full", *, conventions: str = "physics", **options: Any) -> None:
        chosen = {**_PRESETS[preset], **options}
        self.preset = preset
        self.conventions = conventions
        self.m_min = float(chosen["m_min"])
        self.m_calibration = float(chosen.get("m_calibration", self.m_min))
        self.n_pixels, self.pixel_size = chosen["n_pixels"], chosen["pixel_size"]
        self.oversampling = chosen["oversampling"]
        self.sigma_v, self.z_l = chosen["sigma_v"], chosen["z_l"]
        self.x_shape = (self.n_pixels, self.n_pixels)
        self._published = conventions == "paper2019"
        self._masses = MassFunction(self.m_min, self.m_calibration)
        self._camera = Camera(self.n_pixels, self.pixel_size, self.oversampling, self._published)

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw images x (M, pixels, pixels), float32, and z (M, 6) at theta (M, 2)."""
        host = self.draw_hosts(len(theta), generator)
        subhalos = self.draw_subhalos(theta, host, generator)
        images = [self._camera.expose(light, generator) for light in self._light(host, subhalos)]
        sums = subhalos.totals(subhalos.mass.log(), len(host))
        z = torch.cat([subhalos.counts(len(host))[:, None], sums[:, None], host.columns], 1)
        return torch.cat(images), z

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """n ln lambda - lambda + (beta - 1) S - n ln J_0 (M,) at theta (M, 2), z (M, 6); x is not looked at."""
        if z is None:
            raise MissingGold(f"simulator '{self.name}': the simulations were stored without z.")
        host = Host(*z[:, 2:6].unbind(-1))
        return self._masses.log_probability(theta, z[:, 0], z[:, 1], *self._limits(host))

    def draw_hosts(self, n: int, generator: torch.Generator) -> Host:
        """Draw n lens galaxies and the places of their sources, (n,)."""
        sigma_v = self._draw_above(n, 225.0, 50.0, -SLOWEST, -1, generator, self.sigma_v)
        log_z = self._draw_above(n, -0.25, 0.25, 0.0, 1, generator, None if self.z_l is None else math.log10(self.z_l))
        offset = 0.2 * torch.randn(2, n, generator=generator, dtype=torch.float64)
        return Host(sigma_v, 10**log_z, offset[0], offset[1])

    @staticmethod
    def _draw_above(
        n: int, mean: float, width: float, limit: float, sign: int, generator: torch.Generator, fixed: float | None
    ) -> Tensor:
        if fixed is not None:
            return torch.full((n,), fixed, dtype=torch.float64)
        values = torch.full((n,), math.inf * sign, dtype=torch.float64)
        while bool((wrong := sign * values > limit).any()):
            values[wrong] = mean + width * torch.randn(int(wrong.sum()), generator=generator, dtype=torch.float64)
        return values

    def draw_subhalos(self, theta: Tensor, host: Host, generator: torch.Generator) -> Subhalos:
        """Draw the subhalos of M lenses at theta (M, 2)."""
        region, top = self._limits(host)
        n = torch.poisson(self._masses.log_expected(theta, region, top).exp(), generator=generator)
        lens = torch.arange(len(n)).repeat_interleave(n.to(torch.int64))
        unit = torch.rand(3, len(lens), generator=generator, dtype=torch.float64)
        low = torch.full_like(top, math.log(self.m_min))[lens]
        mass = draw_log_mass(unit[0], theta[lens, 1], low, top[lens]).exp()
        radius, turn = host.region[lens] * unit[1].sqrt(), 2 * math.pi * unit[2]
        return Subhalos(lens, mass, radius * turn.cos(), radius * turn.sin())

    def expected_image(self, host: Host, subhalos: Subhalos) -> Tensor:
        """Expected counts (M, pixels, pixels), float32, of hosts (M,) with these subhalos."""
        return torch.cat([self._camera.expected(light) for light in self._light(host, subhalos)])

    def _limits(self, host: Host) -> tuple[Tensor, Tensor]:
        """Logarithms (M,) of the mass in the region and of that of the heaviest subhalo."""
        return host.region_mass(as_published=self._published).log(), (_TOP * host.mass).log()

    def _light(self, host: Host, subhalos: Subhalos) -> Any:
        """Yield the light at the points of some images after the other, (B, P, P)."""
        axis = self._camera.axis.to(torch.float32)
        for first in range(0, len(host), _IMAGES):
            some = host[first : first + _IMAGES]
            ends = torch.searchsorted(subhalos.lens, torch.tensor([first, first + len(some)]))
            these = subhalos[slice(*ends.tolist())]
            these = Subhalos(these.lens - first, these.mass, these.x, these.y)
            strength, scale = deflectors(some, these, as_published=self._published)
            bent = direct_deflection(axis, len(some), these, strength, scale)
            bent += host_deflection(axis, some.einstein_radius.to(torch.float32))
            x = axis - bent[:, 0] - some.source_x[:, None, None]
            y = axis[:, None] - bent[:, 1] - some.source_y[:, None, None]
            yield self._camera.light(x.to(torch.float32), y.to(torch.float32))

    def draw(self, axes: Any, simulations: Simulations) -> None:
        """Draw a few images."""
        axes.imshow(simulations.x[0].log().numpy())
