"""Chosen simulations are learned from rightly: proposals, designs, contrasts and gold."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from chosen_worlds import SMALL, TOY, Shifted, member, small, world_of_slopes

from sbi_core.design import acquire
from sbi_core.design.explore import Explored, everywhere
from sbi_core.design.label import CONTRASTS, Labeller
from sbi_core.design.region import Cloud
from sbi_core.estimators import RatioEstimator, fit, nre, nre_gold

pytestmark = pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")  # short trainings say so


def steep(designs=None):
    """Members that disagree as exp(3 theta) at the first design, as exp(-3 theta) at the second."""
    theta = torch.linspace(-1, 1, 4001, dtype=torch.float64)[:, None]
    mass = torch.full((4001,), 1 / 4001, dtype=torch.float64)
    off = torch.stack([(3 * s * theta[:, 0]).exp() / 30 for s in ((1,) if designs is None else (1, -1))])
    rows = None if designs is None else SimpleNamespace(design=designs)
    return Explored(Cloud(theta, mass), torch.stack([1 + off, 1 - off]), rows=rows)


def test_designs_say_nothing_about_theta_where_contrasts_are_of_all_rows():
    """As many designs as rows, in order; thetas of the prior come first, and the likeliest of the others next."""
    world, designs = Shifted(50.0, slopes=True), torch.linspace(0, 2, 1000, dtype=torch.float64)[:, None]
    labeller = Labeller(world, world.prior, nre, designs, False, 1, 1)
    labeller.add_of_prior(600, 0)
    labeller.add_chosen(steep(), 1.0, 400, 1)
    rows = labeller.all_rows()
    theta, design = rows.theta[:, 0], rows.design[:, 0]
    assert float(theta[600:].mean()) > float(theta[:600].mean()) + 0.3, "these are chosen"
    assert abs(float(torch.corrcoef(torch.stack([theta, design]))[0, 1])) < 4 / 1000**0.5
    assert float(torch.corrcoef(torch.stack([theta, designs[:, 0]]))[0, 1]) > 0.2, "saboteur: dealt in turn"
    few = Labeller(world, world.prior, nre, designs[:300], False, 1, 1)
    few.add_of_prior(700, 0)
    assert few.all_rows().design[:, 0].unique(return_counts=True)[1].unique().tolist() == [2, 3], "evenly"


def test_many_are_chosen_among_more_and_at_any_design():
    world, designs = world_of_slopes, torch.linspace(0, 2, 620, dtype=torch.float64)[:, None]
    labeller = Labeller(world, world.prior, nre, designs, True, 1, 1)
    labeller.add_of_prior(1240, 0)
    two = SimpleNamespace(members=[member(lambda t: t), member(lambda t: -t)])
    for n, least in ((100, 256), (5000, 32)):
        found = everywhere(two, world.prior, labeller.seen(), n, 1)
        assert len(found.cloud.theta) >= 8 * n and len(found.rows) >= least
        assert float(found.rows.design.max()) > 1.5 and float(found.rows.design.min()) < 0.5


def test_the_posterior_is_right_though_thetas_are_not_of_the_prior():
    world, x_obs = Shifted(0.4), torch.tensor([0.0])
    labeller = Labeller(world, world.prior, nre, None, False, 1, 1)
    labeller.add_chosen(steep(), 1.0, 1500, 1)
    rows = labeller.all_rows()
    assert float(rows.theta.mean()) > 0.5 and rows.info.proposal is None
    theta = torch.linspace(-1, 1, 401, dtype=torch.float64)[:, None]
    exact = torch.softmax(world.log_likelihood(theta, x_obs), 0)

    def off(rows):
        head = RatioEstimator.from_data(rows, hidden=[16, 16])
        found = fit(head, nre, rows, seed=1, progress=False, max_epochs=40).estimator
        with torch.no_grad():
            return float((torch.softmax(found.log_likelihood(theta, x_obs).double(), 0) - exact).abs().sum() / 2)

    assert off(rows) < 0.12
    forgotten = replace(rows, info=replace(rows.info, proposal=world.prior))
    assert off(forgotten) > 0.25, "saboteur: a proposal that was not the prior is forgotten"


def test_chosen_designs_bring_contrasts_of_their_own():
    world, designs = Shifted(50.0, slopes=True), torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    labeller = Labeller(world, world.prior, nre, designs, True, 1, 1)
    labeller.add_of_prior(500, 0)
    labeller.add_chosen(steep(designs), 1.0, 1500, 1)
    rows = labeller.all_rows()
    assert rows.design[:500, 0].unique(return_counts=True)[1].tolist() == [250, 250], "dealt in turn"
    assert rows.theta_alt.shape == (2000, CONTRASTS, 1) and rows.info.design is None
    late = rows[torch.arange(2000) >= 500]
    for value, sign in ((0.0, 1), (2.0, -1)):
        some = late[late.design[:, 0] == value]
        own, others = some.theta[:, 0], some.theta_alt.mean((1, 2))
        error = float(own.std()) / len(own) ** 0.5 * (1 + 1 / CONTRASTS) ** 0.5
        assert abs(float(own.mean() - others.mean())) < 4 * error
        assert sign * float(own.mean()) > 0.6
        assert abs(float(own.mean() - late.theta.mean())) > 10 * error, "saboteur: thetas of all rows"
    number, plain = labeller.origin()
    assert number.tolist() == [0] * 500 + [1] * 1500 and plain.sum() == 500

    def tilt(rows):
        head = RatioEstimator.from_data(rows, hidden=[16])
        found = fit(head, nre, rows, seed=1, progress=False, max_epochs=20).estimator
        ends = torch.tensor([[0.8], [-0.8]]).double()
        with torch.no_grad():
            return [float(v[0] - v[1]) for v in (found.log_likelihood(ends, torch.zeros(1), d) for d in designs)]

    assert max(map(abs, tilt(rows))) < 0.7, "x is noise and says nothing of theta"
    up, down = tilt(replace(rows, theta_alt=None))
    assert up > 1.0 and down < -1.0, "saboteur: contrasts of all rows teach which theta goes with which design"


def test_gold_stays_with_its_contrasts():
    found = acquire(TOY, nre_gold, n=160, rounds=2, designs=[44.0, 50.0], seed=1, members=2, head=small, **SMALL)
    rows = found.simulations
    assert rows.z is None and rows.joint_log_ratio.shape == (160, CONTRASTS), "fit cannot draw others"
    expected = TOY.log_likelihood(rows.theta, rows.x, rows.design)
    other = TOY.log_likelihood(rows.theta_alt[:, 3], rows.x, rows.design)
    assert torch.allclose(rows.joint_log_ratio[:, 3], expected - other)
    alone = acquire(TOY, nre_gold, n=80, rounds=2, seed=1, members=2, head=small, **SMALL)
    assert alone.simulations.theta_alt is None and alone.simulations.z is not None
