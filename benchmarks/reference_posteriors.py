"""The benchmark tasks with known posteriors: simulators, observations, and samples of the true posterior.

Observations and samples of two moons, SLCP and Gaussian linear are published ones (sbi-benchmark/sbibm, MIT, Copyright
2020 Jan-Matthis Lueckmann, Jan Boelts, David S. Greenberg, Pedro J. Goncalves, Jakob H. Macke; arXiv:2101.04653), read
from a folder. Of Bernoulli GLM the observations are published; its samples come from long chains on the exact
likelihood, made once and kept in bernoulli_glm_reference.npz:

    python benchmarks/reference_posteriors.py    # makes that file again and prints its checks
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from sbi_core import Simulator
from sbi_core.simulators import SLCP, BernoulliGLM, LinearGaussian, TwoMoons

HERE = Path(__file__).parent
OWN = HERE / "bernoulli_glm_reference.npz"
THINNED = HERE.parent / "tests" / "simulators" / "reference"
PUBLISHED = HERE.parent.parent / "shared" / "reference" / "sbibm"

PROBLEMS: dict[str, Simulator] = {
    "two_moons": TwoMoons(),
    "slcp": SLCP(),
    "bernoulli_glm": BernoulliGLM(),
    "gaussian_linear": LinearGaussian.benchmark(),
}
OBSERVATIONS = (1, 2, 3)
SAMPLES = 1000
"""Samples on each side of every comparison."""

NEURON = (
    (56.0, 3.32306, 14.356438, 11.104893, -4.167525, -18.507809, -21.917496, -9.553517, -0.357257, -5.497825),
    (64.0, -13.708698, -21.951843, -25.772211, -18.224155, -7.3405523, 0.19755906, -10.989475, -12.838102, -1.656197),
    (76.0, -9.43663, -24.140686, -16.834919, -11.550104, 5.4781427, 2.9003608, -4.5652, -10.978831, -17.152586),
)
"""Published observations 1 to 3 of Bernoulli GLM."""


def default_folder() -> Path:
    """The published samples where they lie beside the checkout, otherwise the thinned ones of the tests."""
    return PUBLISHED if PUBLISHED.exists() else THINNED


@dataclass(frozen=True)
class Reference:
    """One observation (P,) and samples of its posterior (SAMPLES, D), float64."""

    x_obs: Tensor
    posterior: Tensor


def reference(problem: str, observation: int, folder: Path) -> Reference:
    """Read one; of more samples than SAMPLES the first are taken, so both folders give the same."""
    with np.load(OWN if problem == "bernoulli_glm" else folder / f"{problem}.npz", allow_pickle=False) as archive:
        x_obs, posterior = archive[f"x_obs_{observation}"], archive[f"posterior_{observation}"][:SAMPLES]
    return Reference(torch.from_numpy(x_obs).double(), torch.from_numpy(posterior).double())


def laplace(world: BernoulliGLM, x_obs: Tensor) -> MultivariateNormal:
    """The normal with the posterior's mode and curvature, by Newton's method; the posterior is log-concave."""
    prior = world.prior
    assert isinstance(prior, MultivariateNormal)
    theta = prior.mean
    for _ in range(50):
        precision = world.fisher_information(theta) + prior.precision_matrix
        slope = world.score(theta, x_obs) - prior.precision_matrix @ theta
        theta = theta + torch.linalg.solve(precision, slope)
    return MultivariateNormal(theta, precision_matrix=precision)


def exact_chains(
    world: BernoulliGLM, x_obs: Tensor, *, chains: int = 1000, steps: int = 400, freedom: float = 10.0
) -> tuple[Tensor, float]:
    """Last states of independent Metropolis-Hastings chains (chains, D), and their acceptance.

    Proposals come from a multivariate t around the mode, whatever the state, so a chain forgets its start at the first
    few acceptances.
    """
    normal, dims = laplace(world, x_obs), len(x_obs)
    factor = normal.scale_tril

    def excess(theta: Tensor) -> Tensor:
        """log posterior - log proposal, (M,)."""
        size = torch.linalg.solve_triangular(factor, (theta - normal.mean).T, upper=False).square().sum(0)
        target = world.log_likelihood(theta, x_obs) + world.prior.log_prob(theta)
        return target + 0.5 * (freedom + dims) * torch.log1p(size / freedom)

    def propose() -> Tensor:
        width = torch.distributions.Chi2(torch.tensor(freedom).double()).sample((chains, 1)) / freedom
        return normal.mean + torch.randn(chains, dims, dtype=torch.float64) @ factor.T / width.sqrt()

    theta = propose()
    value, accepted = excess(theta), 0.0
    for _ in range(steps):
        new = propose()
        there = excess(new)
        take = torch.rand(chains).double().log() < there - value
        theta, value = torch.where(take[:, None], new, theta), torch.where(take, there, value)
        accepted += float(take.double().mean()) / steps
    return theta, accepted


def stein(world: BernoulliGLM, x_obs: Tensor, theta: Tensor) -> Tensor:
    """What must be zero for draws theta (M, D) of the posterior p, in standard errors, (D + D^2,).

    E g = 0 and E[theta_i g_j] = -delta_ij with g = grad log p.
    """
    prior = world.prior
    assert isinstance(prior, MultivariateNormal)
    slope = world.score(theta, x_obs) - (theta - prior.mean) @ prior.precision_matrix
    each = torch.cat([slope, ((theta[:, :, None] * slope[:, None]) + torch.eye(theta.shape[1])).flatten(1)], 1)
    return each.mean(0) / (each.std(0) / len(theta) ** 0.5)


def make() -> None:
    """Write bernoulli_glm_reference.npz and print what was checked."""
    world, kept = BernoulliGLM(), {}
    torch.manual_seed(0)
    for number, values in enumerate(NEURON, 1):
        x_obs = torch.tensor(values).double()
        theta, accepted = exact_chains(world, x_obs)
        off, wrong = (stein(world, x_obs, t) for t in (theta, theta + 0.2 * theta.std(0)))
        print(
            f"observation {number}: acceptance {accepted:.2f}; 110 identities of the posterior: rms {off.std():.2f}, "
            f"largest {off.abs().max():.1f} standard errors (all shifted by .2 sd: {wrong.abs().max():.1f})"
        )
        kept |= {f"x_obs_{number}": x_obs.numpy(), f"posterior_{number}": theta[:SAMPLES].float().numpy()}
    np.savez_compressed(OWN, **kept)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make()
