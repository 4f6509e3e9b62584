"""Monotone rational-quadratic splines as layers of a flow, in a third to a half of the time of nflows' own.

Durkan, Bekasov, Murray & Papamakarios, arXiv:1906.04032, eqs. 4 to 8. Between the knots (x_k, y_k) and (x_k + w,
y_k + h) with slopes d and d', where s = h / w, xi = (x - x_k) / w, m = xi (1 - xi) and b = d + d' - 2 s,

    y = y_k + h (s xi^2 + d m) / (s + b m),
    dy/dx = s^2 (d' xi^2 + 2 s m + d (1 - xi)^2) / (s + b m)^2.

nflows picks out the values inside the range, and sums along the bins of one value at a time. Here all values pass, side
by side, those beyond the range as its ends (benchmarks/spline_speed.py compares the two).
"""

import math

import torch
from nflows.transforms import (
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    PiecewiseRationalQuadraticCouplingTransform,
)
from torch import Tensor
from torch.nn.functional import softplus

FLOOR = 1e-3
"""Least share of a bin in the range of a spline, and least slope."""

SLOPE_ONE = math.log(math.expm1(1 - FLOOR))
"""The u at which softplus(u) + FLOOR is 1."""


def spline(value: Tensor, parameters: Tensor, bound: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """y of value x and log dy/dx, both (*), or x of value y and log dx/dy; the identity beyond [-bound, bound].

    Args:
        value: (*).
        parameters: of K bins, (*, 3 K - 1): K widths and K heights before their softmax, and the K - 1 slopes at the
            inner knots before softplus. At both ends the slope is 1.
        bound: half the range.
        inverse: whether value is y.
    """
    bins = (parameters.shape[-1] + 1) // 3
    first = parameters.movedim(-1, 0).contiguous()
    share = torch.softmax(first[: 2 * bins].unflatten(0, (2, bins)), 1)
    sides = torch.rsub(share, 2 * bound * FLOOR, alpha=-2 * bound * (1 - bins * FLOOR))
    inside = value.clamp(-bound, bound)
    passed = inside.detach() + bound >= sides.detach()[int(inverse), :-1].cumsum(0)
    number = passed.sum(0)
    x, y = torch.where(passed, sides[:, :-1], 0.0).sum(1) - bound
    end = torch.full_like(first[:1], SLOPE_ONE)
    every = torch.cat([sides.flatten(0, 1), end, first[2 * bins :], end])
    width, height, *slopes = every.gather(0, torch.stack([number + k for k in (0, bins, 2 * bins, 2 * bins + 1)]))
    before, after = (softplus(slope) + FLOOR for slope in slopes)
    s = height / width
    bend = torch.add(before + after, s, alpha=-2)
    if inverse:
        up = inside - y
        a, b, c = up * bend + height * (s - before), height * before - up * bend, -s * up
        xi = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0.0).sqrt())  # nflows stops where rounding is below zero
    else:
        xi = (inside - x) / width
    left, square = 1 - xi, xi * xi
    m = xi * left
    below = torch.addcmul(s, bend, m)
    above = torch.addcmul(torch.addcmul(after * square, before, left * left), s, m, value=2)
    ratio = s / below
    log_slope = torch.log(ratio * ratio * above).masked_fill(inside != value, 0.0)
    if inverse:
        return torch.addcmul(x, width, xi) + (value - inside), -log_slope
    risen = torch.addcmul(before * m, s, square) / below
    return torch.addcmul(y, height, risen) + (value - inside), log_slope


class AutoregressiveSpline(MaskedPiecewiseRationalQuadraticAutoregressiveTransform):
    """nflows' layer with the splines of this module."""

    def _elementwise(self, inputs: Tensor, parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        value, log_slope = spline(inputs, parameters.view(*inputs.shape, -1), self.tail_bound, inverse=inverse)
        return value, log_slope.sum(-1)


class CouplingSpline(PiecewiseRationalQuadraticCouplingTransform):
    """nflows' layer with the splines of this module."""

    def _piecewise_cdf(self, inputs: Tensor, parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        sides, slopes = parameters.split([2 * self.num_bins, self.num_bins - 1], -1)
        sides = sides / math.sqrt(self.transform_net.hidden_features)
        return spline(inputs, torch.cat([sides, slopes], -1), self.tail_bound, inverse=inverse)
