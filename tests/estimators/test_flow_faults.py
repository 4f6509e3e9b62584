"""Where nflows fails, and what a flow refuses."""

import copy

import pytest
import torch
from flow_toys import SMALL, shaken, trained
from measures import z_of_mean
from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform
from nflows.transforms.splines.rational_quadratic import DEFAULT_MIN_BIN_HEIGHT, DEFAULT_MIN_DERIVATIVE
from safetensors.torch import load, save
from torch.autograd.gradcheck import GradcheckError

from sbi_core.errors import InputError
from sbi_core.estimators import flows, splines
from sbi_core.estimators.flows import FLOWS, ConditionalFlow
from sbi_core.seeding import seeded


def knots(layer):
    """Upper ends of the inner bins of a spline coupling that reads nothing but its last bias, (columns, 7)."""
    heights = layer.transform_net.final_layer.bias.detach().view(-1, 23)[:, 8:16]
    heights = torch.softmax(heights / layer.transform_net.hidden_features**0.5, -1)
    low = DEFAULT_MIN_BIN_HEIGHT
    return 10 * (low + (1 - 8 * low) * heights).cumsum(-1)[:, :7] - 5


def test_noise_next_to_a_knot_is_inverted() -> None:
    with seeded(7):
        flow = ConditionalFlow(1000, 0, kind="spline_coupling", transforms=2, hidden=4)
        layer = flow.transform._transforms[0]
        layer.transform_net.final_layer.bias.data = 20 * torch.randn(500 * 23)
        places = torch.randint(0, 7, (100, 500))
        noise = torch.zeros(100, 1000)
        ulps = torch.randint(-8, 9, (100, 500)) * 2.4e-7
        noise[:, layer.transform_features] = knots(layer).T.gather(0, places) + ulps
    context = torch.zeros(100, 1)
    theirs = PiecewiseRationalQuadraticCouplingTransform._piecewise_cdf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(layer), "_piecewise_cdf", theirs)
        with pytest.raises(AssertionError):
            layer.inverse(noise, context)  # saboteur: nflows' own, in float32
    assert layer.inverse(noise, context)[0].isfinite().all()
    value = copy.deepcopy(layer).double().inverse(noise.double(), context.double())[0]
    assert value.isfinite().all()
    assert (layer.double()(value, context.double())[0] - noise).abs().max() < 1e-6


@pytest.mark.parametrize("kind", FLOWS)
def test_gradients_row_by_row_are_those_of_the_sum(kind) -> None:
    flow = shaken(kind, 2, 3)
    with seeded(9):
        value, context = torch.randn(20, 2).requires_grad_(), torch.randn(20, 3)

    def one(row, given):
        return flow.log_prob(row[None], given[None])[0]

    every = torch.autograd.grad(flow.log_prob(value, context).sum(), value)[0]
    single = torch.func.vmap(torch.func.grad(one))(value.detach(), context)
    assert torch.allclose(single, every, atol=1e-4)
    assert not torch.allclose(single, every.roll(1, 0), atol=1e-1), "saboteur: other rows"


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("kind", FLOWS)
def test_bad_rows_are_nan_and_touch_no_other(kind, width) -> None:
    flow = shaken(kind, width, 2)
    with seeded(8):
        value, context = torch.randn(20, width), torch.randn(20, 2)
    for k, bad in enumerate((torch.nan, torch.inf, -torch.inf)):
        value[k, k % width], context[3 + k, k % 2] = bad, bad
    got = flow.log_prob(value, context)
    assert got[:6].isnan().all()
    assert torch.allclose(got[6:], flow.log_prob(value[6:], context[6:]), atol=1e-5)
    assert not torch.allclose(got[6:], flow.log_prob(value[6:], -context[6:]), atol=1e-5), "saboteur"

    def slopes(result):
        found = torch.autograd.grad(result.sum(), list(flow.parameters()), retain_graph=True)
        return torch.cat([slope.flatten() for slope in found])

    alone = slopes(flow.log_prob(value[6:], context[6:]))
    assert torch.allclose(slopes(got[6:]), alone, rtol=1e-3, atol=1e-3)
    assert torch.allclose(slopes(got.nan_to_num()), alone, rtol=1e-3, atol=1e-3)
    late = -(flow.transform(value, context)[0] ** 2).sum(-1)
    assert slopes(torch.where(torch.arange(20) < 6, 0.0, late)).isnan().any(), (
        "saboteur: rows dropped after the network"
    )
    draws = flow.sample(context, 5)
    assert draws[3:6].isnan().all() and draws[6:].isfinite().all()


