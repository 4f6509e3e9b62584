import re
import warnings

import numpy as np
import pytest
import torch
from measures import z_of_mean
from scipy.spatial.distance import cdist

from sbi_core import InputError, Parameter, SbiWarning, UniformPrior, check_gold, simulate
from sbi_core.seeding import seeded
from sbi_core.simulators import ContactInteraction, WeightedEvents
from sbi_core.simulators.electroweak import legendre
from sbi_core.simulators.negative_weights import find_negatives, merge_cells

PROCESS = ContactInteraction(reach=0.2)
THETA = torch.tensor([[0.0, 0.0], [0.15, -0.1], [-0.2, 0.2]], dtype=torch.float64)
LOG_M = torch.linspace(-1.6, 1.8, 35, dtype=torch.float64)
COS = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
SHARE = [Parameter("a", 0, 1)]


def world(made, **options):
    return WeightedEvents(made.x, made.weights, made.benchmarks, PROCESS.parameters, **options)


@pytest.fixture(scope="module")
def made():
    return PROCESS.generate(30_000, seed=1, negative=0.4)


@pytest.fixture(scope="module")
def merged(made):
    return world(made, negative="cells")


def thetas(rows, seed=2):
    with seeded(seed):
        return UniformPrior(PROCESS.parameters).sample(torch.Size([rows]))


def test_negative_weights_are_refused_with_their_share(made):
    events = int((made.weights < 0).any(1).sum())
    with pytest.raises(InputError) as caught:
        world(made)
    text = str(caught.value)
    assert f"{events} of 30000 events ({events / 30_000:.2%}) have negative ones" in text
    assert 'negative="cells"' in text and "events of positive weight" in text
    worth, a, b = re.search(r"up to (.*)% of .* c_lq1 = (.*), c_lq3 = (.*), and", text).groups()
    weight = PROCESS.weight(torch.tensor([float(a), float(b)]), made.latents)
    assert float(-weight.clamp(max=0).sum() / weight.abs().sum()) == pytest.approx(float(worth) / 100, rel=0.02)


def test_weights_that_are_positive_at_benchmarks_alone_are_found():
    """exp(20 a) is positive, its parabola through three points is not."""
    benchmarks, each = torch.tensor([[0.0], [0.5], [1.0]]).double(), torch.tensor([20.0, 0.1]).double()
    weights = torch.exp(each[:, None] * benchmarks.T)
    with pytest.raises(InputError) as caught:
        WeightedEvents(torch.zeros(2, 1), weights, benchmarks, SHARE)
    text = str(caught.value)
    assert "1 of 2 events (50.00%) have positive ones at the benchmarks, but negative ones elsewhere" in text
    assert "raise the degree" in text and 'negative="cells"' in text
    WeightedEvents(torch.zeros(2, 1), weights.log() + 25, benchmarks, SHARE)  # a polynomial, and positive


