"""How much subhalos bend light: the sum of untruncated NFW deflectors over the points of an image.

A halo of mass m and scale radius theta_s (arcsec) at the centre bends light at theta by

    alpha(theta) = B g(theta / theta_s) / theta^2 * theta vector,  B = (4 G / c^2) D_ls / (D_l D_s) m / m(c),

with g and m(c) of `lens_cosmology`.
"""

import torch
from torch import Tensor

from sbi_core.simulators.lens_cosmology import ARCSEC, Host, concentration, contained, projected, scale_radius
from sbi_core.simulators.subhalos import Subhalos

_TOGETHER = 32  # subhalos whose deflections are held in memory at once


def deflectors(host: Host, subhalos: Subhalos, *, as_published: bool = False) -> tuple[Tensor, Tensor]:
    """Strength B in arcsec^2 and scale radius in arcsec of subhalos, (S,) each."""
    focus = host.focus(as_published=as_published)[subhalos.lens]
    distance = host.distance[subhalos.lens]
    mass = subhalos.mass
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
        bend = projected((square.sqrt() * inverse).clamp(min=1e-10)) / square.clamp(min=1e-20)
        bend = bend * strength[some].to(kind)[:, None, None]
        total.index_add_(0, subhalos.lens[some], torch.stack([bend * dx, bend * dy], 1))
    return total


def host_deflection(axis: Tensor, radius: Tensor) -> Tensor:
    """Deflection (B, 2, P, P) of singular isothermal spheres with Einstein radii (B,), centred, at points of an axis."""
    x, y = axis[None, :], axis[:, None]
    away = torch.hypot(x, y).clamp(min=1e-10)
    unit = torch.stack([x / away, y / away])
    return radius[:, None, None, None] * unit
