"""The parts: residual networks, fresh weights, pooling of sets."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sbi_core.errors import InputError
from sbi_core.estimators.networks import Attention, Moments, Residual, Sets, cnn, mlp, reset, residual_mlp, resnet


def spread(network):
    """How much outputs differ from row to row, relative to the inputs."""
    with torch.no_grad():
        return float(network(torch.randn(200, 5)).std(0).mean())


def test_residual_mlp_is_a_sum_of_skip_and_branch() -> None:
    network = residual_mlp(5, (8, 8, 16), 3)
    assert network(torch.randn(2, 7, 5)).shape == (2, 7, 3)
    x, blocks = torch.randn(4, 5), [part for part in network if isinstance(part, Residual)]
    assert [isinstance(block.skip, nn.Identity) for block in blocks] == [True, True, False]
    for block in blocks:
        for p in block.branch[-1].parameters():
            p.data.zero_()
    skips_only = network[-1](nn.functional.silu(blocks[-1].skip(network[0](x))))
    torch.testing.assert_close(network(x), skips_only)


def test_residual_mlp_carries_its_input_through_many_layers() -> None:
    torch.manual_seed(0)
    assert spread(residual_mlp(5, 12 * [32], 3)) > 0.03 > 1e4 * spread(mlp(5, 24 * [32], 3))


def test_residual_mlp_needs_a_width() -> None:
    with pytest.raises(InputError, match=r"hidden is empty.*hidden=\(64, 64\)"):
        residual_mlp(5, (), 3)


@pytest.mark.parametrize("hidden", [(0,), (64, -1), (1.5,), ("64",), "64"])
@pytest.mark.parametrize("build", [mlp, residual_mlp])
def test_widths_are_whole_numbers(build, hidden) -> None:
    with pytest.raises(InputError, match=r"hidden = .*expected whole numbers of at least 1"):
        build(5, hidden, 3)


@pytest.mark.parametrize(
    ("build", "shape"), [(cnn, (2, 17)), (cnn, (1, 1)), (cnn, (3, 1, 40)), (resnet, (3, 1, 40)), (resnet, (1, 1, 1))]
)
def test_convolutions_take_any_size(build, shape) -> None:
    assert build(shape, 4, 6)(torch.randn(3, *shape)).shape == (3, 6)


@pytest.mark.parametrize(("build", "width", "least", "most"), [(cnn, 16, 80_000, 160_000), (resnet, 32, 3e5, 1e6)])
def test_convolutions_stay_small(build, width, least, most) -> None:
    for side in (32, 64, 128):
        size = sum(p.numel() for p in build((1, side, side), width, 32).parameters())
        assert least < size < most * (1 if side < 128 else 1.5)


def test_resnet_sees_brightness_though_its_branches_are_normalised() -> None:
    torch.manual_seed(0)
    network, x = resnet((1, 16, 16), 8, 4), torch.randn(1, 1, 16, 16)
    faint, bright = network(3 * x) - network(x), network(30 * x) - network(x)
    assert bright.norm() > 3 * faint.norm() > 0.1
    for block in network:
        if isinstance(block, Residual):
            block.skip[1].weight.data.zero_()
    faint, bright = network(3 * x) - network(x), network(30 * x) - network(x)
    assert not bright.norm() > 3 * faint.norm() > 0.1


class Queries(nn.Module):
    """Holds a parameter that nothing redraws."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.queries = nn.Parameter(torch.randn(3))


class Drawn(Queries):
    def reset_parameters(self) -> None:
        nn.init.normal_(self.queries)
        nn.init.constant_(self.inner.bias, 0.25)


def values(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_reset_draws_what_building_draws() -> None:
    torch.manual_seed(1)
    network = mlp(3, (8, 8), 2)
    fresh = values(network)
    torch.manual_seed(2)
    reset(network)
    assert bool((values(network) != fresh).all())
    torch.manual_seed(1)
    reset(network)
    assert torch.equal(values(network), fresh)


def test_reset_lets_the_outer_module_have_the_last_word() -> None:
    module = Drawn()
    before = module.queries.detach().clone()
    reset(module)
    assert module.inner.bias.tolist() == [0.25, 0.25] and bool((module.queries != before).all())


@pytest.mark.parametrize("module", [Queries(), weight_norm(nn.Linear(2, 2))], ids=["queries", "weight norm"])
def test_reset_says_what_it_cannot_redraw(module) -> None:
    before = values(module)
    with pytest.raises(InputError, match=r"no reset_parameters\(\) redraws (queries|parametrizations.*original0)"):
        reset(module)
    assert torch.equal(values(module), before)


def test_reset_keeps_what_is_frozen() -> None:
    network = nn.Sequential(Queries().requires_grad_(False), nn.BatchNorm1d(2).requires_grad_(False), nn.Linear(2, 1))
    network[1].running_mean.fill_(5.0)
    before = values(network)
    reset(network)
    same = values(network) == before
    assert bool(same[:-3].all()) and not bool(same[-3:].any()) and network[1].running_mean.tolist() == [5.0, 5.0]


def test_reset_knows_the_attention_of_torch() -> None:
    module = nn.MultiheadAttention(4, 2)
    before = module.in_proj_weight.detach().clone()
    reset(module)
    assert bool((module.in_proj_weight != before).all())


def test_moments_are_mean_and_sum() -> None:
    events, present = torch.randn(3, 4, 5).double(), torch.arange(4) < torch.tensor([[4], [1], [0]])
    mean, total = Moments(5)(events, present).split(5, -1)
    expected = torch.stack([events[0].mean(0), events[1, 0], torch.zeros(5).double()])
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(total, expected * torch.tensor([[4], [1], [0]]) / 4)


def test_attention_is_that_of_torch() -> None:
    """With equal weights, `nn.MultiheadAttention` gives the same, where any event is present."""
    torch.manual_seed(0)
    pool, reference = Attention(8, 2, 3).double(), nn.MultiheadAttention(8, 2, batch_first=True).double()
    eye, zero = torch.eye(8).double(), torch.zeros(8).double()
    reference.in_proj_weight.data = torch.cat([eye, pool.key.weight.data, pool.value.weight.data])
    reference.in_proj_bias.data = torch.cat([zero, zero, pool.value.bias.data])
    reference.out_proj.weight.data, reference.out_proj.bias.data = eye, zero
    events, present = torch.randn(4, 5, 8).double(), torch.arange(5) < torch.tensor([[5], [2], [1], [0]])
    queries = pool.queries.flatten(1).expand(4, -1, -1)
    expected = reference(queries, events, events, key_padding_mask=~present)[0].flatten(1)
    torch.testing.assert_close(pool(events, present)[:3], expected[:3])
    assert bool((pool(events, present)[3] == 0).all()) and not torch.allclose(pool(events, present)[1], expected[0])


@pytest.mark.parametrize("pool", [Moments(4), Attention(4, 2, 2)])
def test_sets_read_the_number_of_events(pool) -> None:
    """Rows of n equal events have the same mean, and differ all the same."""
    network, x = Sets(6, 2, pool, 3), torch.ones(6, 6, 2)
    seen = network(x, torch.arange(1, 7))
    assert not torch.isclose(seen[1:], seen[:-1]).any()
    torch.testing.assert_close(network(x, torch.full((6,), 4)), seen[3].expand(6, -1))
