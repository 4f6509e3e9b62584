"""Train any method of either library on the same rows, with nothing but the defaults of each."""

import contextlib
import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

import sbi_core.estimators
from sbi_core import Simulations, Simulator
from sbi_core.estimators import Estimator, LikelihoodEstimator, PosteriorEstimator, RatioEstimator, fit

RATIO = ("carl", "nre", "rolr", "alice", "nre_gold", "cascal", "rascal", "alices")
HEADS: dict[str, type[Estimator]] = {
    **dict.fromkeys(RATIO, RatioEstimator),
    "nle": LikelihoodEstimator,
    "scandal": LikelihoodEstimator,
    "npe": PosteriorEstimator,
}
PEERS = ("nle", "nre", "npe")


def own(method: str, data: Simulations, simulator: Simulator, seed: int) -> Estimator:
    """Train one of ours; `alices@0` is `alices` with alpha = 0."""
    name, _, alpha = method.partition("@")
    loss = getattr(sbi_core.estimators, name)
    if name == "sally":
        head = sbi_core.estimators.ScoreEstimator.from_data(data, theta_ref=[-0.7])
    else:
        head = HEADS[name].from_data(data)
    if alpha:
        loss = partial(loss, alpha=float(alpha))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sbi_core.errors.SbiWarning)
        return fit(head, loss, data, simulator=simulator, seed=seed, progress=False).estimator


class Silent:
    """Takes sbi's metrics and drops them; its default writes them to the working folder."""

    log_dir = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None


def peer_prior(prior: Distribution) -> Distribution:
    """The same prior as sbi wants it, float32."""
    from sbi.utils import BoxUniform

    if isinstance(prior, sbi_core.priors.UniformPrior):
        return BoxUniform(prior.low.float(), prior.high.float())
    covariance = prior.covariance_matrix if isinstance(prior, MultivariateNormal) else torch.diag(prior.variance)
    return MultivariateNormal(prior.mean.float(), covariance.float())


def peer(method: str, data: Simulations, simulator: Simulator, seed: int) -> tuple[Any, Any]:
    """Train sbi's NLE, NRE or NPE with its defaults; return its network and its trainer."""
    from sbi.inference import NLE, NPE, NRE

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (sbi reads it)
    kinds = {"nle": NLE, "nre": NRE, "npe": NPE}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        prior = peer_prior(simulator.prior)
        trainer = kinds[method](prior=prior, show_progress_bars=False, tracker=Silent())
        network = trainer.append_simulations(data.theta.float(), data.x.float()).train()
    return network, trainer


@dataclass(frozen=True)
class Trained:
    """What can be asked of a trained method of either library.

    Attributes:
        likelihood: x_obs (P,) -> (theta (M, D) -> nats (M,)); `None` if it draws.
        draw: (x_obs (P,), n) -> theta (n, D); `None` if it needs a sampler.
        cpu_seconds: of training.
        network: the estimator of either library.
        trainer: sbi's, with its records.
    """

    likelihood: Callable[[Tensor], Callable[[Tensor], Tensor]] | None
    draw: Callable[[Tensor, int], Tensor] | None
    cpu_seconds: float
    network: Any
    trainer: Any = None


def train(library: str, method: str, data: Simulations, simulator: Simulator, seed: int) -> Trained:
    """Train a method of "sbi_core" or "sbi"; "exact" is the simulator's own likelihood, untrained."""
    if library == "exact":
        return Trained(lambda x: lambda theta: simulator.log_likelihood(theta, x), None, 0.0, simulator)
    started = time.process_time()
    if library == "sbi_core":
        estimator = own(method, data, simulator, seed)
        used = time.process_time() - started
        if isinstance(estimator, PosteriorEstimator):
            return Trained(None, estimator.sample, used, estimator)
        return Trained(estimator.observe, None, used, estimator)
    network, trainer = peer(method, data, simulator, seed)
    used = time.process_time() - started
    if method == "npe":
        return Trained(None, partial(_peer_draw, trainer, network), used, network, trainer)
    return Trained(partial(_peer_likelihood, method, network, simulator.prior), None, used, network, trainer)


def _peer_draw(trainer: Any, network: Any, x_obs: Tensor, n: int) -> Tensor:
    posterior = trainer.build_posterior(network)
    drawn: Tensor = posterior.sample((n,), x=x_obs.float()[None], show_progress_bars=False, max_sampling_time=300.0)
    return drawn.double()


def _peer_likelihood(method: str, network: Any, prior: Distribution, x_obs: Tensor) -> Callable[[Tensor], Tensor]:
    from sbi.inference import likelihood_estimator_based_potential, ratio_estimator_based_potential

    prior = peer_prior(prior)
    build = {"nle": likelihood_estimator_based_potential, "nre": ratio_estimator_based_potential}[method]
    potential, _ = build(network, prior, x_obs.float()[None])

    def log_likelihood(theta: Tensor) -> Tensor:
        theta = theta.float()
        inside = prior.support.check(theta)  # float32 may round a theta onto the edge
        theta = torch.where(inside[:, None], theta, prior.mean)
        found: Tensor = potential(theta, track_gradients=False) - prior.log_prob(theta)
        return torch.where(inside, found.double(), -torch.inf)

    return log_likelihood
