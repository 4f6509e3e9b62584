import time
import warnings

import pytest
import torch
from torch.distributions import Independent, Normal

from sbi_core import FunctionSimulator, InputError, Parameter, SbiWarning, infer, limits, simulate
from sbi_core.estimators import (
    Ensemble,
    LikelihoodEstimator,
    PosteriorEstimator,
    RatioEstimator,
    carl,
    fit,
    load_estimator,
    nle,
    npe,
)
from sbi_core.inference.checks.crowd import Crowd
from sbi_core.inference.checks.familiar import Familiar, recognise
from sbi_core.inference.checks.tails import Tail
from sbi_core.simulators import LinearGaussian

BOX = (Parameter("a", -2, 2), Parameter("b", -2, 2))
OPEN = Independent(Normal(torch.zeros(2).double(), 1.0), 1)
REFERENCE = FunctionSimulator(lambda theta, rng: theta + 0.3 * rng.normal(size=theta.shape), BOX)
HEADS = {
    "ratio": (RatioEstimator, carl),
    "likelihood": (LikelihoodEstimator, nle),
    "posterior": (PosteriorEstimator, npe),
}
RANGE = "x_obs inside the simulated range"


def trained(proposal=None, heads=HEADS):
    data = simulate(REFERENCE, 600, proposal=proposal, seed=1, progress=False)
    options = {"seed": 1, "max_epochs": 3, "progress": False}
    return {name: fit(heads[name][0].from_data(data), heads[name][1], data, **options).estimator for name in heads}


@pytest.fixture(scope="module")
def bounded():
    return trained()


@pytest.fixture(scope="module")
def unbounded():
    return trained(OPEN)