def test_rounding_of_a_file_is_no_negative_weight():
    """w = a^2 is zero at a = 0; eight digits of it at the benchmarks are not exact."""
    benchmarks = torch.tensor([[0.1], [0.55], [1.0]]).double()
    strength = torch.rand(500, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rounded = torch.tensor([[float(f"{v:.7e}") for v in row] for row in (strength * benchmarks.T**2).tolist()]).double()
    axis = [Parameter("a", -1, 1)]
    events = WeightedEvents(torch.zeros(500, 1), rounded, benchmarks, axis)
    assert float((events.coefficients @ events.morphing.monomials(torch.zeros(1))).min()) < 0
    with pytest.raises(InputError, match="negative"):
        WeightedEvents(torch.zeros(500, 1), rounded - 1e-4 * torch.tensor([1.0, 0, 0]), benchmarks, axis)


def test_share_is_found_at_the_worst_theta():
    table, points = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([[5.0], [6.0]]).double()
    coefficients = torch.tensor([[1.0, 3.0], [1.0, -1.0], [2.0, 0.0]]).double()
    found = find_negatives(coefficients, coefficients[:, :1], table, points)
    assert found.events.tolist() == [False, True, False] and not found.given.any()
    assert found.share == pytest.approx(0.25) and found.at.tolist() == [6.0]


def test_cells_keep_cross_sections_and_leave_nothing_negative(made, merged):
    theta = thetas(300)
    raw = made.weights @ merged.morphing.weights(theta).T
    assert torch.allclose(merged.rate(theta), raw.sum(0), rtol=1e-11)
    weight = merged.coefficients @ merged.morphing.monomials(theta).T
    assert float(-weight.clamp(max=0).sum(0).div(weight.sum(0)).max()) < 1e-4, "between the thetas that were looked up"
    assert float(-raw.clamp(max=0).sum(0).div(raw.abs().sum(0)).max()) > 0.1, "saboteur: before"


def test_cells_are_reported(made, merged):
    cells = merged.cells
    changed = (merged.coefficients - merged.morphing.coefficients(made.weights)).abs().amax(1) > 0
    assert cells.events == 30_000 and abs(cells.merged - int(changed.sum())) <= 3
    assert 1000 < cells.cells < int((made.weights < 0).any(1).sum()) < cells.merged
    assert 0.005 < cells.size < 0.1 and cells.size < cells.largest < 1
    assert f"{cells.cells} cells hold {cells.merged} of 30000 events" in str(cells)
    assert merged.flags == () and world(PROCESS.generate(500, seed=1), negative="cells").cells is None


def test_error_of_the_cross_section_is_its_scatter(merged):
    """Cross-sections of 600 libraries of a tenth of the events: their variance is that which one of them states."""
    sums = [PROCESS.generate(3000, THETA, seed=100 + k, negative=0.4).weights.sum(0) for k in range(600)]
    distance = (torch.stack(sums) / PROCESS.rate(THETA) - 1) ** 2
    assert z_of_mean(distance, 10 / merged.effective_events(THETA)) < 4
    assert merged.independent_rows(THETA[1]) == pytest.approx(float(merged.effective_events(THETA[1])))
    monomials, coefficients = merged.morphing.monomials(THETA), merged.coefficients
    blurred = merged.rate(THETA) ** 2 / (coefficients @ monomials.T).square().sum(0)
    assert z_of_mean(distance, 10 / blurred) > 4, "saboteur: from the weights of the cells"


def shares(theta):
    """Probabilities of the cells of a grid of ln m and c, (5, 4), by quadrature over the exact density."""
    (log_m, on_m), (c, on_c) = legendre(LOG_M, 4), legendre(COS, 10)
    grid = torch.stack(torch.broadcast_tensors(log_m[:, None], c), -1)
    each = PROCESS.log_likelihood(theta, grid).exp() * on_m[:, None] * on_c
    fine = each.reshape(34, 4, 8, 10).sum((1, 3))
    coarse = torch.stack([part.sum(0) for part in fine.split([6, 4, 4, 6, 14])])
    return coarse.reshape(5, 4, 2).sum(2)


def place(x):
    """In which cell of the grid each x (N, 2) is."""
    edges = LOG_M[[6, 10, 14, 20]].contiguous()
    return torch.bucketize(x[:, 0].contiguous(), edges) * 4 + torch.bucketize(x[:, 1].contiguous(), COS[[2, 4, 6]])


@pytest.mark.parametrize("theta", THETA)
def test_law_in_x_is_kept(made, merged, theta):
    """Cross-sections of 20 regions of x: merged ones against the exact density, in errors of the raw weights."""
    exact = (PROCESS.rate(theta) * shares(theta)).flatten()
    raw, where = PROCESS.weight(theta, made.latents), place(made.x)
    region = torch.nn.functional.one_hot(where, 20).double()
    error = (region * raw[:, None] ** 2).sum(0).sqrt()
    often = exact > 5e-3 * exact.sum()

    def worst(weight):
        return float(((weight @ region - exact).abs() / error)[often].max())

    new = merged.coefficients @ merged.morphing.monomials(theta)
    assert often.sum() >= 10 and worst(raw) < 4 and worst(new) < 4
    dropped = raw.clamp(min=0)
    assert worst(dropped * raw.sum() / dropped.sum()) > 5, "saboteur: without the negative ones"
    assert float(((new - raw) @ region).abs().div(error)[often].max()) < 1.5, "little moves between regions"


def test_rows_follow_the_density(made, merged):
    """Counts of 5000 rows in regions of x: the error is theirs and that of the library's weights in each."""
    theta = THETA[1]
    x, _ = merged.sample(theta.expand(5000, 2), None, torch.Generator().manual_seed(3))
    count, chance = torch.bincount(place(x), minlength=20).double(), shares(theta).flatten()
    often = chance > 0.01
    squares = torch.bincount(place(made.x), PROCESS.weight(theta, made.latents).square(), 20)
    error = (5000 * chance + (5000 / PROCESS.rate(theta)) ** 2 * squares).sqrt()
    assert ((count - 5000 * chance).abs() / error)[often].max() < 4
    other = shares(THETA[2]).flatten()
    assert ((count - 5000 * other).abs() / error)[often].max() > 4, "saboteur: another theta"


@pytest.mark.parametrize("seed", [1, 2])
def test_gold_passes(merged, seed):
    with pytest.warns(SbiWarning, match="worth 7[0-9]{2} independent ones"):
        rows = simulate(merged, 4000, seed=seed, progress=False)
    check_gold(merged, rows).raise_if_failed()


def test_cell_is_the_smallest_that_is_positive():
    """Four events by hand: the one at 1.0 takes in its neighbours at 0.8 and 1.3, not the one at 9."""
    x = torch.tensor([[0.8], [1.0], [1.3], [9.0]]).double()
    weights = torch.tensor([[1.0, 2.0], [-2.0, -2.0], [3.0, 1.0], [5.0, 5.0]]).double()
    events = WeightedEvents(x, weights, [[0.0], [1.0]], SHARE, degree=1, negative="cells")
    ends = events.coefficients @ events.morphing.monomials(torch.tensor([[0.0], [1.0]])).T
    assert torch.allclose(ends, torch.tensor([[2 / 3, 1 / 3]] * 3 + [[5.0, 5.0]]).double())
    assert (events.cells.cells, events.cells.merged) == (1, 3)
    assert events.cells.size == pytest.approx(0.3 / float(x.std())) and events.cells.largest == events.cells.size


def test_neighbours_are_those_in_standard_deviations():
    """In raw numbers the second event would be nearest, in standard deviations the third is."""
    x = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 100.0], [1.0, 900.0], [0.0, -900.0]]).double()
    weights = torch.tensor([[-1.0], [2.0], [2.0], [2.0], [2.0]]).double()
    events = WeightedEvents(x, weights, [[0.5]], SHARE, degree=0, negative="cells")
    assert events.coefficients[:, 0].tolist() == pytest.approx([0.5, 2, 0.5, 2, 2])
    assert cdist(x[:1], x).argsort()[0, 1] == 1 and cdist(x[:1] / x.std(0), x / x.std(0)).argsort()[0, 1] == 2


