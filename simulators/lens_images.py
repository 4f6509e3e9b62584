"""What a camera sees of a lensed galaxy: light traced back to the source, point spread, counts.

The source is an exponential disk seen face on, the light per arcsec^2 at distance r from its centre

    I(r) = F b^2 / (2 pi theta_e^2) exp(-b r / theta_e),  b = 1.67835,

half of it within theta_e, F the counts per second of magnitude 23 for a zero point of 25.5; the sky adds magnitude 22.5
per arcsec^2. Lensing conserves I: a point theta of the image shows I at theta - alpha(theta).

The point spread is that of a Gaussian with the given full width at half maximum, on the grid of points the discrete
one of exactly its variance, T(n) = exp(-t) I_n(t), t the variance in squared steps (Lindeberg, PAMI 12 (1990) 234);
beyond the frame the image goes on as at its edge.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.special import ive
from torch import Tensor

ZERO_POINT, SOURCE_MAGNITUDE, SKY_MAGNITUDE = 25.5, 23.0, 22.5
EXPOSURE, FWHM, HALF_LIGHT = 1610.0, 0.18, 0.2
"""Seconds; arcsec; arcsec."""

_B = 1.6783469900166605


def counts_per_second(magnitude: float) -> float:
    """Counts per second of a magnitude."""
    return float(10 ** (-0.4 * (magnitude - ZERO_POINT)))


SOURCE_COUNTS = EXPOSURE * counts_per_second(SOURCE_MAGNITUDE)
SKY_COUNTS = EXPOSURE * counts_per_second(SKY_MAGNITUDE)
"""Of the unlensed source; of a square arcsec of sky."""


@dataclass(frozen=True)
class Camera:
    """A square frame of pixels, centred on the lens.

    Args:
        pixels: along each side.
        pixel_size: in arcsec.
        oversampling: points along each side of a pixel at which the light is taken; their mean is the pixel's.
        as_published: points from edge to edge of the frame, a point spread that is too narrow and applied after the
            noise, nothing beyond the frame, and rounded constants (see `StrongLensing`).
    """

    pixels: int
    pixel_size: float
    oversampling: int = 1
    as_published: bool = False

    @property
    def points(self) -> int:
        """Points P along each side at which the light is taken."""
        return self.pixels * self.oversampling

    @property
    def step(self) -> float:
        """Distance of neighbouring points in arcsec."""
        return self.pixels * self.pixel_size / (self.points - self.as_published)

    @cached_property
    def spread(self) -> Tensor:
        """The matrix (P, P) that spreads light along either side; each row holds what a point collects."""
        step = self.pixel_size / self.oversampling
        sigma = FWHM / math.sqrt(8 * math.log(2)) / step
        reach = math.ceil(8 * sigma) + 2
        if self.as_published:
            sigma = FWHM / 2**1.5 * math.sqrt(math.log(2)) / step
            reach = math.ceil(4 * sigma - 0.5)  # 8 sigma wide, an odd number of pixels
        offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
        weight = torch.from_numpy(ive(offset.abs().numpy(), sigma**2))
        if self.as_published:
            weight = torch.exp(-((offset / sigma) ** 2) / 2)
        matrix = torch.zeros(self.points, self.points, dtype=torch.float64)
        for shift, share in zip(offset.int().tolist(), (weight / weight.sum()).tolist(), strict=True):
            for row in range(self.points):
                column = row + shift
                if not self.as_published or 0 <= column < self.points:
                    matrix[row, min(max(column, 0), self.points - 1)] += share
        return matrix.to(torch.float32)

    def light(self, x: Tensor, y: Tensor) -> Tensor:
        """Expected counts (B, P, P) before the point spread of points that show the source at x, y (B, P, P) from it.

        Counts are those of a pixel whose light is everywhere that of the point.
        """
        b, norm = _B, 2 * math.pi / _B**2
        if self.as_published:
            b = 2 - 1 / 3 + 4 / 405 + 46 / 25515 + 131 / 1148175 - 2194697 / 30690717750
            norm = 3.8 * math.pi / math.exp(b)
        area = self.pixel_size**2
        peak = SOURCE_COUNTS * area / (norm * HALF_LIGHT**2)
        radius = torch.hypot(x, y)
        return radius.mul_(-b / HALF_LIGHT).exp_().mul_(peak).add_(SKY_COUNTS * area)

    def blur(self, image: Tensor) -> Tensor:
        """Spread an image (B, P, P) of points."""
        return self.spread @ image @ self.spread.T

    def bin(self, image: Tensor) -> Tensor:
        """Mean over the points of each pixel, of an image (B, P, P), as (B, pixels, pixels)."""
        k, n = self.oversampling, self.pixels
        return image if k == 1 else image.reshape(-1, n, k, n, k).mean((2, 4))

    def expected(self, light: Tensor) -> Tensor:
        """Expected counts (B, pixels, pixels) for the light of points (B, P, P)."""
        return self.bin(self.blur(light))

    def expose(self, light: Tensor, generator: torch.Generator) -> Tensor:
        """Draw counts (B, pixels, pixels) for the light of points (B, P, P)."""
        if self.as_published:
            return self.blur(torch.poisson(light, generator=generator))
        return torch.poisson(self.expected(light), generator=generator)
