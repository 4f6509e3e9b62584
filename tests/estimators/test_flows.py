"""Flows: exactly normalised, inverted where nflows fails, and dependent on the context in every column."""

import copy

import pytest
import torch
from flow_toys import density, grid, shaken, trained
from measures import z_of_mean
from nflows.transforms import CompositeTransform, MaskedAffineAutoregressiveTransform
from nflows.transforms.made import MADE
from scipy.stats import kstest
from torch.distributions import Normal

from sbi_core.estimators import flows
from sbi_core.estimators.flows import FLOWS, ConditionalFlow
from sbi_core.seeding import seeded

EXAMPLES = {"shaken": lambda kind, width: shaken(kind, width, 1), "trained": trained}


@pytest.mark.parametrize(
    ("width", "state"),
    [(1, "shaken"), (1, "trained"), (2, "shaken"), pytest.param(2, "trained", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("kind", FLOWS)
def test_the_density_integrates_to_one(kind, width, state) -> None:
    flow = EXAMPLES[state](kind, width)
    points, weight = grid(width)
    for at in (-0.7, 0.9)[: 3 - width]:
        assert abs(float(density(flow, at, points) @ weight) - 1) < 1e-3
        if width == 1:
            assert abs(float(density(flow, at, points, slope=False) @ weight) - 1) > 1e-3, "saboteur"


@pytest.mark.parametrize("kind", FLOWS)
def test_float32_integrates_to_one_too(kind) -> None:
    points, weight = grid(1)
    for flow in (shaken(kind, 1, 0), shaken(kind, 1, 3)):
        value = flow.log_prob(points, torch.zeros(len(points), flow.context)).detach()
        assert value.dtype == torch.float32
        assert abs(float(value.double().exp() @ weight) - 1) < 1e-3


@pytest.mark.parametrize("state", EXAMPLES)
@pytest.mark.parametrize("kind", FLOWS)
def test_samples_follow_the_density_at_one_column(kind, state) -> None:
    flow = EXAMPLES[state](kind, 1)
    points, weight = grid(1)
    with seeded(3):
        draws = flow.sample(torch.tensor([[-0.7], [0.9]]), 4000)[..., 0].double()

    def p_value(row, at):
        cumulative = (density(flow, at, points) * weight).cumsum(0) - density(flow, at, points) * weight / 2
        return kstest(torch.sort(draws[row]).values.numpy(), lambda v: interpolated(v, points[:, 0], cumulative)).pvalue

    assert p_value(0, -0.7) > 1e-4 and p_value(1, 0.9) > 1e-4
    assert p_value(0, 0.9) < 1e-4, "saboteur: the density at another context"


def interpolated(v, axis, cumulative):
    v = torch.as_tensor(v)
    upper = torch.searchsorted(axis, v).clamp(1, len(axis) - 1)
    share = (v - axis[upper - 1]) / (axis[upper] - axis[upper - 1])
    return (cumulative[upper - 1] + share * (cumulative[upper] - cumulative[upper - 1])).numpy()


@pytest.mark.parametrize("kind", FLOWS)
def test_samples_have_the_moments_of_the_density_at_two_columns(kind) -> None:
    flow = trained(kind, 2)
    points, weight = grid(2)
    with seeded(4):
        draws = torch.tanh(flow.sample(torch.tensor([[-0.7]]), 5000)[0].double())

    def moments(values):
        return torch.cat([values, values**2, values[:, :1] * values[:, 1:]], 1)

    def exact(at):
        return (density(flow, at, points) * weight) @ moments(torch.tanh(points))

    assert z_of_mean(moments(draws) - exact(-0.7)) < 4
    assert z_of_mean(moments(draws) - exact(-0.6)) > 4, "saboteur: the density at another context"


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("kind", FLOWS)
def test_conditional_means_are_learnt(kind, width) -> None:
    at = torch.linspace(-0.8, 0.8, 5)[:, None]
    first = torch.sin(2 * at)
    mean = torch.cat([first, first**2 + 0.3**2 * (1 + 2 * 0.3**2) - at], 1)[:, :width]

    with seeded(5):
        got = trained(kind, width).sample(at, 2000).mean(1)
    assert (got - mean).abs().max() < 0.3, "a seventh of the range of the means"
    assert (got.flip(0) - mean).abs().max() > 1, "saboteur: another context"


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("kind", ["maf", "nsf"])
def test_every_layer_sees_the_context_in_its_first_column(kind, width) -> None:
    value, context = torch.randn(50, width), torch.randn(50, 2)

    def spread(network, each):
        return float(network(torch.zeros_like(value), context)[:, :each].std(0).max().detach())

    for layer in shaken(kind, width, 2).transform._transforms[::2]:
        conditioner = layer.autoregressive_net
        assert spread(conditioner, conditioner.each) > 1e-3
        before = conditioner(value, context).view(50, width, -1)
        after = conditioner(value + torch.eye(width)[-1], context).view(50, width, -1)
        assert torch.equal(before, after), "the last column feeds none"
    if width > 1:
        assert spread(MADE(width, 16, 2, output_multiplier=2), 2) == 0, "saboteur: the network as nflows has it"


@pytest.mark.parametrize("width", [2, 3, 5, 8, 11])
def test_coupling_layers_bring_every_pair_of_columns_together(width) -> None:
    digits = (width - 1).bit_length()
    moving = torch.tensor([flows._moving(width, k) for k in range(2 * digits)]).bool()
    met = (moving[:, :, None] & ~moving[:, None]).any(0)
    assert (met | torch.eye(width).bool()).all()
    if width > 2:
        assert not ((moving[:2, :, None] & ~moving[:2, None]).any(0) | torch.eye(width).bool()).all(), "saboteur: two"


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("kind", FLOWS)
def test_there_and_back(kind, width) -> None:
    flow = shaken(kind, width, 2)
    with seeded(6):
        value, context = 4 * torch.randn(500, width), torch.randn(500, 2)
    assert value.abs().max() > 2 * 5.0, "far beyond the splines"
    noise = flow.transform(value, context)[0].double()
    back = copy.deepcopy(flow.transform).double().inverse(noise, context.double())[0]
    assert (back - value).abs().max() < 1e-4 * value.abs().max()
    other = copy.deepcopy(flow.transform).double().inverse(noise, -context.double())[0]
    assert (other - value).abs().max() > 0.1, "saboteur: another context"


@pytest.mark.parametrize("kind", FLOWS)
def test_an_untrained_flow_is_the_standard_normal(kind) -> None:
    for seed in range(20):
        with seeded(seed):
            flow = ConditionalFlow(10, 3, kind=kind, transforms=3)
            draws = flow.sample(torch.randn(4, 3), 20).flatten(0, 1)
            value, context = 3 * torch.randn(50, 10), torch.randn(50, 3)
        assert draws.abs().max() < 6
        got = flow.log_prob(value, context)
        assert torch.allclose(got, Normal(0, 1).log_prob(value).sum(-1), atol=1e-3)


def test_layers_as_nflows_starts_them_are_far_from_it() -> None:
    """What the test above would catch."""
    with seeded(0):
        chain = CompositeTransform([MaskedAffineAutoregressiveTransform(10, 50, 3) for _ in range(3)])
        assert chain.inverse(torch.randn(200, 10), torch.randn(200, 3))[0].abs().max() > 1e3
