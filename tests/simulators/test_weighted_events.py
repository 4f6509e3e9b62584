import math
import warnings

import pytest
import torch
from measures import z_of_mean

from sbi_core import (
    Events,
    InputError,
    MissingGold,
    Parameter,
    SbiWarning,
    StoreError,
    UniformPrior,
    check_gold,
    joint_log_ratio,
    joint_score,
    simulate,
)
from sbi_core.seeding import seeded
from sbi_core.simulators import ContactInteraction, WeightedEvents

PROCESS = ContactInteraction(reach=0.2)


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def library(n=20_000, seed=1, benchmarks=None, **options):
    made = PROCESS.generate(n, benchmarks, seed=seed)
    return WeightedEvents(made.x, made.weights, made.benchmarks, PROCESS.parameters, **options), made


@pytest.fixture(scope="module")
def world():
    return library()


@pytest.fixture(scope="module")
def rows(world):
    return simulate(world[0], 3000, seed=1, progress=False)


def thetas(count, seed=2):
    with seeded(seed):
        return PROCESS.prior.sample(torch.Size([count]))


def which(events, x):
    """Number of the stored event that each x is; they are all different."""
    order = events.x[:, 0].argsort()
    place = torch.searchsorted(events.x[order, 0].contiguous(), x[:, 0].contiguous())
    assert torch.equal(events.x[order[place]], x)
    return order[place]


@pytest.mark.parametrize("surplus", [0, 5])
def test_gold_is_that_of_the_amplitudes(surplus):
    """Joint ratios and scores from weights at benchmarks, against those of the process's own formula."""
    points = torch.cat([PROCESS.benchmarks(), thetas(surplus, seed=8)])
    events, made = library(2000, 3, points)
    found = simulate(events, 100, seed=4, progress=False)
    latents = made.latents[which(events, found.x)]

    def analytic(theta):
        total = torch.stack([PROCESS.weight(one, made.latents).sum() for one in theta])
        return PROCESS.weight(theta, latents).log() - total.log()

    others = thetas(100)
    exact = analytic(found.theta) - analytic(others)
    assert (joint_log_ratio(events, found, found.theta, others) - exact).abs().max() < 1e-9
    leaf = found.theta.clone().requires_grad_()
    slope = torch.autograd.grad(analytic(leaf).sum(), leaf)[0]
    assert ((joint_score(events, found) - slope).abs() / slope.abs().clamp(min=1)).max() < 1e-9
    shape_only = torch.autograd.grad(PROCESS.weight(leaf, latents).log().sum(), leaf)[0]
    assert ((joint_score(events, found) - shape_only).abs() / slope.abs().clamp(min=1)).max() > 0.1, (
        "saboteur: without the cross-section"
    )


def test_z_is_of_order_one(rows):
    assert rows.z.shape == (3000, 6) and rows.z.dtype == torch.float64
    assert 0.05 < float(rows.z.abs().mean()) < 20


def test_each_event_comes_as_often_as_its_weight():
    """How often each of 40 events is drawn at one theta."""
    events, made = library(40, 5)
    theta = at(0.1, -0.15)
    found, _ = events.sample(theta.expand(100_000, 2), None, torch.Generator().manual_seed(1))
    came = torch.bincount(which(events, found), minlength=40).double()

    def worst(theta):
        weight = PROCESS.weight(theta, made.latents)
        expected = 100_000 * weight / weight.sum()
        often = expected > 20
        assert often.sum() > 15
        return float(((came - expected).abs() / expected.sqrt())[often].max())

    assert worst(theta) < 4 < worst(theta + 0.05)


def test_thetas_of_one_call_do_not_mix(world):
    """E[1{event in a part} - its probability at the row's theta] = 0, weighted with that or with theta too."""
    events, made = world
    theta = thetas(20_000)
    found, z = events.sample(theta, None, torch.Generator().manual_seed(2))
    part = made.x[:, 0] > 0.0  # above a TeV
    monomials = events.morphing.monomials(theta)
    chance = (monomials @ events.coefficients[part].sum(0)) / events.rate(theta)
    high = (found[:, 0] > 0.0).double()
    unit = torch.stack([torch.ones_like(chance), chance - chance.mean(), theta[:, 0], theta[:, 1]], 1)
    assert z_of_mean((high - chance)[:, None] * unit) < 4
    assert z_of_mean((high - chance.flip(0))[:, None] * unit) > 4, "saboteur: another row's theta"
    assert torch.allclose(z[:, 0] / z[0, 0], events.coefficients[which(events, found)][:, 0] / z[0, 0] / events._unit)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65])
