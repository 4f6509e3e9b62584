import math

import pytest
import torch
from measures import z_of_mean
from torch.distributions import Poisson
from toys import Shift, run, same_bits

from sbi_core import (
    Events,
    FunctionSimulator,
    InputError,
    MissingGold,
    Parameter,
    SimulatorError,
    UniformPrior,
    check_gold,
    infer,
    joint_log_ratio,
    joint_score,
)
from sbi_core.estimators import RatioEstimator
from sbi_core.simulators import GaltonBoard

FIXED, RANDOM = Events(Shift(), 5), Events(Shift(), luminosity=4.0)
AT = torch.tensor([0.5]).double()


class WithoutRate(Events):
    """Saboteur: the number of events is random, but its probability is left out."""

    def _poisson(self, theta, design, count):
        return theta.new_zeros(())


class Thinned(Shift):
    """The rate is the design's first number, so that it does not depend on theta."""

    designs = (Parameter("exposure", 1, 9),)

    def rate(self, theta, design):
        return design[..., 0].expand(theta.shape[:-1])


def planned(design):
    """5 events at exposure 5, fewer on either side."""
    return torch.round(5 / (1 + (design[:, 0] - 5) ** 2))


PLANNED = Events(Thinned(), planned)


class Recounted(Events):
    """Saboteur: the number of events is known, but counted as if it were Poisson and told theta."""

    def _poisson(self, theta, design, count):
        mean = 2 + theta[..., 0] ** 2
        return count * torch.log(mean) - mean


def test_fixed_number_of_events():
    runs = run(FIXED, 200)
    assert runs.x.shape == (200, 5, 1) and runs.z.shape == (200, 5, 2) and runs.n_events.tolist() == 200 * [5]
    assert z_of_mean(runs.x[:, :, 0].mean(1) - runs.theta[:, 0]) < 4 < z_of_mean(runs.x[:, :, 0].mean(1) - 1)


def test_events_of_one_run_differ():
    assert len(run(FIXED, 50).x.unique()) == 250


def test_number_of_events_is_poisson():
    runs = run(RANDOM, 5000, proposal=AT)
    mean = 4 * (2 + 0.25)
    count = runs.n_events.double()
    assert z_of_mean(count, mean) < 4 < z_of_mean(count, 8)
    assert z_of_mean((count - mean) ** 2, mean) < 4 < z_of_mean((count - mean) ** 2, 1.2 * mean)


def test_rows_are_padded_with_zeros():
    runs = run(RANDOM, 500)
    place = torch.arange(RANDOM.n_max).expand(500, -1)
    present = place < runs.n_events[:, None]
    assert (runs.x[present] != 0).all() and (runs.x[~present] == 0).all()
    assert (runs.z[~present] == 0).all() and torch.equal(runs.z[..., -1] == 1, present)


def test_log_joint_is_the_sum_and_the_poisson_term():
    runs, shift = run(RANDOM, 40), Shift()
    value = RANDOM.log_joint(runs.theta, runs.x, runs.z, None)
    for k in range(40):
        n, mean = int(runs.n_events[k]), 4 * (2 + runs.theta[k] ** 2)
        events = shift.log_joint(runs.theta[k].expand(n, 1), runs.x[k, :n], runs.z[k, :n, :1], None).sum()
        poisson = Poisson(mean).log_prob(torch.tensor(n)) + math.lgamma(n + 1)
        assert torch.allclose(value[k], events + poisson, atol=1e-10)
    silent = WithoutRate(Shift(), luminosity=4.0).log_joint(runs.theta, runs.x, runs.z, None)
    assert not torch.allclose(value, silent, atol=1e-3)


def test_mean_score_is_zero_with_the_rate():
    runs = run(RANDOM, 5000, proposal=AT)
    assert z_of_mean(joint_score(RANDOM, runs)) < 4
    assert z_of_mean(joint_score(RANDOM, runs, AT + 0.1)) > 4, "saboteur: the score at another theta"


def test_score_without_the_rate_misses_information():
    """Both scores have mean zero; the variance of the true one is the Fisher information mu I + mu'^2 / mu."""
    runs = run(RANDOM, 5000, proposal=AT)
    mean, slope = 4 * 2.25, 4 * 2 * 0.5
    information = mean * 1 + slope**2 / mean
    assert z_of_mean(joint_score(RANDOM, runs) ** 2, information) < 4
    assert z_of_mean(joint_score(WithoutRate(Shift(), luminosity=4.0), runs) ** 2, information) > 4


def test_mean_ratio_is_one_with_the_rate():
    runs = run(RANDOM, 5000, proposal=AT)
    near = AT + 0.1
    assert z_of_mean(joint_log_ratio(RANDOM, runs, near, AT).exp(), 1) < 4
    silent = joint_log_ratio(WithoutRate(Shift(), luminosity=4.0), runs, near, AT)
    count = runs.n_events.double()
    assert z_of_mean((silent + count * math.log(2.36 / 2.25)).exp(), 1) > 4, "saboteur: no expected number"


