import math
import re

import numpy as np
import pytest
import torch

from sbi_core import InputError, Parameter
from sbi_core.simulators import Monomials, Morphing, propose_benchmarks

AXES = [Parameter("a", -1.0, 1.0), Parameter("b", 0.0, 4.0)]


def uniform(rows, axes=AXES, seed=1):
    low, high = (torch.tensor([getattr(axis, end) for axis in axes], dtype=torch.float64) for end in ("low", "high"))
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(rows, len(axes), generator=generator, dtype=torch.float64)


def polynomial(theta, powers, coefficients):
    """Sum of coefficient times product of powers, one loop after the other: (T, N)."""
    total = 0.0
    for row, each in zip(powers, coefficients.T, strict=True):
        term = torch.ones(len(theta), dtype=torch.float64)
        for d, p in enumerate(row):
            term = term * theta[:, d] ** int(p)
        total = total + term[:, None] * each
    return total


@pytest.mark.parametrize(
    ("degree", "labels"),
    [
        (0, ["1"]),
        (2, ["1", "a", "b", "a^2", "a b", "b^2"]),
        ([2, 1], ["1", "a", "b", "a^2", "a b", "a^2 b"]),
        ([[0, 0], [3, 0], [1, 2]], ["1", "a^3", "a b^2"]),
    ],
)
def test_monomials_of_a_degree(degree, labels):
    assert Monomials(AXES, degree).names == labels


@pytest.mark.parametrize("dims", [1, 2, 3, 5])
@pytest.mark.parametrize("degree", [1, 2, 4])
def test_number_of_monomials(dims, degree):
    axes = [Parameter(f"p{d}", 0, 1) for d in range(dims)]
    assert len(Monomials(axes, degree)) == math.comb(dims + degree, degree)
    assert len(Monomials(axes, [degree] * dims)) == (degree + 1) ** dims


