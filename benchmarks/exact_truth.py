"""Cells where the true log ratio is known: the Galton board, and ten linear-Gaussian dimensions."""

from importlib.resources import files
from typing import Any

import torch
from estimator_methods import train
from torch import Tensor
from torch.distributions import Independent, Uniform

import sbi_core.simulators
from sbi_core import Simulations, infer, joint_score, simulate
from sbi_core.columns import read_csv
from sbi_core.estimators import Estimator
from sbi_core.simulators import GaltonBoard, LinearGaussian

BOARD = GaltonBoard()
SLOTS = torch.arange(5.0, 26.0)[:, None]
WORLD = LinearGaussian(10)
TRIPLES = 20_000


def pair_errors(estimator: Estimator, theta: Tensor) -> Tensor:
    """Return sum_x p(x | theta_j) (log r_hat - log r)^2 for all pairs of theta (T, 1), as (T, T)."""
    with torch.no_grad():
        learned = estimator.log_likelihood(theta[:, None], SLOTS).double()
    exact = BOARD.log_likelihood(theta[:, None], SLOTS)
    wrong = learned - exact
    return ((wrong[:, None] - wrong[None, :]) ** 2 * exact.exp()[None]).sum(-1)


def galton_cell(method: str, simulations: int, seed: int) -> list[dict[str, Any]]:
    """Error of log r at theta = -0.8 against -0.6, and its mean over a 13 x 13 grid of pairs in [-1, -0.4].

    Rows have theta uniform in [-1, -0.4]. `sally`, at theta_ref = -0.7, weights them to stand for it; its ratio is
    local, so there is no grid.
    """
    ends = torch.tensor([-1.0]).double(), torch.tensor([-0.4]).double()
    data = simulate(BOARD, simulations, proposal=Independent(Uniform(*ends), 1), seed=seed, progress=False)
    trained = train("sbi_core", method, data, BOARD, seed)
    pair = pair_errors(trained.network, torch.tensor([[-0.8], [-0.6]]).double())
    row = {"error": float(pair[0, 1]), "cpu_seconds": trained.cpu_seconds}
    if method != "sally":
        grid = pair_errors(trained.network, torch.linspace(-1, -0.4, 13).double()[:, None])
        row["grid"] = float(grid.mean())
    return [row]


def balls_cell(method: str, simulations: int, seed: int) -> list[dict[str, Any]]:
    """Total variation between the learned and the exact posterior of the 500 published balls, prior on [-1, 0]."""
    data = simulate(BOARD, simulations, seed=seed, progress=False)
    trained = train("sbi_core", method, data, BOARD, seed)
    balls = read_csv(str(files(sbi_core.simulators) / "data" / "galton_published_balls.csv"))[1]
    learned, exact = (infer(source, BOARD.prior, balls, iid=True) for source in (trained.network, BOARD))
    theta = (torch.arange(20_000).double()[:, None] + 0.5) / 20_000 - 1
    apart = (learned.log_prob(theta).exp() - exact.log_prob(theta).exp()).abs().mean() / 2
    return [{"error": float(apart), "cpu_seconds": trained.cpu_seconds}]


def score_regression(data: Simulations) -> Tensor:
    """Least squares of the joint score on (1, x, theta): coefficients (1 + P + D, D).

    The joint score t = (z - theta) / 4 has the conditional mean (x - theta) / 5, which is linear, with the same noise
    at every (theta, x): of all linear unbiased estimates from these rows and their scores this is the best one (Gauss
    and Markov). It uses all rows; `fit` keeps a tenth of them for validation.
    """
    score = joint_score(WORLD, data)
    rows = torch.cat([torch.ones(len(data), 1), data.x, data.theta], 1).double()
    found: Tensor = torch.linalg.lstsq(rows, score).solution
    return found


def data_regression(data: Simulations) -> Tensor:
    """The same coefficients without gold: least squares of x on (1, theta), and the covariance of its residuals.

    x = b + M theta + noise of covariance S gives the score M^T S^-1 (x - b - M theta).
    """
    rows = torch.cat([torch.ones(len(data), 1), data.theta], 1).double()
    found = torch.linalg.lstsq(rows, data.x.double()).solution
    residual = data.x.double() - rows @ found
    shift, matrix = found[0], found[1:].T
    precision = torch.linalg.inv(residual.T @ residual / (len(data) - rows.shape[1]))
    slope = matrix.T @ precision
    return torch.cat([-(slope @ shift)[None], slope.T, -(slope @ matrix).T])


def quadratic(coefficients: Tensor, theta: Tensor, x: Tensor) -> Tensor:
    """log p(x | theta) up to a term without theta whose gradient is c + A x + B theta, B made symmetric, (N,)."""
    constant, by_x, by_theta = coefficients.split([1, x.shape[1], theta.shape[1]])
    linear = (theta * (constant + x.double() @ by_x)).sum(-1)
    return linear + 0.5 * ((theta @ by_theta) * theta).sum(-1)


def triples() -> tuple[Tensor, Tensor, Tensor]:
    """theta and theta' from the prior and x ~ p(. | theta), the same for every method, (TRIPLES, 10) each."""
    fresh = simulate(WORLD, TRIPLES, seed=10_000, progress=False)
    return fresh.theta, fresh.theta.roll(1, 0), fresh.x


def mean_squared(here: Tensor, there: Tensor) -> float:
    """Mean squared error of log r = `here` - `there` (TRIPLES,) on the triples, nats squared."""
    theta, other, x = triples()
    exact = WORLD.log_likelihood(theta, x) - WORLD.log_likelihood(other, x)
    return float(((here - there).double() - exact).square().mean())


def gradient_error(estimator: Estimator, theta: Tensor, x: Tensor, step: float = 1e-2) -> float:
    """Root mean square of grad_theta f minus its central difference, over that of the gradient; float32 networks."""
    at = theta.clone().requires_grad_()
    slope = torch.autograd.grad(estimator.log_likelihood(at, x).sum(), at)[0]
    size = step * theta.std(0)
    with torch.no_grad():
        ends = [theta[:, None] + sign * torch.diag(size) for sign in (1, -1)]
        value = [estimator.log_likelihood(end, x[:, None]).double() for end in ends]
    difference = (value[0] - value[1]) / (2 * size)
    return float(((slope - difference) * size).square().mean().sqrt() / (slope * size).square().mean().sqrt())


def linear_cell(method: str, simulations: int, seed: int) -> list[dict[str, Any]]:
    """Mean squared error of log r over prior pairs, with that of both regressions on the same rows."""
    data = simulate(WORLD, simulations, seed=seed, progress=False)
    trained = train("sbi_core", method, data, WORLD, seed)
    theta, other, x = triples()
    with torch.no_grad():
        parts = [trained.network.log_likelihood(t, x) for t in (theta, other)]
    coefficients = score_regression(data), data_regression(data)
    by_score, by_data = (mean_squared(quadratic(c, theta, x), quadratic(c, other, x)) for c in coefficients)
    return [
        {
            "error": mean_squared(*parts),
            "best": by_score,
            "best_without_gold": by_data,
            "gradient": gradient_error(trained.network, theta[:200], x[:200]),
            "cpu_seconds": trained.cpu_seconds,
        }
    ]
