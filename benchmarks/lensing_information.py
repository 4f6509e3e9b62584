"""How much does a learned function know of f_sub and beta from an image of a lens, and can populations believe it?

A cell trains one estimator on images of the preset `mini` and measures it on fresh ones:

- gain: mean log posterior density at the truth over that of the prior, nats a lens, 3000 lenses of the prior;
- all of what follows for f as trained, and centred (`Centring`: its mean slope at each theta taken away), in two rows;
- coverage of highest-density regions of 50, 80 and 90%: of those lenses, and of populations of 100 lenses, 300 of them
  at the fiducial point and 300 at thetas of the prior, of which those with f_sub below .02 are counted apart too;
- bias, spread: mean and standard deviation over these populations of (posterior mean - truth) / posterior sd;
- information a lens at the fiducial point (.05, -.9) in f_sub, with beta known, and with beta fitted too ("profiled").
  Of the learned score t' as a statistic: (dE[t'] / dtheta)^T Cov[t']^-1 (dE[t'] / dtheta), where dE[t'] / dtheta is
  E[t' t] with the joint score t; no wrong scale of t' can raise it. Of the best linear function of the pixels: weights
  from one half of 10,000 images, information from the other. Of the latents: exactly.

    python benchmarks/lensing_information.py --seed 1          # adds two rows to lensing_information.csv
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
FEW = 0.02
"""f_sub below which populations have few subhalos; there most was wrong."""

NODES, CELLS = (28, 12), (300, 120)
"""Places of f_sub and beta at which f is evaluated, and cells of each to which splines carry it."""

NEAR_ZERO = 4.0
"""Both lie denser towards f_sub = 0, by a factor of e to this: posteriors are narrow there."""


def at(*share: Tensor) -> tuple[Tensor, Tensor]:
    """f_sub and beta (*) at shares (*) of the way through their ranges."""
    f_sub, beta = LENSES.parameters
    bent = torch.expm1(NEAR_ZERO * share[0]) / math.expm1(NEAR_ZERO)
    return f_sub.low + (f_sub.high - f_sub.low) * bent, beta.low + (beta.high - beta.low) * share[1]


def places() -> tuple[Tensor, Tensor]:
    """Where f is evaluated: f_sub (28,), beta (12,)."""
    return at(*(torch.linspace(0, 1, n, dtype=torch.float64) for n in NODES))


def cells() -> tuple[Tensor, Tensor]:
    """Centres of the cells, f_sub (300,), beta (120,)."""
    return at(*((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in CELLS))


def widths() -> Tensor:
    """Widths of the cells of f_sub, up to a factor, (300, 1): their prior probabilities."""
    edges = at(torch.linspace(0, 1, CELLS[0] + 1, dtype=torch.float64), torch.zeros(1))[0]
    return edges.diff()[:, None]


def cell_of(theta: Tensor) -> Tensor:
    """Number of the cell that holds theta (N, 2), (N,)."""
    first, second = ((theta[:, k, None] - middle).abs().argmin(1) for k, middle in enumerate(cells()))
    return first * CELLS[1] + second


@torch.no_grad()
def evaluated(estimator: Estimator, x: Tensor) -> Tensor:
    """f of images x (N, P, P) at `places`, (N, 28, 12)."""
    theta = torch.cartesian_prod(*places())
    found = [estimator.observe(some[:, None])(theta[None]).double() for some in x.split(100)]
    return torch.cat(found).reshape(-1, *NODES)


def log_density(values: Tensor) -> Tensor:
    """Log posterior density (N, 300, 120), with respect to the prior, for log likelihoods at `places` (N, 28, 12)."""
    across, up = (
        torch.from_numpy(CubicSpline(np.linspace(0, 1, few), np.eye(few))((np.arange(many) + 0.5) / many))
        for few, many in zip(NODES, CELLS, strict=True)
    )
    found = across @ values @ up.T
    prior = (widths() / widths().sum() / CELLS[1]).log()
    return found - (found + prior).flatten(1).logsumexp(1)[:, None, None]


def judged(density: Tensor, truth: Tensor) -> dict[str, Any]:
    """Coverage, and the pulls' mean and standard deviation, of `log_density` (N, 300, 120) with truths (N, 2)."""
    mass = density.exp() * widths() / widths().sum() / CELLS[1]
    flat, own = density.flatten(1), density.flatten(1).gather(1, cell_of(truth)[:, None])
    level = torch.where(flat > own, mass.flatten(1), 0).sum(1)
    found: dict[str, Any] = {"coverage": " ".join(f"{float((level < q).double().mean()):.3f}" for q in LEVELS)}
    for name, marginal, place, true in zip(
        ("f_sub", "beta"), (mass.sum(2), mass.sum(1)), cells(), truth.T, strict=True
    ):
        mean = marginal @ place
        pull = (mean - true) / (marginal @ place.square() - mean.square()).sqrt()
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


def measured(estimator: Estimator, *, seed: int = 0, populations: int = 300, lenses: int = 100) -> dict[str, Any]:
    """Everything about an estimator, on fresh images."""
    seeds = [10_000 + 10 * seed + k for k in range(3)]
    single = simulate(LENSES, 3000, seed=seeds[0], progress=False)
    density = log_density(evaluated(estimator, single.x))
    gain = density.flatten(1).gather(1, cell_of(single.theta)[:, None])[:, 0]
    found = {"gain": round(float(gain.mean()), 4), "gain error": round(float(gain.std() / len(gain) ** 0.5), 4)}
    found["coverage"] = judged(density, single.theta)["coverage"]

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
        found |= {f"{name} {key}": value for key, value in judged(log_density(values), truth).items()}
    few = everywhere[:, 0] < FEW
    found["prior coverage, few"] = judged(log_density(values[few]), everywhere[few])["coverage"]
    return found


def rows(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Train one estimator and measure it, as it is and centred."""
    data = simulate(LENSES, asked.simulations, seed=asked.seed, progress=False)
    network = {"name": asked.network, "symmetry": asked.symmetry}
    network |= {"copies": 1} if asked.symmetry != "none" else {}
    network |= {"pooled": []} if asked.scale == "pixel" else {}
    loss = getattr(sbi_core.estimators, asked.loss)
    loss = partial(loss, alpha=asked.alpha) if asked.alpha is not None else loss
    head = RatioEstimator.from_data(data, embedding=network, hidden=asked.hidden, centred=True)
    started = time.process_time()
    options = {"batch_size": 128, "learning_rate": 1e-3, "max_epochs": asked.epochs, "progress": False}
    run = fit(head, loss, data, simulator=LENSES, seed=asked.seed, gold_check=False, **options)
    seconds = time.process_time() - started
    about = {
        **{
            key: getattr(asked, key) for key in ("seed", "simulations", "loss", "alpha", "network", "symmetry", "scale")
        },
        "epochs": run.history["epoch"][-1],
        "weights": sum(weight.numel() for weight in head.parameters()),
        "training cpu s": round(seconds),
    }
    degree = run.estimator.centring.degree
    found = [{**about, "centred": degree, **measured(run.estimator, seed=asked.seed)}]
    run.estimator.centring.coefficients.zero_()
    return [{**about, "centred": "no", **measured(run.estimator, seed=asked.seed)}, *found]


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
        found = rows(asked)
        new = not TABLE.exists()
        with TABLE.open("a", newline="") as file:
            writer = csv.DictWriter(file, found[0])
            if new:
                writer.writeheader()
            writer.writerows(found)
    with TABLE.open() as file:
        for row in csv.DictReader(file):
            print("  ".join(f"{key} {value}" for key, value in row.items() if value))


if __name__ == "__main__":
    main()