@pytest.mark.parametrize("degree", [1, 2, 3, [2, 1], [[0, 0], [2, 0], [0, 2]]])
@pytest.mark.parametrize("surplus", [0, 4])
def test_polynomials_are_exact_everywhere(degree, surplus):
    """Weights that are polynomials in theta itself, in its own units, from their values at benchmarks."""
    monomials = Monomials(AXES, degree)
    true = torch.randn(30, len(monomials), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    benchmarks = uniform(len(monomials) + surplus)
    morphing = Morphing(monomials, benchmarks)
    weights = polynomial(benchmarks, monomials.powers, true).T
    found = morphing.coefficients(weights)
    theta = uniform(50, seed=3)
    exact = polynomial(theta, monomials.powers, true)
    assert torch.allclose(monomials(theta) @ found.T, exact, atol=1e-9 * morphing.amplification)
    assert torch.allclose(morphing.weights(theta) @ weights.T, exact, atol=1e-9 * morphing.amplification)
    assert morphing.misfit(weights, found) < 1e-12
    moved = Morphing(monomials, benchmarks + 0.01)
    assert not torch.allclose(monomials(theta) @ moved.coefficients(weights).T, exact, atol=1e-4), "saboteur: elsewhere"


def test_what_is_no_polynomial_does_not_fit():
    benchmarks = uniform(12)
    weights = torch.exp(benchmarks[:, :1]).T
    for degree, low, high in ((1, 0.03, 0.3), (2, 1e-3, 0.02)):
        morphing = Morphing(Monomials(AXES, degree), benchmarks)
        assert low < morphing.misfit(weights, morphing.coefficients(weights)) < high


def test_condition_is_that_of_the_scaled_matrix_in_any_unit():
    benchmarks = uniform(6)
    conditions = []
    for scale, shift in ((1.0, 0.0), (1e-6, 0.0), (1e4, 3e4)):
        axes = [Parameter(axis.name, axis.low * scale + shift, axis.high * scale + shift) for axis in AXES]
        conditions.append(Morphing(Monomials(axes, 2), benchmarks * scale + shift).condition)
    unit = torch.stack([benchmarks[:, 0], benchmarks[:, 1] / 2 - 1], 1)
    matrix = polynomial(unit, Monomials(AXES, 2).powers, torch.eye(6, dtype=torch.float64))
    assert conditions == pytest.approx([np.linalg.cond(matrix)] * 3, rel=1e-6)
    raw = polynomial(benchmarks, Monomials(AXES, 2).powers, torch.eye(6, dtype=torch.float64))
    assert np.linalg.cond(raw) != pytest.approx(conditions[0], rel=0.1), "saboteur: without scaling"


def test_errors_grow_by_the_amplification():
    """The error at theta is at most sum_b |f_b(theta)| times that of the weights, and reaches that."""
    morphing = Morphing(Monomials(AXES, 2), 0.2 * uniform(6))
    points = morphing.monomials.points()
    f = morphing.weights(points)
    assert torch.allclose(f.sum(1), torch.ones(len(f)).double(), atol=1e-9), "a constant stays"
    worst = f.abs().sum(1).argmax()
    error = 1e-3 * f[worst].sign()
    reached = (f @ error).abs().max()
    assert float(reached) == pytest.approx(1e-3 * morphing.amplification, rel=1e-9)
    assert morphing.amplification > 10 * Morphing(Monomials(AXES, 2), uniform(6)).amplification


def test_benchmarks_close_together_are_flagged():
    good = Morphing(Monomials(AXES, 2), uniform(6))
    close = Morphing(Monomials(AXES, 2), 0.5 + 1e-3 * uniform(6))
    assert good.flags == () and good.condition < 100
    (flag,) = close.flags
    assert f"condition number {close.condition:.1e}" in flag and close.condition > 1e4


@pytest.mark.parametrize(
    ("benchmarks", "text"),
    [
        ([[0.1, 1], [0.5, 2], [-0.3, 3]], "3 points determine 3 of the 6 coefficients"),
        ([[k / 7, 0] for k in range(6)], "3 of the 6 coefficients, not those of 'b', 'a b', 'b^2'. Add 3 more"),
        ([[0.0, k / 3] for k in range(7)], "not those of 'a', 'a^2', 'a b'. Add 3 more"),
        ([[0.1, 1]] * 6, "6 points determine 1 of the 6"),
        ([[0.3, 1, 0]], "shape (1, 3), expected (B, 2)"),
        ([[0.3, math.nan]] * 6, "finite"),
    ],
)
def test_benchmarks_that_do_not_determine_are_refused(benchmarks, text):
    with pytest.raises(InputError, match=re.escape(text)):
        Morphing(Monomials(AXES, 2), benchmarks)


def test_python_numbers_keep_their_digits():
    """Lists are read as float64: through float32 the tenth would be off by 1e-9."""
    morphing = Morphing(Monomials([Parameter("a", -0.3, 0.3)], 1), [[0.1], [-0.1]])
    weights = torch.tensor([[0.1, -0.1]], dtype=torch.float64)
    value = morphing.monomials(torch.tensor([0.3], dtype=torch.float64)) @ morphing.coefficients(weights)[0]
    assert float(value) == pytest.approx(0.3, abs=1e-15)


@pytest.mark.parametrize("degree", [-1, 1.5, [2], [[1, 2, 3]], "two", [[1, 0], [1, 0]]])
def test_other_degrees_are_refused(degree):
    with pytest.raises(InputError, match="degree"):
        Monomials(AXES, degree)


def test_endless_ranges_are_refused():
    with pytest.raises(InputError, match="finite ranges"):
        Monomials([Parameter("a", 0.0, math.inf)], 2)


def test_gradient_is_that_of_the_powers():
    theta = uniform(20).requires_grad_()
    monomials = Monomials(AXES, [[0, 0], [3, 0], [1, 2]])
    value = monomials(theta)
    scale = [1.0, 1.0, 16.0]  # theta over the largest |theta|: this table has gaps
    a, b = theta.detach().unbind(1)
    for column, (da, db) in enumerate([(0 * a, 0 * a), (3 * a**2, 0 * a), (b**2, 2 * a * b)]):
        slope = torch.autograd.grad(value[:, column].sum(), theta, retain_graph=True)[0]
        assert torch.allclose(slope * scale[column], torch.stack([da, db], 1), atol=1e-12)


def test_points_fill_the_ranges():
    points = Monomials(AXES, 2).points()
    for corner in ([-1, 0], [-1, 4], [1, 0], [1, 4], [0, 2]):
        assert (points == torch.tensor(corner)).all(1).any()
    assert (points >= torch.tensor([-1, 0])).all() and (points <= torch.tensor([1, 4])).all()
    many = Monomials([Parameter(f"p{d}", 0, 1) for d in range(12)], 1).points()
    assert (((many == 0) | (many == 1)).all(1)).sum() == 1024


def cost(benchmarks, degree=2):
    """Mean of the summed squared morphing weights at random thetas."""
    return float(Morphing(Monomials(AXES, degree), benchmarks).weights(uniform(4000, seed=9)).square().sum(1).mean())


@pytest.mark.parametrize("degree", [2, 3])
def test_proposed_benchmarks_are_better_than_random_ones(degree):
    size = len(Monomials(AXES, degree))
    best = propose_benchmarks(AXES, degree)
    assert best.shape == (size, 2)
    random = [cost(uniform(size, seed=seed), degree) for seed in range(40)]
    assert cost(best, degree) < 0.9 * min(random)
    moved = [cost(best + step * torch.eye(2).double()[d], degree) for d in (0, 1) for step in (-0.2, 0.2)]
    assert min(moved) > cost(best, degree), "a minimum"
    assert cost(propose_benchmarks(AXES, degree, count=2 * size), degree) < 0.7 * cost(best, degree)


def test_proposed_benchmarks_keep_the_fixed_ones():
    fixed = torch.tensor([[0.0, 1.0], [0.3, 0.7]], dtype=torch.float64)
    found = propose_benchmarks(AXES, 2, fixed=fixed)
    assert torch.equal(found[:2], fixed) and len(found) == 6 and Morphing(Monomials(AXES, 2), found).condition < 50
    for wrong in ({"count": 5}, {"fixed": [[1.0]]}, {"fixed": uniform(8), "count": 7}):
        with pytest.raises(InputError, match=r"expected at least [68]"):
            propose_benchmarks(AXES, 2, **wrong)


def test_fixed_points_that_say_little_are_made_up_for():
    """Three at one place, or on a line: the others determine what these leave open; fewer are refused."""
    plane = [Parameter("a", -1, 1), Parameter("b", 0, 4)]
    for fixed, count in (([[0.0, 0.0]] * 3, 8), ([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.5, 0.0]], 7)):
        found = propose_benchmarks(plane, 2, fixed=fixed)
        assert len(found) == count and Morphing(Monomials(plane, 2), found).condition < 1e3
        with pytest.raises(InputError, match=f"expected at least {count}"):
            propose_benchmarks(plane, 2, fixed=fixed, count=count - 1)


def test_many_parameters_are_no_work():
    """As the lattice of all powers has 3^40 places."""
    many = Monomials([Parameter(f"c{k}", -1, 1) for k in range(40)], 2)
    assert len(many) == math.comb(42, 2) and many.names[:2] == ["1", "c0"] and many.names[-1] == "c39^2"
