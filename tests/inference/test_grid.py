import math

import pytest
import torch
from measures import z_of_mean
from torch.distributions import Independent, MultivariateNormal, Normal

from sbi_core import Parameter, UniformPrior
from sbi_core.inference.cells import FINE, grid_posterior, resolution
from sbi_core.inference.grid import GridPosterior
from sbi_core.seeding import seeded

AXES = (Parameter("a", -3, 5), Parameter("b", 0, 10))


def uneven(dims, batch=()):
    """A posterior on cells of unequal width, its density any numbers between 0 and 3."""
    with seeded(1):
        edges = [torch.rand(*batch, 12).double().cumsum(-1) for _ in range(dims)]
        density = 3 * torch.rand(*batch, *[11] * dims).double()
    return GridPosterior(AXES[:dims], edges, density.log(), verdicts={"coverage": "unchecked"}), edges, density


def midpoints(edges, parts=7):
    """Midpoints (.., n) of parts of the cells, and their widths."""
    share = (torch.arange(parts) + 0.5) / parts
    points = edges[..., :-1, None] + edges.diff(dim=-1)[..., None] * share
    widths = (edges.diff(dim=-1)[..., None] / parts).expand_as(points)
    return points.flatten(-2), widths.flatten(-2)


def quadrature(posterior, edges, phi):
    """The integral of phi times the density, from log_prob alone."""
    points, widths = zip(*(midpoints(edge) for edge in edges), strict=True)
    if len(edges) == 1:
        theta, volume = points[0][..., None], widths[0]
    else:
        theta = torch.stack(torch.broadcast_tensors(points[0][..., :, None], points[1][..., None, :]), -1)
        volume = widths[0][..., :, None] * widths[1][..., None, :]
    leading = len(posterior.batch_shape)
    theta = theta.movedim(tuple(range(leading)), tuple(range(theta.ndim - 1 - leading, theta.ndim - 1)))
    volume = volume.movedim(tuple(range(leading)), tuple(range(volume.ndim - leading, volume.ndim)))
    value = phi(theta) * posterior.log_prob(theta).exp() * volume
    return value.flatten(0, len(edges) - 1).sum(0)


@pytest.mark.parametrize("batch", [(), (4,)])
@pytest.mark.parametrize("dims", [1, 2])
def test_density_mean_and_variance_by_quadrature(dims, batch):
    posterior, edges, _ = uneven(dims, batch)
    assert posterior.batch_shape == batch and posterior.event_shape == (dims,)
    one = quadrature(posterior, edges, lambda theta: torch.ones(theta.shape[:-1]).double())
    assert one.shape == batch and torch.allclose(one, torch.ones(()).double(), rtol=1e-12)
    for k in range(dims):
        mean = quadrature(posterior, edges, lambda theta, k=k: theta[..., k])
        assert torch.allclose(mean, posterior.mean[..., k], rtol=1e-12)
        square = quadrature(posterior, edges, lambda theta, k=k: (theta[..., k] - posterior.mean[..., k]) ** 2)
        width = max(float(edge.diff(dim=-1).max()) for edge in edges)
        assert torch.allclose(square, posterior.variance[..., k], rtol=0, atol=(width / 7) ** 2 / 12)
        assert (square - posterior.stddev[..., k] ** 2 / 1.1).abs().min() > (width / 7) ** 2 / 12, "saboteur: 10% more"


@pytest.mark.parametrize("dims", [1, 2])
def test_the_density_is_that_of_the_cell(dims):
    posterior, edges, density = uneven(dims)
    ratio = density / density.max()
    for cell in (0, 4, 10):
        inside = [edge[cell] + 0.3 * (edge[cell + 1] - edge[cell]) for edge in edges]
        value = posterior.log_prob(torch.stack(inside))
        top = posterior.grid()[1].max()
        assert torch.allclose((value - top).exp(), ratio[(cell,) * dims], rtol=1e-12)
    low, high = (torch.stack([edge[end] for edge in edges]) for end in (0, -1))
    assert torch.isfinite(posterior.log_prob(torch.stack([low, high]))).all(), "ends belong to the grid"
    assert torch.isneginf(posterior.log_prob(torch.stack([low - 1e-9, high + 1e-9]))).all()
    assert posterior.support.check(torch.stack([low, high, high + 1e-9])).tolist() == [True, True, False]


