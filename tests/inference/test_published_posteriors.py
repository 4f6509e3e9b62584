"""Every method on exact likelihoods against published samples of the posterior (arXiv:2101.04653)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sbi_core import infer
from sbi_core.simulators import SLCP, TwoMoons

REFERENCE = Path(__file__).parent.parent / "simulators" / "reference"


SLOW = pytest.param("slcp", "hmc", marks=pytest.mark.slow)


def published(task, number):
    with np.load(REFERENCE / f"{task}.npz", allow_pickle=False) as archive:
        return torch.from_numpy(archive[f"x_obs_{number}"]), torch.from_numpy(archive[f"posterior_{number}"]).double()


def features(theta):
    """What tells posteriors with several modes apart, (S, F)."""
    pairs = [theta[:, j] * theta[:, k] for j in range(theta.shape[1]) for k in range(j + 1)]
    signs = [(theta[:, k] > 0).double() for k in range(theta.shape[1])]
    return torch.stack([*theta.T, *theta.abs().T, *pairs, *signs], 1)


def largest_z(draws, effective, truth):
    ours, theirs = features(draws), features(truth)
    error = (ours.var(0) / effective + theirs.var(0) / len(theirs)).sqrt()
    return float(((ours.mean(0) - theirs.mean(0)) / error.clamp(min=1e-6)).abs().max())


@pytest.mark.parametrize(
    ("task", "method"),
    [("two_moons", "grid"), ("two_moons", "hmc"), ("two_moons", "importance"), SLOW],
)
@pytest.mark.parametrize(
    "number", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_moments_and_modes(task, method, number):
    world = {"two_moons": TwoMoons(), "slcp": SLCP()}[task]
    x_obs, truth = published(task, number)
    posterior = infer(world, world.prior, x_obs, method=method, seed=1, time_limit=200.0)
    draws = posterior.sample((4000,))
    effective = 4000 if method == "grid" else 400  # at least, by the verdicts' own standard
    assert posterior.flags == () or method == "grid"
    assert largest_z(draws, effective, truth) < 4
    one_mode = truth[truth[:, 0] > truth[:, 0].median()]
    assert largest_z(draws, effective, one_mode) > 4, "saboteur: half of the posterior"
