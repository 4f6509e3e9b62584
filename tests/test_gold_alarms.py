"""True gold with heavy tails raises no alarm: decay times, whose joint ratios have few finite moments."""

import pytest
import torch

from sbi_core import Parameter, Simulator, check_gold, simulate


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
    monkeypatch.setattr("sbi_core.gold_check._FEWEST", 30.0)
    assert len(alarms(range(150), rows)) >= 2, "saboteur: far contrasts, and tests that rest on 30 rows"


def test_a_wrong_mean_life_is_found():
    class Wrong(Decays):
        def log_joint(self, theta, x, z, design):
            return super().log_joint(theta * 1.1, x, z, design)

    assert not check_gold(Wrong(), simulate(Wrong(), 10_000, seed=1, progress=False)).passed
