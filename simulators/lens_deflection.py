"""How much a host and its subhalos bend light at the points of an image.

A subhalo of mass m and scale radius theta_s (arcsec) bends light at a distance theta from it by

    alpha(theta) = B g(theta / theta_s) / theta^2 * theta vector,  B = (4 G / c^2) D_ls / (D_l D_s) m / m(c),

with g and m(c) of `lens_cosmology`: an NFW deflector that is not truncated. Light subhalos go through a mesh, all those
of an image together, heavy ones and those that no mesh holds are summed directly. The host is a singular isothermal
sphere, alpha = theta_E towards its centre.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbi_core.simulators.lens_cosmology import (
    ARCSEC,
    Host,
    angular_diameter_distance,
    concentration,
    contained,
    projected,
    scale_radius,
)
from sbi_core.simulators.lens_mesh import Mesh
from sbi_core.simulators.subhalos import Subhalos

HEAVY = 0.03
"""Subhalos with B / theta_s above this many arcsec are summed directly; the largest deflection is .3 of it."""

_FINEST = 0.1
"""Step in arcsec that the nodes of a mesh must not exceed, or light subhalos would not be resolved."""

_LARGEST = 512  # points of a mesh along each side; finer ones cost more than a direct sum
_WIDEST = 2.0  # arcsec; largest scale radius that the meshes know
_KERNELS = 7
_FEW = 4  # light subhalos in an image that are not worth a mesh
_TOGETHER = 8  # subhalos summed directly at once: more do not fit the cache


def deflectors(host: Host, subhalos: Subhalos, *, as_published: bool = False) -> tuple[Tensor, Tensor]:
    """Strength B in arcsec^2 and scale radius in arcsec of subhalos, (S,) each."""
    focus = host.focus(as_published=as_published)[subhalos.lens]
    distance, mass = host.distance[subhalos.lens], subhalos.mass
    return focus * mass / contained(concentration(mass)), scale_radius(mass) / distance / ARCSEC


def direct_deflection(axis: Tensor, lenses: int, subhalos: Subhalos, strength: Tensor, scale: Tensor) -> Tensor:
    """Deflection (lenses, 2, P, P) in arcsec at the points of an axis (P,), halo by halo, in the type of the axis."""
    kind, points = axis.dtype, len(axis)
    total = torch.zeros(lenses, 2, points, points, dtype=kind)
    for k in range(0, len(subhalos), _TOGETHER):
        some = slice(k, k + _TOGETHER)
        dx = (axis - subhalos.x[some, None]).to(kind)[:, None, :]
        dy = (axis - subhalos.y[some, None]).to(kind)[:, :, None]
        square = dx**2 + dy**2
        inverse = (1 / scale[some]).to(kind)[:, None, None]
        bend = projected((square.sqrt() * inverse).clamp(min=1e-8)) / square.clamp(min=1e-20)
        bend = bend * strength[some].to(kind)[:, None, None]
        total.index_add_(0, subhalos.lens[some], torch.stack([bend * dx, bend * dy], 1))
    return total


@dataclass(frozen=True)
class Bender:
    """Everything that bends light on its way to the P times P points of an image.

    Args:
        points: along each side, P.
        step: their distance in arcsec.
        lightest: least mass of a subhalo that the meshes know.
        as_published: whether to take D_s - D_l for D_ls where subhalos bend.
    """

    points: int
    step: float
    lightest: float
    as_published: bool = False

    @cached_property
    def axis(self) -> Tensor:
        """Coordinates of the points along either side in arcsec, (P,), float64."""
        return (torch.arange(self.points, dtype=torch.float64) - (self.points - 1) / 2) * self.step

    @property
    def between(self) -> int:
        """Steps of a mesh in a step of the image: odd, so that all points of the image are points of the mesh."""
        return 2 * math.ceil((self.step / _FINEST * (1 - 1e-9) - 1) / 2) + 1

    @cached_property
    def meshes(self) -> tuple[Mesh, ...]:
        """Meshes that reach ever farther; none for images so wide and coarse that a mesh does not pay."""
        farthest = angular_diameter_distance(torch.tensor(1.0))
        least = float(0.99 * scale_radius(torch.tensor(self.lightest, dtype=torch.float64)) / farthest / ARCSEC)
        points, step = self.points * self.between, self.step / self.between
        sizes = (k * points for k in (2, 3, 4) if points <= _LARGEST)
        return tuple(Mesh(points, step, size, least, _WIDEST, _KERNELS) for size in sizes)

    def host(self, host: Host) -> Tensor:
        """Deflection (M, 2, P, P) by hosts (M,) in arcsec, float32."""
        x, y = self.axis[None, :].to(torch.float32), self.axis[:, None].to(torch.float32)
        away = torch.hypot(x, y).clamp(min=1e-6)
        return host.einstein_radius.to(torch.float32)[:, None, None, None] * torch.stack([x / away, y / away])

    def subhalos(self, host: Host, subhalos: Subhalos) -> Tensor:
        """Deflection (M, 2, P, P) by the subhalos (S,) of hosts (M,) in arcsec, float32."""
        strength, scale = deflectors(host, subhalos, as_published=self.as_published)
        far = torch.maximum(subhalos.x.abs(), subhalos.y.abs())
        light = torch.zeros(len(subhalos), dtype=torch.bool)
        for mesh in self.meshes[-1:]:
            light = (far < mesh.reach) & (strength < HEAVY * scale) & (scale > mesh.low) & (scale < mesh.high)
        light &= torch.bincount(subhalos.lens[light], minlength=len(host))[subhalos.lens] > _FEW
        rest = ~light
        bent = direct_deflection(self.axis.to(torch.float32), len(host), subhalos[rest], strength[rest], scale[rest])
        farthest = torch.zeros(len(host), dtype=torch.float64)
        farthest = farthest.scatter_reduce(0, subhalos.lens[light], far[light], "amax")
        reached = torch.zeros(len(host), dtype=torch.bool)
        reached[subhalos.lens[light].unique_consecutive()] = True
        kept = slice(self.between // 2, None, self.between)
        for mesh in self.meshes:
            rows = reached & (farthest < mesh.reach)
            reached &= ~rows
            these = light & rows[subhalos.lens]
            if bool(these.any()):
                number = torch.cumsum(rows, 0) - 1
                columns = (subhalos.x, subhalos.y, strength, scale)
                places = (column[these] for column in columns)
                bent[rows] += mesh.deflection(int(rows.sum()), number[subhalos.lens[these]], *places)[..., kept, kept]
        return bent
