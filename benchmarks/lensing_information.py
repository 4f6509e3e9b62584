"""How much does a learned function know of f_sub and beta from an image of a lens, and can populations believe it?

A cell trains one estimator on images of the preset `mini` and measures it on fresh ones:

- gain: mean log posterior density at the truth over that of the prior, nats a lens, 3000 lenses of the prior;
- coverage of highest-density regions of 50, 80 and 90%: of those lenses, and of populations of 100 lenses, 100 of them
  at the fiducial point and 100 at thetas of the prior;
- bias, spread: mean and standard deviation over these populations of (posterior mean - truth) / posterior sd;
- information a lens at the fiducial point (.05, -.9) in f_sub, with beta known, and with beta fitted too ("profiled").
  Of the learned score t' as a statistic: (dE[t'] / dtheta)^T Cov[t']^-1 (dE[t'] / dtheta), where dE[t'] / dtheta is
  E[t' t] with the joint score t; no wrong scale of t' can raise it. Of the best linear function of the pixels: weights
  from one half of 10,000 images, information from the other. Of the latents: exactly.

    python benchmarks/lensing_information.py --seed 1          # adds a row to lensing_information.csv
    python benchmarks/lensing_information.py --table
"""

import argparse
import csv
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

import sbi_core.estimators
from sbi_core import joint_score, simulate
from sbi_core.estimators import Estimator, RatioEstimator, fit
from sbi_core.simulators import StrongLensing

TABLE = Path(__file__).with_suffix(".csv")
LENSES = StrongLensing("mini")
FIDUCIAL = torch.tensor([0.05, -0.9], dtype=torch.float64)
LEVELS = (0.5, 0.8, 0.9)
NODES, CELLS = (20, 12), 150
"""Places of f_sub and beta at which f is evaluated, and cells of each to which splines carry it."""


def places() -> tuple[Tensor, Tensor]:
    """Where f is evaluated: f_sub denser towards zero, (20,), beta (12,)."""
    low, high = (torch.tensor([getattr(axis, end) for axis in LENSES.parameters]) for end in ("low", "high"))
    f_sub, beta = (torch.linspace(0, 1, n, dtype=torch.float64) for n in NODES)
    return low[0] + (high - low)[0] * f_sub**1.5, low[1] + (high - low)[1] * beta


