"""Simulators that mine their gold while they run: what `mine` returns is stored, checked and learned from."""

import pytest
import torch
from torch import distributions as td
from toys import Shift, run, same_bits

from sbi_core import Events, Mined, MissingGold, Simulator, SimulatorError, check_gold, joint_score
from sbi_core.estimators import RatioEstimator, fit, rascal
from sbi_core.stages import check_gold_exists


class Mining(Shift):
    """`Shift` whose latents are not kept: z ~ N(theta, 1), x ~ N(z, 1)."""

    contrasts = 2
    log_joint = Shift.__mro__[1].log_joint  # none

    def mine(self, theta, theta_alt, design, generator):
        x, z = self.sample(theta, design, generator)
        ratio = (theta_alt - z[:, None]).square().sum(-1) / 2 - (theta - z).square() / 2
        return Mined(x, joint_score=z - theta, joint_log_ratio=ratio)


class Scored(Mining):
    contrasts = 0

    def mine(self, theta, theta_alt, design, generator):
        assert theta_alt is None
        x, z = self.sample(theta, design, generator)
        return Mined(x, None, z - theta)


def test_what_is_mined_is_stored(tmp_path):
    rows = run(Mining(), 1500)
    assert rows.z is None and rows.theta_alt.shape == (1500, 2, 1) and rows.joint_log_ratio.shape == (1500, 2)
    whole = run(Shift(), 1500)
    assert torch.equal(rows.x, whole.x), "contrasts have a stream of their own"
    assert torch.equal(rows.joint_score, joint_score(Shift(), whole))
    assert len(rows.theta_alt.unique()) == 3000 and not set(rows.theta_alt.flatten().tolist()) & set(
        rows.theta.flatten().tolist()
    )
    assert same_bits(run(Mining(), 1500, store=tmp_path / "run.zarr", chunk_rows=1000, workers=2), rows)
    assert run(Scored(), 20).theta_alt is None and not Mining().has_gold


def test_contrasts_come_from_the_proposal_and_from_the_prior_at_given_thetas():
    near = td.Independent(td.Uniform(torch.tensor([0.0]).double(), torch.tensor([0.1]).double()), 1)
    alt = run(Mining(), 500, proposal=near).theta_alt
    assert alt.min() >= 0 and alt.max() < 0.1
    assert run(Mining(), 500, proposal=torch.tensor([0.5])).theta_alt.std() > 0.4, "one theta is no proposal"


@pytest.mark.parametrize("world", [Mining, Scored])
def test_mined_gold_is_checked(world):
    rows = run(world(), 5000)
    check_gold(None, rows).raise_if_failed()

    class Wrong(world):
        def mine(self, *arguments):
            made = super().mine(*arguments)
            return made._replace(joint_score=made.joint_score + 0.1)

    assert not check_gold(None, run(Wrong(), 5000)).passed


def test_mined_gold_is_learned_from():
    world = Mining()
    head = fit(RatioEstimator.from_data(rows := run(world, 2000)), rascal, rows, seed=1, max_epochs=40, progress=False)
    theta, x = torch.linspace(-0.9, 0.9, 7)[:, None].double(), torch.linspace(-2, 2, 9)[:, None, None].double()
    exact = world.log_likelihood(theta, x)
    learned = head.estimator.log_likelihood(theta, x)
    off = (learned - exact) - (learned - exact).mean(1, keepdim=True)
    assert off.square().mean() < 0.01 < exact.var(1).mean()


def returning(**changes):
    class Odd(Mining):
        def mine(self, *arguments):
            made = super().mine(*arguments)
            return made._replace(**{name: change(getattr(made, name)) for name, change in changes.items()})

    return Odd()


@pytest.mark.parametrize(
    ("world", "words"),
    [
        (returning(joint_score=lambda t: torch.cat([t, t], 1)), ["joint_score", "(10, 2)", "(10, 1)"]),
        (returning(joint_log_ratio=lambda r: r[:, :1]), ["joint_log_ratio", "(10, 1)", "(10, 2)"]),
        (returning(joint_log_ratio=lambda r: None), ["contrasts = 2", "no joint_log_ratio"]),
        (returning(x=lambda x: x[:5]), ["x has shape (5, 1)", "(10, ...)"]),
        (type("Bare", (Mining,), {"mine": lambda self, *_: 3})(), ["mine returned int", "Mined"]),
        (type("None", (Mining,), {"contrasts": 0, "mine": lambda s, t, *_: Mined(t, None, t, t)})(), ["Set contrasts"]),
    ],
)
def test_what_cannot_be_gold_is_refused(world, words):
    with pytest.raises(SimulatorError) as caught:
        run(world, 20)
    assert all(word in str(caught.value) for word in words)


def test_runs_of_events_that_mine_have_no_gold():
    assert run(Events(Mining(), 3), 20).joint_score is None


def test_what_rows_may_carry_is_known_before_they_are_made():
    asked = ("joint_log_ratio", "joint_score")
    worlds = (Shift(), Mining(), Scored(), type("Bare", (Scored,), {"mine": Simulator.mine})())
    found = [[world.may_give(column) for column in asked] for world in worlds]
    assert found == [[True, True], [True, True], [False, True], [False, False]]
    check_gold_exists(rascal, Mining())
    with pytest.raises(MissingGold, match="needs joint_log_ratio, and"):
        check_gold_exists(rascal, Scored())