@pytest.mark.parametrize("dims", [1, 2])
def test_samples_follow_the_density(dims):
    """Against the distribution function: u = F(theta) is uniform, and so is each cell's share."""
    posterior, edges, density = uneven(dims)
    with seeded(2):
        theta = posterior.sample((20_000,))
        other = GridPosterior(AXES[:dims], edges, (density + 0.3).log(), verdicts={}).sample((20_000,))
    assert theta.shape == (20_000, dims) and theta.dtype == torch.float64

    def significance(theta):
        """Of the first four moments of u along each axis, and of three products."""
        terms = []
        for k, edge in enumerate(edges):
            mass = torch.cat([torch.zeros(1), posterior.axis_mass(k).cumsum(0)])
            cell = (torch.searchsorted(edge, theta[:, k].contiguous(), right=True) - 1).clamp(0, 10)
            share = (theta[:, k] - edge[cell]) / (edge[cell + 1] - edge[cell])
            u = mass[cell] + share * (mass[cell + 1] - mass[cell])
            terms += [u**power - 1 / (power + 1) for power in (1, 2, 3, 4)]
        if dims == 2:
            centred = theta - posterior.mean
            truth = quadrature(posterior, edges, lambda at: (at - posterior.mean).prod(-1))
            terms += [centred.prod(-1) - truth, posterior.log_prob(theta) + entropy]
        return z_of_mean(torch.stack(terms, 1))

    entropy = -quadrature(posterior, edges, posterior.log_prob)
    assert significance(theta) < 4
    assert significance(other) > 4, "saboteur: samples of another density"


def test_samples_of_a_batch_belong_to_their_problem():
    posterior, _, _ = uneven(2, (4,))
    with seeded(3):
        theta = posterior.sample((5000, 2))
    assert theta.shape == (5000, 2, 4, 2)
    away = theta.flatten(0, 1) - posterior.mean
    assert z_of_mean(away) < 4 and z_of_mean(away**2 - posterior.variance) < 4
    assert z_of_mean(theta.flatten(0, 1) - posterior.mean.roll(1, 0)) > 4, "saboteur: problems exchanged"
    assert posterior.sample().shape == (4, 2) and posterior.sample((0,)).shape == (0, 4, 2)
    assert posterior.log_prob(theta).shape == (5000, 2, 4)


@pytest.mark.parametrize("level", [0.5, 0.683, 0.95])
@pytest.mark.parametrize("batch", [(), (4,)])
def test_intervals_hold_their_level(batch, level):
    """The probability below each end, from the density, is the tail's."""
    posterior, edges, _ = uneven(2, batch)
    low, high = posterior.credible_interval(level)
    assert low.shape == high.shape == (*batch, 2)
    for k in range(2):
        for end, wanted in ((low, (1 - level) / 2), (high, (1 + level) / 2)):
            covered = ((end[..., k, None] - edges[k][..., :-1]) / edges[k].diff(dim=-1)).clamp(0, 1)
            below = (covered * posterior.axis_mass(k)).sum(-1)
            assert torch.allclose(below, torch.full_like(below, wanted), rtol=1e-9)


def test_a_posterior_describes_itself():
    posterior, _, _ = uneven(2)
    table = posterior.summary(0.9)
    assert list(table) == ["a", "b"] and table["b"]["level"] == 0.9
    low, high = posterior.credible_interval(0.9)
    assert (table["b"]["low"], table["b"]["high"]) == (float(low[1]), float(high[1]))
    assert table["a"]["mean"] == float(posterior.mean[0]) and table["a"]["sd"] == float(posterior.stddev[0])
    assert repr(posterior) == "GridPosterior(a, b; (11, 11) cells)"