def cells() -> tuple[Tensor, Tensor]:
    """Centres of the cells of each axis, (150,)."""
    middle = (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS
    first, second = (axis.low + (axis.high - axis.low) * middle for axis in LENSES.parameters)
    return first, second


@torch.no_grad()
def evaluated(estimator: Estimator, x: Tensor) -> Tensor:
    """f of images x (N, P, P) at `places`, (N, 20, 12)."""
    theta = torch.cartesian_prod(*places())
    found = [estimator.observe(some[:, None])(theta[None]).double() for some in x.split(100)]
    return torch.cat(found).reshape(-1, *NODES)


def posterior(values: Tensor) -> Tensor:
    """Probability of the cells (N, 150, 150) for log likelihoods at `places` (N, 20, 12)."""
    each = zip(places(), cells(), strict=True)
    across, up = (torch.from_numpy(CubicSpline(at, np.eye(len(at)))(fine)) for at, fine in each)
    return (across @ values @ up.T).flatten(1).softmax(1).reshape(-1, CELLS, CELLS)


def judged(mass: Tensor, truth: Tensor) -> dict[str, Any]:
    """Coverage, and the pulls' mean and standard deviation, of posteriors (N, 150, 150) with truths (N, 2)."""
    column, row = (
        (truth[:, k, None] - at).abs().argmin(1) for k, at in enumerate(cells())
    )  # the cell that holds the truth
    flat, index = mass.flatten(1), column * CELLS + row
    own = flat.gather(1, index[:, None])
    level = torch.where(flat > own, flat, 0).sum(1)
    found: dict[str, Any] = {"coverage": " ".join(f"{float((level < q).double().mean()):.3f}" for q in LEVELS)}
    for name, marginal, at, true in zip(("f_sub", "beta"), (mass.sum(2), mass.sum(1)), cells(), truth.T, strict=True):
        mean = marginal @ at
        pull = (mean - true) / (marginal @ at.square() - mean.square()).sqrt()
        found[f"bias {name}"], found[f"spread {name}"] = round(float(pull.mean()), 2), round(float(pull.std()), 2)
    return found


def statistic_information(statistic: Tensor, joint: Tensor) -> Tensor:
    """Information (2, 2) in the mean of a statistic (N, S), with the joint scores (N, 2) of the same rows."""
    centred = statistic - statistic.mean(0)
    slope, covariance = centred.T @ joint / len(joint), centred.T @ centred / len(joint)
    return slope.T @ torch.linalg.solve(covariance, slope)


def linear_information(x: Tensor, joint: Tensor) -> Tensor:
    """Information (2, 2) of the best linear function of the pixels x (N, P, P)."""
    side = x.shape[-1] // 2  # the eight ways to turn and flip an image mean the same
    copies = [torch.rot90(part, k, (1, 2)) for k in range(4) for part in (x.double(), x.double().flip(-1))]
    pixels = (sum(copies) / 8)[:, :side, :side][:, torch.ones(side, side).tril().bool()]
    half = len(x) // 2
    first = pixels[:half] - pixels[:half].mean(0)
    weights = torch.linalg.solve(first.T @ first, first.T @ joint[:half])
    return statistic_information(pixels[half:] @ weights, joint[half:])


def learned_score(estimator: Estimator, x: Tensor, theta: Tensor) -> Tensor:
    """grad_theta f (N, 2), float64, of images x (N, P, P) at theta (2,)."""
    found = []
    for some in x.split(1000):
        at = theta.expand(len(some), 2).clone().requires_grad_()
        found.append(torch.autograd.grad(estimator.log_likelihood(at, some).sum(), at)[0])
    return torch.cat(found)


def measured(estimator: Estimator, *, seed: int = 0, populations: int = 100, lenses: int = 100) -> dict[str, Any]:
    """Everything about an estimator, on fresh images."""
    seeds = [10_000 + 10 * seed + k for k in range(3)]
    single = simulate(LENSES, 3000, seed=seeds[0], progress=False)
    mass = posterior(evaluated(estimator, single.x))
    first, second = cells()
    place = (single.theta[:, :1] - first).abs().argmin(1) * CELLS + (single.theta[:, 1:] - second).abs().argmin(1)
    gain = mass.flatten(1).gather(1, place[:, None])[:, 0].log() + 2 * math.log(CELLS)
    found = {"gain": round(float(gain.mean()), 4), "gain error": round(float(gain.std() / len(gain) ** 0.5), 4)}
    found["coverage"] = judged(mass, single.theta)["coverage"]

    many = simulate(LENSES, populations * lenses, proposal=FIDUCIAL, seed=seeds[1], progress=False)
    joint = joint_score(LENSES, many)
    matrices = {
        "": statistic_information(learned_score(estimator, many.x, FIDUCIAL), joint),
        "linear ": linear_information(many.x, joint),
        "latent ": LENSES.fisher_information(FIDUCIAL, latent=True),
    }
    for name, matrix in matrices.items():
        found[f"{name}information"] = round(float(matrix[0, 0]), 1)
        found[f"{name}profiled"] = round(float(1 / torch.linalg.inv(matrix)[0, 0]), 1)
    everywhere = simulate(LENSES, populations, seed=seeds[2], progress=False).theta
    spread = simulate(
        LENSES, populations * lenses, proposal=everywhere.repeat_interleave(lenses, 0), seed=seeds[2], progress=False
    )
    for name, rows, truth in (("fiducial", many, FIDUCIAL.expand(populations, 2)), ("prior", spread, everywhere)):
        values = evaluated(estimator, rows.x).unflatten(0, (populations, lenses)).sum(1)
        found |= {f"{name} {key}": value for key, value in judged(posterior(values), truth).items()}
    return found


def cell(asked: argparse.Namespace) -> dict[str, Any]:
    """Train one estimator and measure it."""
    data = simulate(LENSES, asked.simulations, seed=asked.seed, progress=False)
    network = {"name": asked.network, "symmetry": asked.symmetry}
    network |= {"copies": 1} if asked.symmetry != "none" else {}
    network |= {"pooled": []} if asked.scale == "pixel" else {}
    loss = getattr(sbi_core.estimators, asked.loss)
    loss = partial(loss, alpha=asked.alpha) if asked.alpha is not None else loss
    head = RatioEstimator.from_data(data, embedding=network, hidden=asked.hidden)
    started = time.process_time()
    options = {"batch_size": 128, "learning_rate": 1e-3, "max_epochs": asked.epochs, "progress": False}
    run = fit(head, loss, data, simulator=LENSES, seed=asked.seed, gold_check=False, **options)
    seconds = time.process_time() - started
    return {
        **{
            key: getattr(asked, key) for key in ("seed", "simulations", "loss", "alpha", "network", "symmetry", "scale")
        },
        "epochs": run.history["epoch"][-1],
        "weights": sum(weight.numel() for weight in head.parameters()),
        "training cpu s": round(seconds),
        **measured(run.estimator, seed=asked.seed),
    }


def main() -> None:
    """Run one cell and add it to the table, or print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--simulations", type=int, default=20_000)
    options.add_argument("--epochs", type=int, default=40)
    options.add_argument("--loss", default="alices")
    options.add_argument("--alpha", type=float, default=None)
    options.add_argument("--network", default="cnn")
    options.add_argument("--hidden", type=int, nargs="*", default=[32, 32, 32])
    options.add_argument("--symmetry", default="dihedral")
    options.add_argument("--scale", choices=("pixel", "image"), default="pixel")
    options.add_argument("--table", action="store_true")
    asked = options.parse_args()
    if not asked.table:
        row = cell(asked)
        new = not TABLE.exists()
        with TABLE.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
    with TABLE.open() as file:
        for row in csv.DictReader(file):
            print("  ".join(f"{key} {value}" for key, value in row.items() if value))


if __name__ == "__main__":
    main()
