"""Quick trainings that several tests share."""

from functools import cache

import torch

from sbi_core import (
    Parameter,
    Simulations,
    joint_log_ratio,
    joint_score,
    simulate,
)
from sbi_core.estimators import RatioEstimator, alices, fit
from sbi_core.seeding import seeded
from sbi_core.simulators import LinearGaussian

WORLD = LinearGaussian(2)
BOX = (Parameter("a", -2, 2), Parameter("b", -2, 2))


class Weak(LinearGaussian):
    """Its log_joint is 0.8 of what it should be."""

    def log_joint(self, theta, x, z, design):
        return 0.8 * super().log_joint(theta, x, z, design)


@cache
def rows(n=300, seed=1):
    return simulate(WORLD, n, seed=seed, progress=False)


def with_gold(data):
    """The same without z, but with two contrasts a row, their joint ratios, and the joint score."""
    with seeded(2):
        alt = WORLD.prior.sample((len(data), 2))
    ratios = [joint_log_ratio(WORLD, data, data.theta, alt[:, k]) for k in range(2)]
    score = joint_score(WORLD, data)
    return Simulations.from_arrays(
        data.theta,
        data.x,
        parameters=WORLD.parameters,
        theta_alt=alt,
        joint_log_ratio=torch.stack(ratios, 1),
        joint_score=score,
        proposal=WORLD.prior,
    )


def quick(data, loss=alices, hidden=(8,), **options):
    options = {"simulator": WORLD, "seed": 1, "max_epochs": 3, "progress": False} | options
    head = RatioEstimator.from_data(data, hidden=hidden, regression=False)  # with it, nothing would be left to learn
    return fit(head, loss, data, **options)


def bits(run_or_estimator):
    """Weights and scaling as bytes."""
    estimator = getattr(run_or_estimator, "estimator", run_or_estimator)
    return {name: value.numpy().tobytes() for name, value in estimator.state_dict().items()}
