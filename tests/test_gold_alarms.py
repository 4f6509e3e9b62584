"""True gold with heavy tails raises no alarm: decay times, whose joint ratios have few finite moments."""

from dataclasses import replace

import pytest
import torch

from sbi_core import Parameter, Simulator, check_gold, joint_score, simulate


class Decays(Simulator):
    """A decay of mean tau, or with probability 1 - share something that lasts ten times as long."""

    parameters = (Parameter("tau", 1, 4), Parameter("share", 0.2, 0.9))

    def sample(self, theta, design, generator):
        tau, share = theta.T
        first, second = torch.rand(2, len(theta), generator=generator, dtype=torch.float64)
        s = first < share
        t = -torch.where(s, tau, 10.0) * torch.log1p(-second)
        z = torch.stack([s.double(), t], 1)
        return z + torch.randn(len(t), 2, generator=generator), z

    def log_joint(self, theta, x, z, design):
        tau, share = theta.T
        return torch.where(z[:, 0] == 1, torch.log(share / tau) - z[:, 1] / tau, torch.log1p(-share))


def alarms(seeds, rows):
    found = [check_gold(Decays(), simulate(Decays(), rows, seed=seed, progress=False)) for seed in seeds]
    return [report.verdict for report in found if not report.passed]


@pytest.mark.parametrize("rows", [300, 3000])
def test_heavy_tails_raise_no_alarm(rows):
    assert not alarms(range(15), rows)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1000, 3000])
def test_heavy_tails_raise_no_alarm_in_many_campaigns(rows, monkeypatch):
    assert not alarms(range(150), rows)
    monkeypatch.setattr("sbi_core.gold_identities._STEP", 0.7)
    monkeypatch.setattr("sbi_core.gold_identities._SMALL_STEP", 0.7)
    monkeypatch.setattr("sbi_core.gold_check._FEWEST", 15.0)
    assert len(alarms(range(150), rows)) >= 2, "saboteur: far contrasts, and tests that rest on 15 rows"


def test_a_wrong_mean_life_is_found():
    class Wrong(Decays):
        def log_joint(self, theta, x, z, design):
            return super().log_joint(theta * 1.1, x, z, design)

    assert not check_gold(Wrong(), simulate(Wrong(), 10_000, seed=1, progress=False)).passed


class Jumps(Simulator):
    """Five latents with a kink at theta, so that the slope of the score is 0 wherever there is one; x ~ N(z, 1).

    `kind` says which: Laplace, beside a normal one too; or of a width that is a parameter, too.
    """

    def __init__(self, kind):
        self.kind = kind
        self.parameters = (Parameter("mu", -1, 1), Parameter("b", 0.5, 2))[: 1 + (kind == "width")]

    def sample(self, theta, design, generator):
        u, n = torch.rand(len(theta), 5, generator=generator, dtype=torch.float64) - 0.5, len(theta)
        width = theta[:, 1:] if self.kind == "width" else 1.0
        z = theta[:, :1] - width * u.sign() * torch.log1p(-2 * u.abs())
        if self.kind == "beside":
            z[:, 0] = theta[:, 0] + torch.randn(n, generator=generator, dtype=torch.float64)
        return z + torch.randn(z.shape, generator=generator), z

    def log_joint(self, theta, x, z, design):
        width = theta[:, 1:] if self.kind == "width" else torch.ones_like(theta[:, :1])
        log_p = -(z - theta[:, :1]).abs() / width - width.log()
        if self.kind == "beside":
            log_p = torch.cat([-((z[:, :1] - theta[:, :1]) ** 2) / 2, log_p[:, 1:]], 1)
        return log_p.sum(1)


def false_jumps(kind):
    def wrong(change):
        class Wrong(Jumps):
            def log_joint(self, theta, x, z, design):
                return change(super().log_joint, theta, x, z, design)

        return Wrong(kind)

    yield wrong(lambda right, theta, x, z, d: 0.9 * right(theta, x, z, d))
    yield wrong(lambda right, theta, x, z, d: -right(theta, x, z, d))
    yield wrong(lambda right, theta, x, z, d: right(theta, x, x, d))
    yield wrong(lambda right, theta, x, z, d: right(theta + 0.1, x, z, d))
    yield wrong(lambda right, theta, x, z, d: right(theta, x, z, d) + 0.5 * theta[:, 0])
    yield wrong(lambda right, theta, x, z, d: right(theta, x.roll(1, 0), z.roll(1, 0), d))
    yield wrong(lambda right, theta, x, z, d: right(theta, x, z[:, [0, 1, 2, 3, 3]], d))


KINDS = ("laplace", "beside", "width")


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_jump_raise_no_alarm(kind):
    for seed, rows in enumerate((1000, 3000, 3000, 3000, 10_000, 10_000)):
        report = check_gold(Jumps(kind), simulate(Jumps(kind), rows, seed=seed, progress=False))
        assert report.passed, report.verdict
        counted = {test.name for test in report.rows if test.passed}
        assert rows < 10_000 or "score: Fisher information" in counted, "and the test counts"


@pytest.mark.parametrize("kind", KINDS)
def test_false_scores_that_jump_are_found(kind):
    rows = simulate(Jumps(kind), 10_000, seed=1, progress=False)
    for number, false in enumerate(false_jumps(kind)):
        assert not check_gold(false, rows).passed, number


def test_a_kink_beside_a_row_is_no_fault_of_its_slope():
    """Whichever side it is on; a score that is wrong there still is."""
    world = Jumps("laplace")
    rows = simulate(world, 500, seed=1, progress=False)
    z = rows.z.clone()
    z[::50, 0] = rows.theta[::50, 0] + torch.linspace(-3e-5, 3e-5, 10)
    near, name = replace(rows, z=z), "score against the finite difference of log_joint"
    score = joint_score(world, near)
    for number, stored in enumerate((score, score + 1e-3 * (torch.arange(500) == 250)[:, None])):
        report = check_gold(world, replace(near, joint_score=stored))
        assert [test.passed for test in report.rows if test.name == name] == [number == 0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_jump_raise_no_alarm_in_many_campaigns(kind):
    for seed in range(100, 200):
        report = check_gold(Jumps(kind), simulate(Jumps(kind), 3000, seed=seed, progress=False))
        assert report.passed, report.verdict