@pytest.mark.parametrize("kind", FLOWS)
def test_weights_that_broke_down_give_nan_not_an_exception(kind) -> None:
    flow = shaken(kind, 2, 1)
    next(flow.parameters()).data.fill_(torch.nan)
    assert flow.log_prob(torch.zeros(3, 2), torch.zeros(3, 1)).isnan().all()
    assert flow.sample(torch.zeros(3, 1), 4).isnan().all()


def test_a_number_too_large_for_float32_is_a_bad_row() -> None:
    value = torch.tensor([[0.0], [1e300]], dtype=torch.float64)
    assert shaken("maf", 1, 0).log_prob(value, torch.zeros(2, 0)).isnan().tolist() == [False, True]


@pytest.mark.parametrize("value", [-1e4, -5.0, 0.0, 5.0, 1e4])
@pytest.mark.parametrize("kind", FLOWS)
def test_values_at_the_edge_and_far_out_are_finite(kind, value) -> None:
    flow = shaken(kind, 2, 1)
    at = torch.full((1, 2), value, requires_grad=True)
    result = flow.log_prob(at, torch.zeros(1, 1))
    assert result.isfinite().all() and torch.autograd.grad(result.sum(), at)[0].isfinite().all()


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("kind", FLOWS)
def test_log_prob_is_differentiable_twice(kind, width) -> None:
    flow = shaken(kind, width, 2, transforms=2, hidden=8).double()
    with seeded(9):
        value, context = (torch.randn(2, columns).double().requires_grad_() for columns in (width, 2))
    assert torch.autograd.gradcheck(flow.log_prob, (value, context))
    assert torch.autograd.gradgradcheck(flow.log_prob, (value, context))
    with pytest.raises(GradcheckError):  # saboteur: the context enters, its slope does not
        torch.autograd.gradcheck(lambda v, c: flow.log_prob(v, c.detach()) + 0 * c.sum(), (value, context))


