"""An estimator of one event, read as one of runs of them."""

import math

import pytest
import torch
from test_events import FIXED, PLANNED, RANDOM, Thinned
from toys import Shift, run

from sbi_core import Events, InputError, infer
from sbi_core.estimators import Ensemble, RatioEstimator, carl, fit
from sbi_core.events import RunLikelihood
from sbi_core.simulators import LinearGaussian

AT = torch.tensor([4.0]).double()
RUNS = {"Poisson": (RANDOM, None), "planned": (PLANNED, AT), "fixed": (FIXED, None)}
by_run = pytest.mark.parametrize(("events", "design"), RUNS.values(), ids=RUNS)
THETA = torch.linspace(-0.9, 0.9, 7).double()[:, None]


def runs_of(events, design, n=30):
    return run(events, n, **({} if design is None else {"design": design}))


class Halved:
    """Saboteur: half of the exact log likelihood of one event."""

    x_shape = (1,)

    def __init__(self, world):
        self.parameters, self.designs, self.world = world.parameters, world.designs, world

    def observe(self, x, design=None):
        look = self.world.observe(x, design)
        return lambda theta: 0.5 * look(theta)


class Forgetful(Halved):
    """f does not depend on x, and has no axis for the events."""

    def observe(self, x, design=None):
        return lambda theta: theta[..., 0]


@by_run
def test_it_is_the_exact_likelihood_of_runs(events, design):
    data = runs_of(events, design)
    options = {"n_events": data.n_events} if events.needs_n_events else {}
    exact = events.log_likelihood(data.theta, data.x, data.design, **options)
    read = RunLikelihood(events, events.simulator)
    assert torch.equal(read.log_likelihood(data.theta, data.x, data.design, **options), exact)
    assert torch.equal(events.observe_with(events.simulator, data.x, data.design, **options)(data.theta), exact)
    each = {key: value[:, None] for key, value in options.items()}
    look = read.observe(data.x[:, None], None if design is None else data.design[:, None], **each)
    assert look(data.theta).shape == (30, 30) and torch.allclose(look(data.theta).diagonal(), exact, atol=1e-12)
    half = RunLikelihood(events, Halved(events.simulator)).log_likelihood(data.theta, data.x, data.design, **options)
    assert not torch.allclose(half, exact, atol=1e-2)


@by_run
def test_posterior_is_that_of_the_exact_runs(events, design):
    data = runs_of(events, design, 1)
    options = {} if design is None else {"design": design}
    for x in (data.x[0], data.x[0, : int(data.n_events[0])]):
        count = {"n_events": int(data.n_events[0])} if events.needs_n_events and len(x) == events.n_max else {}
        found, exact, half = (
            infer(one, events.prior, x, **options, **count).log_prob(THETA)
            for one in (
                RunLikelihood(events, events.simulator),
                events,
                RunLikelihood(events, Halved(events.simulator)),
            )
        )
        assert torch.allclose(found, exact, atol=1e-9) and not torch.allclose(half, exact, atol=1e-2)


@pytest.mark.parametrize("name", ["Poisson", "planned"])
def test_padding_is_not_read(name):
    events, design = RUNS[name]
    data = runs_of(events, design)
    read = RunLikelihood(events, events.simulator)
    value = read.log_likelihood(data.theta, data.x, data.design, n_events=data.n_events)
    present = (torch.arange(events.n_max) < data.n_events[:, None])[..., None]
    for junk in (77.0, math.inf):
        other = torch.where(present, data.x, junk)
        assert torch.equal(read.log_likelihood(data.theta, other, data.design, n_events=data.n_events), value)
    fewer = (data.n_events - 1).clamp(min=0)
    less = read.log_likelihood(data.theta, data.x, data.design, n_events=fewer)
    assert (less != value)[data.n_events > 0].all(), "saboteur: an event less"


def test_runs_without_any_event():
    read, none = RunLikelihood(RANDOM, Shift()), torch.zeros(3, dtype=torch.int64)
    value = read.log_likelihood(THETA[:3], torch.zeros(3, RANDOM.n_max, 1), n_events=none)
    assert torch.allclose(value, -RANDOM.mean_events(THETA[:3], None))


def test_events_count_even_where_f_does_not_look_at_them():
    for events, n in ((FIXED, 5), (PLANNED, 2)):
        read = RunLikelihood(events, Forgetful(events.simulator))
        value = read.log_likelihood(THETA, torch.zeros(7, events.n_max, 1), AT.expand(7, 1) if n == 2 else None)
        assert torch.allclose(value, n * THETA[:, 0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RunLikelihood(RANDOM, Shift()).observe(torch.zeros(RANDOM.n_max, 1)), "n_events is needed"),
        (lambda: RunLikelihood(FIXED, Shift()).observe(torch.zeros(6, 1)), r"x has shape \(6, 1\).*\(\*, 5, 1\)"),
        (lambda: RunLikelihood(FIXED, Shift()).observe(torch.zeros(1)), r"x has shape \(1,\)"),
        (
            lambda: RunLikelihood(RANDOM, Shift()).observe(torch.zeros(RANDOM.n_max, 1), n_events=torch.tensor(999)),
            "with up to 999 events",
        ),
        (lambda: infer(RunLikelihood(FIXED, Shift()), FIXED.prior, torch.zeros(4, 1)), "x_obs has shape"),
        (lambda: RunLikelihood(PLANNED, Thinned()).observe(torch.zeros(5, 1)), "design is needed"),
    ],
)
def test_what_does_not_fit(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_it_is_what_its_parts_are():
    read = RunLikelihood(RANDOM, Shift())
    assert read.trained and read.needs_n_events and read.members == [] and read.caveat == ""
    assert read.x_shape == (RANDOM.n_max, 1) and read.parameters == Shift.parameters and read.designs == ()
    assert not RunLikelihood(FIXED, RatioEstimator(Shift.parameters, (1,))).trained
    with pytest.raises(InputError, match="is not trained"):
        infer(RunLikelihood(FIXED, RatioEstimator(Shift.parameters, (1,))), FIXED.prior, torch.zeros(5, 1))
    assert not hasattr(Halved(Shift()), "trained") and RunLikelihood(FIXED, Halved(Shift())).trained


def test_members_of_an_ensemble_are_mixed():
    """Not their mean log likelihood: the posterior is the mean of theirs."""
    world, events = LinearGaussian(1), Events(LinearGaussian(1), 4)
    data = run(world, 200)
    members = [
        fit(
            RatioEstimator.from_data(data), carl, data, seed=k, max_epochs=1, gold_check=False, progress=False
        ).estimator
        for k in (1, 2)
    ]
    x, grid = run(events, 1).x[0], torch.linspace(-2, 2, 9).double()[:, None]
    posterior = infer(RunLikelihood(events, Ensemble(members)), world.prior, x)
    each = [infer(RunLikelihood(events, member), world.prior, x).log_prob(grid).exp() for member in members]
    assert len(posterior.members) == 2 and not torch.allclose(each[0], each[1], rtol=1e-3)
    assert torch.allclose(posterior.log_prob(grid).exp(), (each[0] + each[1]) / 2, rtol=0.02)
