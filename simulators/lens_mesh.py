"""The deflection of many light subhalos at once: deposit on a mesh, convolution by FFT.

The deflection of a halo of strength B and scale radius theta_s is B times a kernel that depends on theta_s alone,
whatever its mass and redshift, and smoothly on ln theta_s. So kernels are tabulated at K Chebyshev nodes in ln theta_s,
for the offsets between the points of the image and the nodes of the mesh, which lie on one lattice. A halo is spread
over the four times four mesh nodes around it, with the weights of cubic interpolation, and over the K kernels, with
those of the polynomial through all nodes. What is left is the error of interpolation near the halo's centre, where the
kernel bends: heavy halos have to be summed directly.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from sbi_core.simulators.lens_cosmology import projected

_TOGETHER = 4096  # halos spread at once


@dataclass(frozen=True)
class Mesh:
    """A square mesh around an image, and the kernels between the two.

    Args:
        points: of the image along each side, P.
        step: their distance in arcsec.
        size: length N of the Fourier transforms, even; the mesh has N - P nodes along each side.
        low: least scale radius in arcsec.
        high: largest scale radius in arcsec.
        kernels: number of tabulated scale radii, K.
    """

    points: int
    step: float
    size: int
    low: float
    high: float
    kernels: int

    @property
    def nodes(self) -> int:
        """Mesh nodes along each side, L."""
        return self.size - self.points

    @property
    def reach(self) -> float:
        """Largest coordinate in arcsec that the mesh can hold."""
        return ((self.nodes - 1) / 2 - 1.001) * self.step

    @property
    def radii(self) -> Tensor:
        """Logarithms of the tabulated scale radii, (K,)."""
        angle = math.pi * (torch.arange(self.kernels, dtype=torch.float64) + 0.5) / self.kernels
        return math.log(self.high * self.low) / 2 + math.log(self.high / self.low) / 2 * torch.cos(angle)

    def deflection(self, lenses: int, lens: Tensor, x: Tensor, y: Tensor, strength: Tensor, scale: Tensor) -> Tensor:
        """Deflection (lenses, 2, P, P) in arcsec, float32, of halos in `reach`; all arguments (S,), sorted by lens."""
        together = max(1, 4 * 128**2 // self.size**2)  # what fits the cache
        ends = torch.searchsorted(lens, torch.arange(0, lenses + together, together)).tolist()
        parts = []
        for first, start, end in zip(range(0, lenses, together), ends, ends[1:], strict=False):
            columns = (column[start:end] for column in (x, y, strength, scale))
            density = self.deposit(min(together, lenses - first), lens[start:end] - first, *columns)
            parts.append(self._convolve(density))
        return torch.cat(parts)

    def _convolve(self, density: Tensor) -> Tensor:
        """Deflection (B, 2, P, P) for strengths (B, K, L, L)."""
        waves = torch.fft.rfft(density, n=self.size).transpose(-1, -2).contiguous()
        waves = torch.fft.fft(waves, n=self.size)
        kernels = transforms(self)
        sums = torch.zeros(len(waves), *kernels.shape[1:], dtype=waves.dtype)
        for k, kernel in enumerate(kernels):
            sums.addcmul_(waves[:, k, None], kernel)
        kept = slice((self.nodes - self.points) // 2, (self.nodes + self.points) // 2)
        back = torch.fft.ifft(sums)[..., kept].transpose(-1, -2)
        return torch.fft.irfft(back, n=self.size)[..., kept]

    def deposit(self, lenses: int, lens: Tensor, x: Tensor, y: Tensor, strength: Tensor, scale: Tensor) -> Tensor:
        """Strengths on the mesh for each kernel, (lenses, K, L, L), float32; all other arguments (S,)."""
        density = torch.zeros(lenses * self.kernels * self.nodes**2)
        columns = (column.split(_TOGETHER) for column in (lens, x, y, strength, scale))
        for some in zip(*columns, strict=True):
            index, share = self._shares(*some)
            density.scatter_add_(0, index.flatten(), share.to(torch.float32).flatten())
        return density.reshape(lenses, self.kernels, self.nodes, self.nodes)

    def _shares(self, lens: Tensor, x: Tensor, y: Tensor, strength: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the mesh halos go and with which weight, (S, K, 4, 4) each."""
        across, down = (place / self.step + (self.nodes - 1) / 2 for place in (x, y))
        column, row = across.floor(), down.floor()
        share = _cubic(down - row)[:, None, :, None] * _cubic(across - column)[:, None, None, :]
        share = share * (strength[:, None] * self._mixture(scale.log()))[..., None, None]
        four = torch.arange(-1, 3)
        cell = (row.long()[:, None] + four)[:, :, None] * self.nodes + (column.long()[:, None] + four)[:, None, :]
        plane = lens[:, None] * self.kernels + torch.arange(self.kernels)
        return plane[..., None, None] * self.nodes**2 + cell[:, None], share

    def _mixture(self, log_scale: Tensor) -> Tensor:
        """Weights (S, K) of the kernels for halos with these logarithms of scale radii (S,)."""
        away = log_scale[:, None] - self.radii
        apart = self.radii[:, None] - self.radii + torch.eye(self.kernels)
        others = away[:, None, :].expand(-1, self.kernels, -1).clone()
        others.diagonal(dim1=1, dim2=2).fill_(1.0)
        return others.prod(-1) / apart.prod(-1)


@cache
def transforms(mesh: Mesh) -> Tensor:
    """Transforms of the kernels along x and y, (K, 2, N / 2 + 1, N), the frequencies along x first."""
    offset = torch.fft.fftfreq(mesh.size, 1 / mesh.size, dtype=torch.float64) * mesh.step
    x, y = offset[None, :], offset[:, None]
    square = (x**2 + y**2).clamp(min=1e-20)
    bend = projected(square.sqrt() / mesh.radii.exp()[:, None, None]) / square
    bend[:, mesh.size // 2], bend[:, :, mesh.size // 2] = 0.0, 0.0  # offsets that never occur; so the kernel is odd
    both = torch.stack([bend * x, bend * y], 1)
    return torch.fft.rfft2(both).transpose(-1, -2).to(torch.complex64).contiguous()


def _cubic(place: Tensor) -> Tensor:
    """Weights (S, 4) of cubic interpolation between nodes at -1, 0, 1, 2 for places (S,) from 0 to 1."""
    t = place[:, None]
    outer = [-t * (t - 1) * (t - 2) / 6, (t + 1) * t * (t - 1) / 6]
    return torch.cat([outer[0], (t + 1) * (t - 1) * (t - 2) / 2, -(t + 1) * t * (t - 2) / 2, outer[1]], 1)
