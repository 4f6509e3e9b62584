import pytest
import torch

from sbi_core import InputError, infer
from sbi_core.inference.hamilton import OutOfTime
from sbi_core.simulators import LinearGaussian, TwoMoons

WORLD = LinearGaussian(3)
X = torch.tensor([1.0, -0.5, 2.0])


def test_it_agrees_with_the_closed_form():
    found = infer(WORLD, WORLD.prior, X, method="nuts", n=150, seed=1)
    exact = WORLD.posterior(X)
    said = found.verdicts["chains"]
    assert said.startswith("4 chains agree") and found.draws.shape == (4, 150, 3)
    effective = int(said.split("draws ")[1].split()[0])
    z = (found.mean - exact.mean) / exact.stddev * effective**0.5
    assert z.abs().max() < 4
    assert (((found.mean + 0.5 * exact.stddev) - exact.mean) / exact.stddev * effective**0.5).abs().max() > 4, (
        "saboteur"
    )
    assert torch.allclose(found.stddev, exact.stddev, rtol=4 / (2 * effective) ** 0.5)


def test_an_edge_of_the_prior():
    world = TwoMoons()
    x_obs = torch.tensor([0.9, 0.0])
    found = infer(world, world.prior, x_obs, method="nuts", chains=2, n=30, seed=1)
    assert bool(world.prior.support.check(found.draws).all())


def test_what_it_does_not_serve():
    with pytest.raises(InputError, match="one observation and one training at a time; method='hmc'"):
        infer(WORLD, WORLD.prior, torch.stack([X, X]), batch=True, method="nuts")


def test_the_time_limit(monkeypatch):
    monkeypatch.setattr("sbi_core.inference.nuts.WARMUP", 1)
    with pytest.raises(OutOfTime, match="time limit"):
        infer(WORLD, WORLD.prior, X, method="nuts", time_limit=1e-6, seed=1)
    found = infer(WORLD, WORLD.prior, X, method="nuts", n=10**6, time_limit=5.0, seed=1)
    assert any("ended it" in flag for flag in found.flags) and "unchecked" in found.verdicts["chains"]