def normal(mean, sd):
    return lambda theta: -(((theta - mean) / sd) ** 2).sum(-1) / 2


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("sd", [0.02, 0.3, 30.0])
def test_the_grid_finds_the_posterior_and_covers_it(dims, sd):
    prior = UniformPrior(AXES[:dims])
    mean = torch.tensor([1.0, 4.0]).double()[:dims]
    edges, density, flags = grid_posterior(AXES[:dims], prior, normal(mean, sd), 1)
    posterior = GridPosterior(AXES[:dims], [edge[0] for edge in edges], density[0], verdicts={})
    assert [edge.shape[-1] for edge in edges] == [FINE[dims] + 1] * dims and flags == []
    for k, axis in enumerate(AXES[:dims]):
        ends = [max(axis.low, float(mean[k]) - 6 * sd), min(axis.high, float(mean[k]) + 6 * sd)]
        assert float(edges[k][0, 0]) <= ends[0] and float(edges[k][0, -1]) >= ends[1], "six standard deviations"
        assert axis.low <= float(edges[k][0, 0]) and float(edges[k][0, -1]) <= axis.high
    if sd < 1:
        cell = torch.stack([edge[0, 1] - edge[0, 0] for edge in edges])
        assert ((posterior.mean - mean).abs() < cell**2 / sd).all()
        excess = posterior.variance - sd**2
        assert ((excess > 0) & (excess < cell**2 / 6)).all(), "a cell adds its own variance, twelfth of a square"


@pytest.mark.parametrize("slope", [0.0, 0.9])
@pytest.mark.parametrize("cells", [5.0, 20.0])
def test_resolution_is_that_of_a_normal_density(cells, slope):
    """Along each axis with the other fixed, where the width is (1 - slope^2)^(1/2)."""
    at = torch.arange(-120, 121).double() / cells
    a, b = at[:, None], at[None, :]
    density = -(a**2 + b**2 - 2 * slope * a * b) / (2 * (1 - slope**2))
    found = resolution(density[None])
    assert found.shape == (2, 1) and torch.allclose(
        found, torch.tensor(cells * (1 - slope**2) ** 0.5).double(), rtol=0.05
    )


def test_two_modes_are_both_kept():
    prior = UniformPrior(AXES[:1])

    def two(theta):
        each = [normal(mean, 0.05)(theta) for mean in (-1.0, 3.0)]
        return torch.logaddexp(each[0] + math.log(3), each[1])

    edges, density, _ = grid_posterior(AXES[:1], prior, two, 1)
    posterior = GridPosterior(AXES[:1], [edge[0] for edge in edges], density[0], verdicts={})
    assert math.isclose(float(posterior.mean), (3 * -1 + 3) / 4, abs_tol=1e-6)


EDGES = [((-9.0, 5.0), "a"), ((1.0, 11.0), "b"), ((-3.0, 5.0), "a"), ((1.0, 5.0), None)]


@pytest.mark.parametrize(("mean", "edge"), EDGES)
def test_a_posterior_at_the_edge_of_the_prior_is_flagged(mean, edge):
    _, _, flags = grid_posterior(AXES, UniformPrior(AXES), normal(torch.tensor(mean), 1.0), 1)
    assert flags == ([f"the posterior of '{edge}' is highest at the edge of the prior"] if edge else [])


def test_rows_have_grids_of_their_own():
    means = torch.tensor([[-2.0], [0.0], [4.0]]).double()
    edges, density, _ = grid_posterior(AXES[:1], UniformPrior(AXES[:1]), normal(means[:, None], 0.1), 3)
    posterior = GridPosterior(AXES[:1], edges, density, verdicts={})
    assert torch.allclose(posterior.mean, means, atol=1e-5)
    assert (edges[0].diff(dim=-1).max() < 0.01).all(), "each as fine as its posterior"


