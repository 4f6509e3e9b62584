import pytest
import torch
from measures import z_of_mean

from sbi_core.inference.mixture import Mixture, centre_and_factor
from sbi_core.seeding import seeded


def points(n=2000, rows=2, dims=2):
    """For each row two clusters of its own, of weights 3 : 1, width .1 and 3 apart."""
    with seeded(1):
        second = torch.rand(rows, n) < 0.25
        centre = torch.where(second[..., None], 3.0, 0.0) + torch.arange(rows)[:, None, None] * 10.0
        return (centre + 0.1 * torch.randn(rows, n, dims)).double(), second


@pytest.mark.parametrize("components", [1, 8])
def test_the_density_integrates_to_one(components):
    u, _ = points(dims=1)
    mixture = Mixture(u, components)
    at = torch.linspace(-20, 40, 60_001, dtype=torch.float64)
    mass = mixture.log_prob(at[None, :, None].expand(2, -1, 1)).exp().sum(1) * (at[1] - at[0])
    assert torch.allclose(mass, torch.ones(2).double(), atol=1e-6)


def test_draws_follow_the_density():
    """E over draws of phi / density is the integral of phi, here of a normal's density: one, and its mean."""
    u, _ = points()
    mixture = Mixture(u)
    with seeded(2):
        drawn = mixture.sample(20_000)
    wide = torch.distributions.Normal(10.0 * torch.arange(2).double()[:, None, None] + 0.05, 0.1)
    each = wide.log_prob(drawn).sum(-1)

    def terms(density):
        weight = (each - density).exp()
        return torch.cat([weight.T, (weight[..., None] * (drawn - wide.mean)).sum(-1).T], 1)

    wanted = torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
    assert z_of_mean(terms(mixture.log_prob(drawn)), wanted) < 4
    assert z_of_mean(terms(mixture.log_prob(drawn) + 0.1), wanted) > 4, "saboteur: a density of another norm"


def test_separate_clusters_are_both_found_with_their_weights():
    u, second = points()
    mixture = Mixture(u)
    with seeded(3):
        drawn = mixture.sample(20_000)
    share = (drawn[..., 0] - 10.0 * torch.arange(2)[:, None] > 1.5).double()
    error = (0.25 * 0.75 / 2000) ** 0.5
    assert ((share.mean(1) - second.double().mean(1)).abs() < error).all(), "closer than the clusters' own scatter"
    between = (drawn[..., 0] - 10.0 * torch.arange(2)[:, None] - 1.5).abs() < 0.5
    assert between.double().mean() < 0.01
    alone = Mixture(u, 1)
    with seeded(3):
        drawn = alone.sample(20_000)
    between = (drawn[..., 0] - 10.0 * torch.arange(2)[:, None] - 1.5).abs() < 0.5
    assert between.double().mean() > 0.1, "saboteur: one normal for both"


def test_columns_of_any_unit_and_constant_ones():
    """Moments within rounding; a column without spread, or as another's copy, breaks nothing."""
    with seeded(1):
        u = torch.randn(1, 500, 2).double() @ torch.tensor([[1.0, 0.3], [0.0, 1.0]]).double()
    scaled = u * torch.tensor([1e-8, 1e8]) + torch.tensor([5.0, -3e9])
    centre, factor = centre_and_factor(scaled)
    covariance = torch.cov(scaled[0].T, correction=0)
    assert torch.allclose(centre, scaled.mean(1))
    assert torch.allclose(factor[0] @ factor[0].T / covariance, torch.ones(2, 2).double(), rtol=1e-3)
    flat = torch.stack([u[..., 0], u[..., 0], torch.full_like(u[..., 0], 7.0)], -1)
    mixture = Mixture(flat)
    with seeded(2):
        assert mixture.sample(10).isfinite().all() and mixture.log_prob(flat).isfinite().all()
