"""Cells that compare learned posteriors with samples of the true ones: tasks c2st, gold and alpha."""

from pathlib import Path
from typing import Any

import torch
from estimator_methods import train
from posterior_sampling import c2st, moments, tempered_sample
from reference_posteriors import OBSERVATIONS, PROBLEMS, SAMPLES, reference

from sbi_core import simulate


def quality_cell(
    problem: str, method: str, library: str, simulations: int, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """Train once, then one row for each observation. Both libraries see the same rows at the same seed.

    Library "exact", with 0 simulations, is the simulator's own likelihood: what sampler and classifier alone say.
    """
    simulator = PROBLEMS[problem]
    data = simulate(simulator, max(simulations, 1), seed=seed, progress=False)
    trained = train(library, method, data, simulator, seed)
    rows = []
    for observation in OBSERVATIONS:
        truth = reference(problem, observation, folder)
        torch.manual_seed(1000 * seed + observation)
        if trained.draw is not None:
            samples = trained.draw(truth.x_obs, SAMPLES)
        else:
            assert trained.likelihood is not None
            samples = tempered_sample(trained.likelihood(truth.x_obs), simulator.prior, SAMPLES)
        offset, log_spread = moments(samples, truth.posterior)
        accuracy = c2st(samples, truth.posterior, seed)
        rows.append(
            {
                "observation": observation,
                "c2st": accuracy,
                "offset": offset,
                "log_spread": log_spread,
                "cpu_seconds": trained.cpu_seconds,
            }
        )
    return rows