def test_exact_log_likelihood():
    runs = run(RANDOM, 30)
    value = RANDOM.log_likelihood(runs.theta, runs.x, n_events=runs.n_events)
    for k in range(30):
        n, mean = int(runs.n_events[k]), 4 * (2 + runs.theta[k, 0] ** 2)
        one = -((runs.x[k, :n] - runs.theta[k]) ** 2).sum() / 4 - n * math.log(4 * math.pi) / 2
        assert torch.allclose(value[k], one + n * mean.log() - mean, atol=1e-10)
    assert RANDOM.is_exact and RANDOM.has_gold
    with pytest.raises(InputError, match="n_events is needed"):
        RANDOM.log_likelihood(runs.theta, runs.x)
    assert torch.allclose(
        FIXED.log_likelihood(AT, runs.x[0, :5]), Shift().log_likelihood(AT, runs.x[0, :5]).sum(), atol=1e-12
    )


def test_designs_reach_every_event():
    events = Events(Thinned(), luminosity=1.0)
    runs = run(events, 3000, design=UniformPrior(Thinned.designs))
    assert z_of_mean(runs.n_events - runs.design[:, 0]) < 4 < z_of_mean(runs.n_events - 4.5 - 0 * runs.design[:, 0])
    assert z_of_mean(joint_score(events, runs)) < 4
    board = Events(GaltonBoard(), 3)
    dropped = run(board, 20, design=torch.tensor([0.0, 1.0]))
    assert dropped.x.max() <= 1
    assert torch.equal(joint_score(board, dropped), torch.zeros(20, 1).double()), "row 0 does not know theta"


def test_gold_of_a_run_is_that_of_its_balls():
    board, balls = GaltonBoard(), run(Events(GaltonBoard(), 7), 20)
    each = board.log_joint(balls.theta.repeat_interleave(7, 0), None, balls.z[..., :-1].reshape(-1, 20).double(), None)
    value = Events(board, 7).log_joint(balls.theta, balls.x, balls.z.double(), None)
    assert torch.allclose(value, each.reshape(20, 7).sum(1), atol=1e-10)


def test_black_box_has_runs_but_no_gold():
    box = FunctionSimulator(lambda theta, rng: rng.normal(theta), Shift.parameters)
    runs = run(Events(box, 3), 10)
    assert runs.x.shape == (10, 3, 1) and not Events(box, 3).has_gold
    with pytest.raises(MissingGold, match=r"Events\(FunctionSimulator\)"):
        joint_score(Events(box, 3), runs)


def test_rows_without_z_have_no_gold():
    runs = run(FIXED, 3)
    with pytest.raises(MissingGold, match="without z"):
        FIXED.log_joint(runs.theta, runs.x, None, None)


def test_run_that_does_not_fit_is_an_error_not_a_cut():
    with pytest.raises(SimulatorError, match="more than n_max = 4"):
        run(Events(Shift(), luminosity=4.0, n_max=4), 100)


def test_room_is_enough_and_not_wasted():
    assert int(run(RANDOM, 5000).n_events.max()) < RANDOM.n_max < 60


def test_block_without_events():
    runs = run(Events(Shift(), luminosity=1e-3), 200)
    assert len(runs) - int((runs.n_events == 0).sum()) + 1 > 0 and runs.valid.all()
    assert joint_score(Events(Shift(), luminosity=1e-3), runs).isfinite().all()


def test_rows_repeat(tmp_path):
    assert same_bits(run(RANDOM, 45, store=tmp_path / "run.zarr", chunk_rows=20), run(RANDOM, 45))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either n"),
        ({"n": 3, "luminosity": 1.0}, "not both"),
        ({"n": 0}, "n = 0"),
    ],
)
def test_number_of_events_must_be_told_once(options, words):
    with pytest.raises(InputError, match=words):
        Events(Shift(), **options)


def test_luminosity_needs_a_rate():
    with pytest.raises(InputError, match="'GaltonBoard' does not have"):
        Events(GaltonBoard(), luminosity=3.0)


def test_number_of_events_is_the_functions():
    runs = run(PLANNED, 300, design=UniformPrior(Thinned.designs))
    assert torch.equal(runs.n_events.double(), planned(runs.design)) and len(runs.n_events.unique()) > 3
    assert not torch.equal(runs.n_events.double(), planned(runs.design + 0.5)), "saboteur"
    present = torch.arange(5) < runs.n_events[:, None]
    assert runs.x.shape == (300, 5, 1) and (runs.x[present] != 0).all() and (runs.x[~present] == 0).all()
    assert z_of_mean(runs.x[present] - runs.theta.expand(-1, 5)[present][:, None]) < 4
    assert same_bits(runs, run(PLANNED, 300, design=UniformPrior(Thinned.designs)))


