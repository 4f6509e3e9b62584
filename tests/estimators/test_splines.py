"""Splines against those of nflows, in value, slope, gradient and second gradient."""

import pytest
import torch
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline
from torch import Tensor

from sbi_core.estimators.splines import spline
from sbi_core.seeding import seeded

BOUND, BINS = 5.0, 8


def theirs(value: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    sides = parameters[..., :BINS], parameters[..., BINS : 2 * BINS], parameters[..., 2 * BINS :]
    found: tuple[Tensor, Tensor] = unconstrained_rational_quadratic_spline(
        value, *sides, inverse=inverse, tails="linear", tail_bound=BOUND
    )
    return found


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Values inside and beyond the range, and wild parameters."""
    with seeded(1):
        value, parameters = 3 * torch.randn(2000, 3), 2 * torch.randn(2000, 3, 3 * BINS - 1)
    assert 100 < int((value.abs() > BOUND).sum()) < 1000
    return value.to(dtype).requires_grad_(), parameters.to(dtype).requires_grad_()


@pytest.mark.parametrize("inverse", [False, True])
def test_values_slopes_and_gradients_are_those_of_nflows(inverse) -> None:
    at = inputs()
    ours, peer = spline(*at, BOUND, inverse=inverse), theirs(*at, inverse=inverse)
    weight = torch.linspace(-1, 1, ours[0].numel(), dtype=torch.float64).view_as(ours[0])
    for mine, other in zip(ours, peer, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-9)
        gradients = [torch.autograd.grad((weight * part).sum(), at, retain_graph=True) for part in (mine, other)]
        for left, right in zip(*gradients, strict=True):
            assert torch.allclose(left, right, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(ours[0], theirs(at[0], -at[1], inverse=inverse)[0], atol=1e-2), "saboteur: other bins"


def test_second_gradients_are_those_of_nflows() -> None:
    at = inputs()

    def curvature(function) -> tuple[Tensor, ...]:
        value, log_slope = function(*at)
        first = torch.autograd.grad((log_slope - 0.5 * value**2).sum(), at[0], create_graph=True)[0]
        found: tuple[Tensor, ...] = torch.autograd.grad(first.square().sum(), at)
        return found

    for left, right in zip(curvature(lambda *a: spline(*a, BOUND)), curvature(theirs), strict=True):
        assert float((left - right).abs().max()) < 1e-8 * float(right.abs().max())


def test_float32_is_as_good_as_that_of_nflows() -> None:
    exact, at = spline(*inputs(), BOUND), [part.detach() for part in inputs(torch.float32)]
    for true, mine, other in zip(exact, spline(*at, BOUND), theirs(*at), strict=True):
        assert float((mine - true.detach()).abs().max()) < 3 * float((other - true.detach()).abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beyond_the_range_nothing_changes(dtype) -> None:
    value = torch.tensor([-1e6, -5.1, 5.1, 300.0], dtype=dtype)
    found, log_slope = spline(value, torch.linspace(-9, 9, 23, dtype=dtype).expand(4, 23), BOUND)
    assert torch.allclose(found, value, rtol=1e-6) and not log_slope.any()
