import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sbi_core import InputError, Parameter
from sbi_core.inference.frequentist.maximum import Box, climb, information, maxima
from sbi_core.seeding import seeded

AXES = tuple(Parameter(name, -1, 2) for name in "abcd")
BOX = Box.of(AXES)


def quadratic(matrix, top):
    """-(theta - top)^T matrix (theta - top) / 2, for R problems with their own tops."""
    return lambda theta: -((theta - top[:, None]) @ matrix * (theta - top[:, None])).sum(-1) / 2


@pytest.fixture
def problem():
    with seeded(1):
        root = torch.randn(4, 4).double()
        return root @ root.T + 0.1 * torch.eye(4), 2 * torch.randn(6, 4).double(), torch.rand(6, 3, 4).double()


def test_climbs_end_where_a_solver_with_bounds_does(problem):
    matrix, top, start = problem
    found = climb(quadratic(matrix, top), start, BOX)
    for k in range(6):
        solved = minimize(
            lambda t, k=k: 0.5 * (t - top[k].numpy()) @ matrix.numpy() @ (t - top[k].numpy()),
            np.zeros(4),
            jac=lambda t, k=k: matrix.numpy() @ (t - top[k].numpy()),
            bounds=[(-1, 2)] * 4,
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-12},
        )
        assert np.allclose(found.theta[k].numpy(), solved.x, atol=1e-4) and np.allclose(found.value[k], -solved.fun)
    outside = ((top < -1) | (top > 2)).any(1)
    assert outside.any() and not torch.allclose(found.theta[outside, 0], top[outside], atol=0.1), "saboteur: no box"
    assert (BOX.edges(found.theta[outside, 0]) != 0).any(1).all()


def test_what_is_fixed_stays_and_a_covariance_saves_steps(problem):
    matrix, top, start = problem
    calls = []

    def counted(theta):
        calls.append(1)
        return quadratic(matrix, top)(theta)

    wide = Box(BOX.low - 9, BOX.high + 9)
    free = climb(counted, start, wide, fixed=[1])
    slow = len(calls)
    assert torch.equal(free.theta[..., 1], wide.low[1] + (start[..., 1] - wide.low[1]) / wide.width[1] * wide.width[1])
    rest = [0, 2, 3]
    off = (start[..., 1] - top[:, None, 1])[..., None]
    exact = top[:, None, rest] - off * torch.linalg.solve(matrix[rest][:, rest], matrix[rest, 1])
    assert torch.allclose(free.theta[..., rest], exact, atol=1e-4)
    calls.clear()
    quick = climb(counted, start, wide, fixed=[1], covariance=torch.linalg.inv(matrix))
    assert len(calls) <= 3 < slow and torch.allclose(quick.theta, free.theta, atol=1e-4)


def test_a_bent_valley():
    """Rosenbrock's function: the maximum lies at (1, 1)."""
    axes = (Parameter("a", -2, 2), Parameter("b", -1, 3))
    found = maxima(lambda t: -((1 - t[..., 0]) ** 2) - 100 * (t[..., 1] - t[..., 0] ** 2) ** 2, Box.of(axes))
    assert (found.best().theta - 1).abs().max() < 1e-3 and float(found.best().value) > -1e-6


def test_the_highest_of_several_peaks_and_a_wall():
    """Five peaks of which the highest lies at the edge of the possible; beyond it log L is -inf."""
    at = torch.linspace(0.1, 0.9, 5).double()

    def surface(theta):
        peak = (-(((theta[..., :1] - at) / 0.02) ** 2) / 2 + 3 * at).logsumexp(-1)
        return torch.where(theta[..., 0] > 0.9, -torch.inf, peak)

    found = maxima(surface, Box.of([Parameter("a", 0, 1)]))
    assert abs(float(found.best().theta) - 0.9) < 1e-3
    assert (found.value < float(found.best().value) - 0.5).any(), "climbs from one start alone would miss it"


def test_the_observed_information():
    with seeded(2):
        root = torch.randn(4, 4).double()
    matrix = root @ root.T
    top = torch.zeros(1, 4).double()
    for theta in (torch.zeros(4).double(), BOX.low):
        assert torch.allclose(information(quadratic(matrix, top), theta, BOX), matrix, atol=1e-6)
    narrow = information(
        lambda t: -(((t[..., 0] - 0.3) / 1e-4) ** 2) / 2, torch.tensor([0.3]).double(), Box.of(AXES[:1])
    )
    assert math.isclose(float(narrow), 1e8, rel_tol=1e-3)


def test_what_cannot_be_climbed():
    with pytest.raises(InputError, match="no gradient"):
        climb(lambda t: torch.zeros(1, 1), torch.zeros(1, 1, 4).double(), BOX)
    with pytest.raises(InputError, match="zero, or not a number"):
        maxima(lambda t: t.sum(-1) * torch.nan, BOX)
    with pytest.raises(InputError, match="whole numbers"):
        Box.of([Parameter("n", 0, 9, integer=True)])