@pytest.mark.parametrize("kind", FLOWS)
def test_one_gradient_of_the_sum_is_the_gradient_of_every_row(kind) -> None:
    """And a loss on scores trains every weight."""
    flow = shaken(kind, 2, 3)
    with seeded(10):
        value, context = torch.randn(6, 2), torch.randn(6, 3).requires_grad_()
    scores = torch.autograd.grad(flow.log_prob(value, context).sum(), context, create_graph=True)[0]
    for k in range(6):
        row = context[k : k + 1].detach().requires_grad_()
        alone = torch.autograd.grad(flow.log_prob(value[k : k + 1], row), row)[0]
        assert torch.allclose(scores[k], alone[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4), "saboteur: the score of another row"
    slopes = torch.autograd.grad((scores**2).sum(), list(flow.parameters()), allow_unused=True)
    assert all(slope is None or slope.isfinite().all() for slope in slopes)
    assert sum(slope is not None and bool((slope != 0).any()) for slope in slopes) > len(slopes) / 2


@pytest.mark.parametrize("kind", FLOWS)
def test_samples_stay_with_their_context(kind, monkeypatch) -> None:
    """nflows' samplers join the wrong axis when they work in batches."""
    flow, context = trained(kind, 2), torch.tensor([[-0.9], [0.0], [0.9]])
    with seeded(11):
        draws = flow.sample(context, 500)
    monkeypatch.setattr(flows, "_ROWS", 411)
    with seeded(11):
        parts = flow.sample(context, 500)
    assert draws.shape == (3, 500, 2) and draws.dtype == torch.float32
    assert torch.allclose(draws, parts, atol=1e-5)
    with seeded(12):
        alone = torch.cat([flow.sample(context[k : k + 1], 500) for k in range(3)])
    assert z_of_mean((draws - alone).transpose(0, 1)) < 4
    assert z_of_mean((draws.flip(0) - alone).transpose(0, 1)) > 4, "saboteur: contexts in another order"


@pytest.mark.parametrize("kind", FLOWS)
def test_double_weights_give_double_results(kind) -> None:
    flow = shaken(kind, 2, 1)
    exact = copy.deepcopy(flow).double()
    context = torch.tensor([[0.3], [-0.2]])
    with seeded(13):
        draws = flow.sample(context, 50)
    with seeded(13):
        twins = exact.sample(context, 50)
    assert draws.dtype == torch.float32 and twins.dtype == torch.float64
    assert torch.equal(draws, twins.float())
    value, given = twins.flatten(0, 1), context.repeat_interleave(50, 0)
    assert exact.log_prob(value, given).dtype == torch.float64
    assert torch.allclose(exact.log_prob(value, given).float(), flow.log_prob(value, given), atol=1e-3)


@pytest.mark.parametrize("kind", FLOWS)
def test_weights_come_from_the_seed_and_go_through_a_file(kind) -> None:
    def fresh(seed):
        with seeded(seed):
            return ConditionalFlow(3, 2, kind=kind, **SMALL)

    def same(one, two):
        pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    flow, kept = fresh(1), shaken(kind, 3, 2)
    assert same(flow, fresh(1)) and not same(flow, fresh(2))
    weights = list(kept.parameters())
    read = fresh(2)
    read.load_state_dict(load(save(kept.state_dict())))
    value, context = torch.randn(5, 3), torch.randn(5, 2)
    assert torch.equal(read.log_prob(value, context), kept.log_prob(value, context))
    with seeded(1):
        kept.reset()
    assert same(flow, kept), "a reset flow is a new one"
    assert all(a is b for a, b in zip(weights, kept.parameters(), strict=True)), "an optimiser keeps its weights"


@pytest.mark.parametrize("kind", FLOWS)
def test_no_rows_and_no_context(kind) -> None:
    flow = shaken(kind, 2, 0)
    assert flow.log_prob(torch.zeros(0, 2), torch.zeros(0, 0)).shape == (0,)
    assert flow.sample(torch.zeros(0, 0), 3).shape == (0, 3, 2)
    assert flow.sample(torch.zeros(2, 0), 3).shape == (2, 3, 2)


def test_the_slope_that_starts_a_layer_is_one() -> None:
    start = torch.tensor(splines.SLOPE_ONE, dtype=torch.float64)
    assert splines.FLOOR == DEFAULT_MIN_DERIVATIVE
    assert abs(float(torch.nn.functional.softplus(start)) + splines.FLOOR - 1) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "nfs"}, "did you mean 'nsf'"),
        ({"width": 0}, "width = 0, expected at least 1"),
        ({"transforms": 0}, "transforms = 0"),
        ({"hidden": 0}, "hidden = 0"),
        ({"bins": 0}, "bins = 0"),
        ({"bins": 1001}, "bins = 1001, expected at most 1000"),
        ({"context": -1}, "context = -1"),
        ({"tail_bound": 100.0}, "tail_bound = 100.0, expected 1 to 16"),
        ({"tail_bound": float("nan")}, "tail_bound = nan"),
        ({"kind": "affine_coupling", "transforms": 1}, "expected 2 or more"),
    ],
)
def test_options_are_guarded(options, message) -> None:
    given = {"width": 2, "context": 1} | options
    with pytest.raises(InputError, match=message):
        ConditionalFlow(given.pop("width"), given.pop("context"), **given)


@pytest.mark.parametrize(("tail_bound", "bins"), [(1.0, 1), (16.0, 40)])
def test_a_value_on_the_last_knot_is_found(tail_bound, bins) -> None:
    flow = shaken("nsf", 1, 0, tail_bound=tail_bound, bins=bins)
    assert flow.log_prob(torch.tensor([[tail_bound], [-tail_bound]]), torch.zeros(2, 0)).isfinite().all()


def test_shapes_are_guarded() -> None:
    flow = ConditionalFlow(2, 3)
    for value, context, message in [
        ((4, 1), (4, 3), r"value has shape \(4, 1\), expected \(N, 2\)"),
        ((2,), (1, 3), r"value has shape \(2,\)"),
        ((4, 2), (4, 2), r"context has shape \(4, 2\), expected \(N, 3\)"),
        ((4, 2), (1, 3), "value has 4 rows, context 1"),
    ]:
        with pytest.raises(InputError, match=message):
            flow.log_prob(torch.zeros(value), torch.zeros(context))
    with pytest.raises(InputError, match=r"context has shape \(3,\)"):
        flow.sample(torch.zeros(3), 5)
    with pytest.raises(InputError, match="n = 0"):
        flow.sample(torch.zeros(1, 3), 0)