def test_every_event_of_a_library_of_any_size_is_drawn(n):
    x = torch.arange(n).double()[:, None]
    events = WeightedEvents(x, torch.ones(n, 1), [[0.0]], [Parameter("a", -1, 1)], degree=0)
    found, _ = events.sample(torch.zeros(200 * n, 1), None, torch.Generator().manual_seed(3))
    often = torch.bincount(found[:, 0].long(), minlength=n).double()
    assert len(often) == n and float((often - 200).abs().max()) < 4.5 * 200**0.5


def test_events_of_no_weight_never_come():
    x = torch.arange(100).double()[:, None]
    weights = (torch.arange(100) % 3 == 1).double()[:, None] * torch.ones(1, 2)
    events = WeightedEvents(x, weights, [[0.0], [1.0]], [Parameter("a", 0, 1)], degree=1)
    found, z = events.sample(torch.rand(5000, 1), None, torch.Generator().manual_seed(4))
    assert (found[:, 0] % 3 == 1).all() and (events.log_joint(torch.zeros(5000, 1), found, z, None) > -10).all()
    never = events.log_joint(torch.zeros(1, 1), x[:1], events.coefficients[:1], None)
    assert torch.isneginf(never).all()


def test_rate_is_the_cross_section(world):
    events, made = world
    theta = thetas(40)
    assert torch.allclose(events.rate(theta), PROCESS.weight(theta[:, None], made.latents).sum(1), rtol=1e-12)
    error = events.rate(theta) / events.effective_events(theta).sqrt()
    assert ((events.rate(theta) - PROCESS.rate(theta)).abs() / error).max() < 4
    assert ((events.rate(theta) - 1.1 * PROCESS.rate(theta)).abs() / error).max() > 4, "saboteur: 10% more"