def test_equal_observations_and_images():
    """All at one place: the cell still begins with its own event."""
    weights = torch.cat([torch.full((50, 1), 1.0), torch.full((20, 1), -1.0)])
    for x in (torch.zeros(70, 1), torch.rand(70, 3, 3, generator=torch.Generator().manual_seed(1)) + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SbiWarning)  # images of noise have no neighbours
            events = WeightedEvents(x, weights, [[0.5]], SHARE, degree=0, negative="cells")
        assert (events.coefficients >= 0).all() and float(events.coefficients.sum()) == pytest.approx(30)
        assert events.cells.merged >= 40 and (events.cells.wide == 0) == (x.std() == 0)


def test_negative_cross_sections_are_refused():
    weights = torch.tensor([[1.0, 1.0], [-0.5, -2.0]]).double()
    with pytest.raises(InputError, match="their sum is not positive at every theta"):
        WeightedEvents(torch.zeros(2, 1), weights, [[0.0], [1.0]], SHARE, degree=1, negative="cells")


def test_large_cells_are_flagged():
    x = torch.cat([torch.linspace(-1, 1, 98), torch.tensor([7.0, 30.0])])[:, None]
    weights = torch.ones(100, 1)
    weights[98] = -0.5
    with pytest.warns(SbiWarning, match=r"1 cells hold 2 of 100 events .*; 2\.0% of the events .* blurs x"):
        events = WeightedEvents(x, weights, [[0.5]], SHARE, degree=0, negative="cells")
    assert events.cells.largest > 1 and len(events.flags) == 1


def test_cells_of_a_split_are_its_own(made, merged):
    first, second = merged.split(0.5, seed=1)
    theta = thetas(20)
    raw = (made.weights @ merged.morphing.weights(theta).T).sum(0)
    assert torch.allclose((first.rate(theta) + second.rate(theta)) / 2, raw, rtol=1e-11)
    assert first.cells is not None and first.cells.events == 15_000 and second.cells != first.cells


def test_merging_is_deterministic_and_touches_no_input(made, merged):
    assert torch.equal(world(made, negative="cells").coefficients, merged.coefficients)
    assert torch.equal(made.weights, PROCESS.generate(30_000, seed=1, negative=0.4).weights)
    coefficients = torch.tensor([[1.0], [-0.5]]).double()
    merge_cells(coefficients, torch.zeros(2, 1), torch.ones(1, 1).double(), torch.tensor([False, True]))
    assert np.array_equal(coefficients, [[1.0], [-0.5]])