def test_known_number_of_events_says_nothing_about_theta():
    runs = run(PLANNED, 40, design=UniformPrior(Thinned.designs))
    joint = PLANNED.log_joint(runs.theta, runs.x, runs.z, runs.design)
    given = PLANNED.log_likelihood(runs.theta, runs.x, runs.design, n_events=runs.n_events)
    for k, n in enumerate(runs.n_events):
        theta, x, z = runs.theta[k].expand(int(n), 1), runs.x[k, :n], runs.z[k, :n, :1]
        assert torch.allclose(joint[k], Shift().log_joint(theta, x, z, None).sum(), atol=1e-12)
        assert torch.allclose(given[k], Shift().log_likelihood(theta, x).sum(), atol=1e-12)
    assert torch.equal(PLANNED.log_likelihood(runs.theta, runs.x, runs.design), given), "the design says how many"
    assert not torch.allclose(PLANNED.log_likelihood(runs.theta, runs.x, runs.design - 1), given), "saboteur"
    several = PLANNED.log_likelihood(runs.theta[:, None], runs.x, runs.design)
    assert several.shape == (40, 40) and torch.equal(several.diagonal(), given)


def test_gold_of_a_known_number_of_events():
    runs = run(PLANNED, 2000, design=UniformPrior(Thinned.designs))
    check_gold(PLANNED, runs).raise_if_failed()
    assert not check_gold(Recounted(Thinned(), planned), runs).passed


def test_posterior_of_a_known_number_of_events():
    """As many events of one simulator, and zeros that do not count."""
    runs = run(PLANNED, 1, design=torch.tensor([4.0]), proposal=AT)
    n, x = int(runs.n_events), runs.x[0]
    assert n == 2
    theta = torch.linspace(-0.9, 0.9, 7).double()[:, None]
    wanted = infer(Shift(), Shift().prior, x[:n], iid=True).log_prob(theta)
    for x_obs, options in ((x, {"n_events": n}), (x[:n], {})):
        found = infer(PLANNED, PLANNED.prior, x_obs, design=runs.design[0], **options).log_prob(theta)
        assert torch.allclose(found, wanted, atol=1e-9)
    wrong = infer(PLANNED, PLANNED.prior, x, design=runs.design[0], n_events=5).log_prob(theta)
    assert not torch.allclose(wrong, wanted, atol=1e-2), "saboteur: the padding counts"
    with pytest.raises(InputError, match="n_events is missing"):
        infer(PLANNED, PLANNED.prior, x, design=runs.design[0])


def test_heads_hear_that_the_number_varies():
    assert PLANNED.needs_n_events and RANDOM.needs_n_events and not FIXED.needs_n_events
    assert RatioEstimator.from_data(run(PLANNED, 50, design=UniformPrior(Thinned.designs))).needs_n_events


class Wide(Thinned):
    designs = (*Thinned.designs, Parameter("shots", 1, 4, integer=True), Parameter("angle", -1, 1))


class Endless(Thinned):
    designs = (Parameter("exposure", 1, math.inf),)


@pytest.mark.parametrize(
    ("world", "function", "room"),
    [
        (Thinned(), planned, 5),
        (Thinned(), lambda design: design[:, 0].floor(), 9),
        (Thinned(), lambda design: 10 - design[:, 0].ceil(), 9),
        (Thinned(), lambda design: 0 * design[:, 0], 1),
        (Wide(), lambda design: planned(design) * design[:, 1] + 2 * (design[:, 2].abs() == 1), 22),
    ],
)
def test_room_is_the_largest_number(world, function, room):
    assert Events(world, function).n_max == room


def test_more_events_than_room_is_an_error_not_a_cut():
    tight = Events(Thinned(), planned, n_max=4)
    assert tight.n_max == 4
    for design in (torch.tensor([5.0]), UniformPrior(Thinned.designs)):
        with pytest.raises(SimulatorError, match="5 events, more than n_max = 4"):
            run(tight, 100, design=design)
    with pytest.raises(SimulatorError, match="more than n_max = 4"):
        tight.log_likelihood(AT, torch.zeros(4, 1), torch.tensor([5.0]))


@pytest.mark.parametrize(
    ("world", "function", "words"),
    [
        (Shift(), planned, "simulator 'Shift' has none"),
        (Thinned(), lambda design: design[:, 0] / 2, "expected whole numbers from 0 up"),
        (Thinned(), lambda design: -design[:, 0].round(), "expected whole numbers from 0 up"),
        (Thinned(), lambda design: design.round(), r"shape \(4097, 1\) .* \(4097,\) for design \(4097, 1\)"),
        (Endless(), planned, "n_max is needed: with 1 designs"),
    ],
)
def test_function_that_counts_nothing_is_refused(world, function, words):
    with pytest.raises(InputError, match=words):
        Events(world, function)


def test_a_number_that_depends_on_the_design_needs_it():
    with pytest.raises(InputError, match=r"design is needed: in 'Events\(Thinned\)'"):
        PLANNED.log_likelihood(AT, torch.zeros(5, 1))
    with pytest.raises(InputError, match="design is needed"):
        run(PLANNED, 3)
    assert Events(Endless(), planned, n_max=5).n_max == 5