def test_rate_score_is_the_slope(world):
    events, _ = world
    theta, step = thetas(50), 1e-5
    for d in (0, 1):
        move = step * torch.eye(2).double()[d]
        slope = (events.rate(theta + move).log() - events.rate(theta - move).log()) / (2 * step)
        assert torch.allclose(events.rate_score(theta)[:, d], slope, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(events.rate_score(theta)[:, 1 - d], slope, rtol=1e-2, atol=1e-2)


class WithoutRate(WeightedEvents):
    """Saboteur: log w alone, the cross-section forgotten."""

    def log_joint(self, theta, x, z, design):
        return (self.morphing.monomials(theta) * z).sum(-1).log()


class Neighbour(WeightedEvents):
    """Saboteur: each row has the weights of the one before."""

    def log_joint(self, theta, x, z, design):
        return super().log_joint(theta, x, z.roll(1, 0), design)


class Mirrored(WeightedEvents):
    """Saboteur: the second parameter with the other sign."""

    def log_joint(self, theta, x, z, design):
        return super().log_joint(theta * at(1.0, -1.0), x, z, design)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_gold_passes(world, seed):
    check_gold(world[0], simulate(world[0], 4000, seed=seed, progress=False)).raise_if_failed()


@pytest.mark.parametrize("saboteur", [WithoutRate, Neighbour, Mirrored])
def test_wrong_gold_fails(world, saboteur):
    made = world[1]
    wrong = saboteur(made.x, made.weights, made.benchmarks, PROCESS.parameters)
    assert not check_gold(wrong, simulate(world[0], 4000, seed=1, progress=False)).passed


def test_latents_are_needed_for_gold(world):
    with pytest.raises(MissingGold, match="'WeightedEvents'"):
        world[0].log_joint(at(0.0, 0.0)[None], None, None, None)


def test_effective_events_are_kish(world):
    events, made = world
    weight = PROCESS.weight(thetas(20)[:, None], made.latents)
    exact = weight.sum(1) ** 2 / weight.square().sum(1)
    assert torch.allclose(events.effective_events(thetas(20)), exact, rtol=1e-9)
    even = WeightedEvents(torch.zeros(7, 1), torch.ones(7, 1), [[0.0]], [Parameter("a", 0, 1)], degree=0)
    assert float(even.effective_events(at(0.5))) == pytest.approx(7) and even.independent_rows() == pytest.approx(7)


def test_independent_rows_are_how_seldom_two_are_one_event():
    events, _ = library(300, 6)
    theta = thetas(60_000, seed=3)
    first, second = (events.sample(part, None, torch.Generator().manual_seed(5))[0] for part in theta.split(30_000))
    second = second[torch.randperm(30_000, generator=torch.Generator().manual_seed(6))]
    same = (first[:, 0] == second[:, 0]).double()
    assert z_of_mean(same, 1 / events.independent_rows()) < 4
    assert z_of_mean(same, 1.5 / events.independent_rows()) > 4, "saboteur"
    one = at(0.1, 0.1)
    assert events.independent_rows(one) == pytest.approx(float(events.effective_events(one)), rel=1e-9)


def test_campaigns_beyond_the_library_warn():
    events, _ = library(300, 6)
    few = math.floor(events.independent_rows())
    with pytest.warns(SbiWarning, match=f"{few + 1} rows are drawn from a library that is worth {few} independent"):
        simulate(events, few + 1, seed=1, progress=False)
    with pytest.warns(SbiWarning, match="test on a split's part"):
        simulate(Events(events, 10), few // 10 + 1, seed=1, progress=False)
    with pytest.warns(SbiWarning, match="rows repeat"):
        simulate(events, few, proposal=at(0.2, -0.2), seed=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(events, few, seed=1, progress=False)


def test_split_parts_the_library(world):
    events, _ = world
    first, second = events.split(0.25, seed=1)
    assert (len(first), len(second)) == (15_000, 5_000)
    taken = torch.cat([which(events, part.x) for part in (first, second)])
    assert torch.equal(taken.sort().values, torch.arange(20_000))
    for part in (first, second):
        error = part.rate(thetas(20)) / part.effective_events(thetas(20)).sqrt()
        assert ((part.rate(thetas(20)) - PROCESS.rate(thetas(20))).abs() / error).max() < 4
    again = events.split(0.25, seed=1)
    assert torch.equal(again[1].x, second.x) and not torch.equal(events.split(0.25, seed=2)[1].x, second.x)
    with pytest.raises(InputError, match="leaves both parts some"):
        events.split(0.0, seed=1)


def test_runs_count_events_of_the_cross_section(world):
    events, _ = world
    world_of_runs = Events(events, luminosity=5.0)
    found = simulate(world_of_runs, 120, seed=1, progress=False)
    expected = 5.0 * events.rate(found.theta)
    assert z_of_mean(found.n_events - expected) < 4 < z_of_mean(found.n_events - 1.5 * expected)
    check_gold(world_of_runs, found).raise_if_failed()


def test_sampling_weights_multiply():
    made = PROCESS.generate(200, seed=7)
    each = torch.linspace(0.1, 2.0, 200, dtype=torch.float64)
    options = {"benchmarks": made.benchmarks, "parameters": PROCESS.parameters}
    given = WeightedEvents(made.x, made.weights, sampling_weights=each, **options)
    by_hand = WeightedEvents(made.x, made.weights * each[:, None], **options)
    assert torch.equal(given.coefficients, by_hand.coefficients)
    assert not torch.allclose(given.coefficients, WeightedEvents(made.x, made.weights, **options).coefficients)


def test_store_knows_its_library(world, tmp_path):
    events, made = world
    store = simulate(events, 1000, store=tmp_path / "rows", seed=1, progress=False)
    more = simulate(events, 2000, store=tmp_path / "rows", seed=1, progress=False)
    assert torch.equal(more[:1000].x, store[:1000].x) and len(more) == 2000
    other = WeightedEvents(made.x, made.weights * 1.01, made.benchmarks, PROCESS.parameters)
    with pytest.raises(StoreError, match="coefficients"):
        simulate(other, 3000, store=tmp_path / "rows", progress=False)


def test_prior_and_images():
    """Another prior, x of any shape and type."""
    narrow = UniformPrior([Parameter("a", 0.4, 0.6)])
    x = torch.rand(50, 2, 3, generator=torch.Generator().manual_seed(1))
    events = WeightedEvents(x, torch.ones(50, 2), [[0.0], [1.0]], [Parameter("a", 0, 1)], degree=1, prior=narrow)
    found = simulate(events, 40, seed=1, progress=False)
    assert found.x.shape == (40, 2, 3) and found.x.dtype == torch.float32
    assert float(found.theta.min()) > 0.4 and float(found.theta.max()) < 0.6


ONE = {"benchmarks": [[0.0], [1.0]], "parameters": [Parameter("a", 0, 1)], "degree": 1}


@pytest.mark.parametrize(
    ("x", "weights", "options", "text"),
    [
        (torch.zeros(3), torch.ones(3, 2), {}, r"x has shape \(3,\).* needs x\[:, None\]"),
        (torch.zeros(3, 1), torch.ones(2, 3), {}, r"weights \(2, 3\): expected \(N, ...\) and \(N, 2\)"),
        (torch.full((3, 1), torch.nan), torch.ones(3, 2), {}, "x: 3 events are not finite, the first is 0"),
        (torch.zeros(3, 1), torch.ones(3, 2) / 0, {}, "weights: 3 events are not finite"),
        (torch.zeros(3, 1), torch.ones(3, 2), {"negative": "drop"}, "negative = 'drop', expected 'error' or 'cells'"),
        (torch.zeros(3, 1), torch.ones(3, 2), {"sampling_weights": [1.0]}, r"shape \(1,\), expected \(3,\)"),
        (torch.zeros(3, 1), torch.zeros(3, 2), {}, "weights: those of all 3 events are zero"),
        (torch.zeros(3, 1), torch.ones(3, 0), {"benchmarks": torch.zeros(0, 1)}, r"benchmarks have shape \(0, 1\)"),
        (torch.zeros(3, 1), torch.ones(3, 2), {"benchmarks": [[0.0], [1.0, 2.0]]}, "benchmarks: expected an array of"),
        (torch.zeros(3, 1), torch.ones(3, 2), {"degree": [[0], [1, 2]]}, "expected a whole number, the total degree"),
        (torch.zeros(3, 1), torch.ones(3, 2), {"degree": 1000}, "'a\\^20' and 980 others. Add 999 more"),
        (torch.zeros(3, 1), torch.ones(3, 2), {"degree": 10**9}, "1,000,000,001 coefficients, expected at most 5,000"),
        (
            torch.zeros(3, 1),
            torch.ones(3, 2),
            {"parameters": ONE["parameters"] * 2},
            "expected at least one, different n",
        ),
        (torch.zeros(3, 1), torch.ones(3, 2), {"degree": 2}, "2 points determine 2 of the 3 coefficients"),
    ],
)
def test_input_that_cannot_be_used_is_refused(x, weights, options, text):
    with pytest.raises(InputError, match=text):
        WeightedEvents(x, weights, **(ONE | options))


def test_thetas_that_were_not_checked_are_refused():
    events = WeightedEvents(torch.zeros(3, 1), [[1.0, 0.0]] * 3, **ONE)
    with pytest.raises(InputError, match=r"theta: a from 1\.5 to 1\.5, but weights are checked from 0 to 1 only"):
        simulate(events, 2, proposal=at(1.5), progress=False)
    with pytest.raises(InputError, match=r"at \[1.0\] all weights are zero"):
        events.sample(at(1.0)[None], None, torch.Generator())
    with pytest.raises(InputError, match="theta: a from nan to nan, but weights"):
        events.sample(at(math.nan)[None], None, torch.Generator())
    with pytest.raises(InputError, match=r"theta has shape \(5, 2\), expected \(\*, 1\)"):
        events.rate(torch.zeros(5, 2))
    for fraction in (math.nan, 2.0):
        with pytest.raises(InputError, match="leaves both parts some"):
            events.split(fraction, seed=1)


def test_flags_are_warned_of():
    benchmarks = at(0.1, 0.4, 0.6, 0.9)[:, None]
    wavy = 2 + torch.sin(3 * benchmarks.T) * torch.ones(5, 1)
    with pytest.warns(SbiWarning, match=r"a polynomial in 1, a leaves .*% of them unexplained"):
        bent = WeightedEvents(torch.rand(5, 1), wavy, benchmarks, ONE["parameters"], degree=1)
    with pytest.warns(SbiWarning, match="condition number"):
        close = WeightedEvents(torch.rand(5, 1), torch.ones(5, 2), [[0.5], [0.50001]], ONE["parameters"], degree=1)
    assert len(bent.flags) == len(close.flags) == 1


def test_picture_is_drawn(world, rows):
    from matplotlib.figure import Figure

    for some in (rows, rows[:2]):
        axes = Figure().subplots()
        world[0].draw(axes, some)
        assert axes.has_data() and axes.get_legend() is not None