@pytest.mark.parametrize(
    "prior",
    [
        Independent(Normal(torch.tensor([1.0, 4.0]).double(), 0.5), 1),
        MultivariateNormal(torch.tensor([1.0, 4.0]).double(), torch.tensor([[1.0, 0.6], [0.6, 1.0]]).double()),
        Independent(torch.distributions.Gamma(torch.tensor([4.0, 9.0]).double(), 3.0), 1),
        Independent(torch.distributions.Beta(torch.tensor([4.0, 9.0]).double(), 3.0), 1),
    ],
    ids=["normal", "correlated", "gamma", "beta"],
)
def test_without_data_the_posterior_is_the_prior(prior):
    edges, density, _ = grid_posterior(AXES, prior, lambda theta: torch.zeros(theta.shape[:-1]), 1)
    posterior = GridPosterior(AXES, [edge[0] for edge in edges], density[0], verdicts={})
    cell = torch.stack([edge[0, 1] - edge[0, 0] for edge in edges])
    assert ((posterior.mean - prior.mean).abs() < cell**2 / prior.stddev).all()
    assert ((posterior.variance - prior.variance).abs() < cell**2).all()


def distribution(posterior, theta):
    """P(axis 0 <= theta_0), then P(axis 1 <= theta_1 | cell of theta_0), of theta (N, 2), by masses and edges alone."""
    mass, (first, second) = posterior.mass(), posterior._edges
    found = []
    for a, b in theta.tolist():
        i = min(int((first <= a).sum()) - 1, 10)
        j = min(int((second <= b).sum()) - 1, 10)
        across, up = mass.sum(1), mass[i] / mass[i].sum()
        share = (a - first[i]) / (first[i + 1] - first[i]), (b - second[j]) / (second[j + 1] - second[j])
        found.append([float(across[:i].sum() + share[0] * across[i]), float(up[:j].sum() + share[1] * up[j])])
    return torch.tensor(found).double()


def test_quantiles_from_the_unit_cube():
    posterior = uneven(2)[0]
    unit = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)).double()
    theta = posterior.from_unit(unit.clone())
    assert torch.allclose(distribution(posterior, theta), unit, atol=1e-9)
    assert torch.equal(posterior.from_unit(unit.reshape(4, 50, 2)), theta.reshape(4, 50, 2)), "whatever the shape"
    assert torch.equal(posterior.from_unit(unit[3]), theta[3])
    assert not torch.allclose(distribution(posterior, theta.flip(0)), unit, atol=1e-2), "saboteur: other points"
    ends = posterior.from_unit(torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double())
    assert torch.allclose(ends.T, torch.stack([edge[[0, -1]] for edge in posterior._edges]), atol=1e-12)
    line = uneven(1)[0]
    tails = line.from_unit(torch.tensor([[0.1585], [0.8415]], dtype=torch.float64))[:, 0]
    assert torch.allclose(tails, torch.cat(line.credible_interval()), atol=1e-12)


def test_quantiles_skip_empty_cells():
    density = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    posterior = GridPosterior(AXES[:1], [torch.arange(6.0)], density, verdicts={})
    unit = torch.linspace(1e-9, 1 - 1e-9, 1000, dtype=torch.float64)[:, None]
    theta = posterior.from_unit(unit)
    assert posterior.log_prob(theta).isfinite().all() and (theta.diff(dim=0) > 0).all()
    assert ((theta <= 2) == (unit < 0.5)).all() and theta.min() > 1 and theta.max() < 4


def test_quantiles_in_three_dimensions_have_the_distribution():
    with seeded(1):
        density = torch.randn(4, 5, 6).double() * 2
        unit = torch.rand(20_000, 3).double()
    edges = [torch.arange(k + 1.0) for k in (4, 5, 6)]
    posterior = GridPosterior((*AXES, Parameter("c", 0, 1)), edges, density, verdicts={})
    place = torch.tensor([30, 6, 1]) * posterior.from_unit(unit).long()
    share = torch.bincount(place.sum(1), minlength=120).reshape(4, 5, 6) / 20_000
    pull = [(part - posterior.mass()).abs() / (posterior.mass() / 20_000).sqrt() for part in (share, share.flip(2))]
    assert pull[0].max() < 4 < pull[1].max(), "saboteur: the last axis turned round"