def flagged(estimator, prior, x, **options):
    """The verdict, or an error because time was over; and whether it was said, before and in it, that x is strange."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            posterior = infer(estimator, prior, x, **{"seed": 1, "time_limit": 3.0, **options})
            verdict, found = posterior.verdicts[RANGE], "; ".join(posterior.flags)
            assert verdict.startswith("NOT") == ("not like what was simulated" in found)
        except InputError as error:
            verdict = found = str(error)
    said = [str(w.message) for w in caught if issubclass(w.category, SbiWarning)]
    assert len(said) <= 1 and ("unchecked" in verdict or "inside" in verdict or "time" in verdict)
    assert ("not like what was simulated" in found) == bool(said)
    return verdict, bool(said)


@pytest.mark.parametrize("head", HEADS)
def test_F37_far_outside_with_a_bounded_prior(bounded, head):
    verdict, said = flagged(bounded[head], REFERENCE.prior, [10.0, 10.0])
    assert said and " is 10, simulated were -2." in verdict
    assert all(name in verdict for name in ("columns", "distance", "neighbours"))
    verdict, said = flagged(bounded[head], REFERENCE.prior, [0.5, -0.5], time_limit=60.0)
    assert not said and verdict == "inside, by columns, distance, neighbours", "saboteur: an x inside"


@pytest.mark.parametrize("head", HEADS)
def test_F38_far_outside_with_a_gaussian_prior(unbounded, head):
    assert flagged(unbounded[head], OPEN, [100.0, 100.0], time_limit=1.0)[1]
    assert not flagged(unbounded[head], OPEN, [0.5, -0.5], time_limit=1.0)[1], "saboteur: an x inside"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", ["grid", "hmc"])
def test_F39_extremely_far_outside_ends_in_time(bounded, head, method):
    begun = time.monotonic()
    assert flagged(bounded[head], REFERENCE.prior, [1e6, 1e6], method=method, time_limit=0.5)[1]
    assert time.monotonic() - begun < 10


def test_of_an_ensemble_it_is_said_once(bounded):
    both = Ensemble([bounded["ratio"], bounded["ratio"]])
    for ask in (lambda: infer(both, REFERENCE.prior, [10.0, 10.0], seed=1), lambda: limits(both, [10.0, 10.0], of="a")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert len(ask().members) == 2
        assert sum(issubclass(one.category, SbiWarning) for one in caught) == 1


def test_F39_direct_draws_need_no_rejection(bounded):
    begun = time.monotonic()
    assert flagged(bounded["posterior"], REFERENCE.prior, [1e6, 1e6], method="direct")[1]
    assert time.monotonic() - begun < 10


def test_limits_are_flagged_too(bounded):
    estimator = bounded["ratio"]
    for x_obs, strange in (([10.0, 10.0], True), ([0.5, -0.5], False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = limits(estimator, x_obs, of=[estimator.axes[0].name], seed=1)
        assert any(issubclass(one.category, SbiWarning) for one in caught) == strange
        assert found.verdicts["x_obs inside the simulated range"].startswith("NOT inside" if strange else "inside")
        assert any("can be trusted" in flag for flag in found.flags) == strange


def test_F39_a_grid_that_takes_too_long_says_why_it_may(bounded):
    begun = time.monotonic()
    with pytest.warns(SbiWarning, match="not like"), pytest.raises(InputError) as caught:
        infer(bounded["posterior"], REFERENCE.prior, [1e6, 1e6], method="grid", time_limit=0.01)
    assert time.monotonic() - begun < 10
    assert "time_limit" in str(caught.value) and "x_obs is not like what was simulated" in str(caught.value)


@pytest.mark.slow
def test_F39_with_the_default_time_limit(bounded):
    begun = time.monotonic()
    for method in ("auto", "hmc", "importance"):
        assert flagged(bounded["posterior"], REFERENCE.prior, [1e6, 1e6], method=method, time_limit=60.0)[1]
    assert time.monotonic() - begun < 240


def test_several_at_once(bounded):
    inside = torch.tensor([[0.5, -0.5], [1.0, 1.0], [-1.0, 0.0]])
    assert recognise(bounded["ratio"], inside, None) == ("all inside, by columns, distance, neighbours", "")
    inside[1, 1] = -9.0
    for options in ({"batch": True}, {"iid": True}):
        verdict, said = flagged(bounded["ratio"], REFERENCE.prior, inside, **options)
        assert said and "row 1: column 1 is -9" in verdict


def test_an_ensemble_says_it_once(bounded):
    both = Ensemble([bounded["ratio"], trained(heads={"ratio": HEADS["ratio"]})["ratio"]])
    assert flagged(both, REFERENCE.prior, [10.0, 10.0])[1] and not flagged(both, REFERENCE.prior, [0.5, 0.5])[1]


def test_exact_likelihoods_remember_nothing():
    world = LinearGaussian(2)
    assert flagged(world, world.prior, [100.0, 100.0]) == ("unchecked", False)


@pytest.mark.parametrize("head", HEADS)
def test_it_is_saved_with_the_model(bounded, head, tmp_path):
    estimator = bounded[head]
    assert not any("familiar" in name for name in estimator.state_dict())
    loaded = load_estimator(estimator.save(tmp_path))
    for name, value in estimator.familiar.state.items():
        assert torch.equal(value, loaded.familiar.state[name])
    x = torch.tensor([[0.3, 0.2], [3.0, 0.0]])
    assert loaded.familiar.check(x) == estimator.familiar.check(x)
    loaded.familiar = None  # as in models saved before
    older = load_estimator(loaded.save(tmp_path))
    assert older.familiar is None
    assert recognise(older, x, None) == ("unchecked", "")


def test_training_is_the_same_to_the_last_bit_and_the_random_state_untouched():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    states = [Familiar.of(x).state for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("wide", [2, 100, 1000])
def test_it_is_small(wide):
    x = torch.randn(3000, wide, generator=torch.Generator().manual_seed(1))
    size = sum(value.numel() * value.element_size() for value in Familiar.of(x).state.values())
    assert size < 1_000_000 and (wide > 2 or size < 50_000)


@pytest.mark.parametrize("kind", ["normal", "uniform", "exponential", "Cauchy"])
def test_tails(kind):
    """What is beyond a far quantile, among fresh draws, is as rare as the tail says, or rarer: by a factor at most."""

    def draw(n):
        u = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        made = {"normal": torch.special.ndtri(u), "uniform": u, "exponential": -u.log()}
        return made[kind] if kind in made else torch.tan(torch.pi * (u - 0.5))

    generator = torch.Generator().manual_seed(1)
    share = torch.stack([(Tail.of(draw(2000)).probability(draw(100_000)) < 1e-4).double().mean() for _ in range(20)])
    assert share.mean() < 2e-4
    if kind in ("exponential", "Cauchy"):
        assert share.mean() > 0.3e-4
    narrow = Tail.of(draw(2000))
    light = Tail(narrow.share, narrow.start, narrow.scale / 2, narrow.shape)
    if kind in ("exponential", "Cauchy"):
        assert (light.probability(draw(100_000)) < 1e-4).double().mean() > 3e-4, "saboteur: half the tail"


def correlated(n, generator, rho=0.99, loud=1.0):
    z = loud * torch.randn(n, 8, generator=generator, dtype=torch.float64)
    return torch.cat([z[:, :4], rho * z[:, :4] + (1 - rho**2) ** 0.5 * z[:, 4:]], 1)


def test_a_crowd_knows_its_own_and_few_others():
    generator = torch.Generator().manual_seed(1)
    crowds = [Crowd.of(correlated(2000, generator)) for _ in range(5)]
    level, n = 0.01, 4000

    def failed(**kind):
        each = [torch.stack(list(crowd.probabilities(correlated(n, generator, **kind)).values())) for crowd in crowds]
        return (torch.stack(each) < level).double().mean((0, 2))

    own = failed()
    assert (own < level + 4 * (level / n / 5) ** 0.5 + 0.004).all() and own[1:].min() > level / 4
    broken = failed(rho=0.0)
    assert broken[0] < 0.02 and broken[1] > 0.99 and broken[2] > 0.99, "no column shows it"
    assert failed(loud=2.0)[1] > 0.5


def test_constant_columns_and_the_same_number_in_another_precision():
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(1))
    x[:, 1] = 0.1
    known = Familiar.of(x)
    same = torch.tensor([[0.2, 0.1, -0.4]], dtype=torch.float64)
    assert all(check.passed for check in known.check(same))
    assert known.check(same + torch.tensor([0.0, 0.01, 0.0]))[0].passed is False


def test_few_rows_are_not_enough():
    assert {check.passed for check in Familiar.of(torch.randn(30, 2)).check(torch.full((1, 2), 50.0))} == {None}


def test_an_embedding_is_looked_at():
    """The sum of the pixels' products with their neighbours, which no other number of a picture tells."""
    generator = torch.Generator().manual_seed(1)

    def seen(x, n_events=None):
        return torch.stack([(x[:, 0, :, 1:] * x[:, 0, :, :-1]).mean((1, 2)), x.mean((1, 2, 3))], 1)

    x = torch.randn(600, 1, 40, 40, generator=generator)
    known = Familiar.of(x, seen=seen)
    fresh = torch.randn(5, 1, 40, 40, generator=generator)
    assert all(check.passed for check in known.check(fresh, seen=seen))
    smooth = fresh + fresh.roll(1, 3)
    found = {check.name: check.passed for check in known.check(smooth, seen=seen)}
    assert found["distance in the embedding"] is False
    loud = known.check(1.5 * fresh)
    assert loud[0].passed is False and "of channel 0" in loud[0].about
