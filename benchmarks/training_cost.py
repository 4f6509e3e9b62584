"""Cells that measure the cost of training: one epoch against a bare loop, and CPU seconds until sbi's held-out loss."""

import copy
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from estimator_methods import HEADS, train
from reference_posteriors import PROBLEMS
from torch import Tensor
from torch.nn.functional import softplus

import sbi_core.estimators
from sbi_core import Simulations, simulate
from sbi_core.errors import SbiWarning
from sbi_core.estimators import Estimator, PosteriorEstimator, RatioEstimator, carl, fit

BATCH = 500
FRESH = 2000
"""Rows on which held-out losses are compared; the same for both libraries, and in no training."""

ATOMS = 10
"""Thetas among which a ratio must find the one that made x."""


def epoch_cell(simulations: int, seed: int) -> list[dict[str, Any]]:
    """Median CPU seconds of one epoch of `fit` and of a bare loop, carl on SLCP, by turns within one training.

    At each look of a training of the default length the bare loop runs one epoch too, so that both meet the same
    moods of the machine. An epoch of `fit` bears its share of the look before it. The bare loop has a network of the
    same shape and starting weights on the same number of training rows, scaled beforehand to float32, with index
    batches of the same size, the same loss, AdamW and contrasts that are other rows' theta; no regression, no averages
    of weights, no clipping, no schedule, no record, and denormals as torch has them by default.
    """
    data = simulate(PROBLEMS["slcp"], simulations, seed=seed, progress=False)
    head = RatioEstimator.from_data(data)
    head.adapt(data)
    bare = _bare_epochs(head, data[: round(0.9 * len(data))])
    ours, theirs, last = [], [], (0.0, 0.0)

    def note(line: Mapping[str, float]) -> None:
        nonlocal last
        epoch, before = last
        if epoch:
            ours.append((time.process_time() - before) / (line["epoch"] - epoch))
        torch.set_flush_denormal(False)
        theirs.append(next(bare))
        torch.set_flush_denormal(True)
        last = (line["epoch"], time.process_time())

    options = {"patience": 10**6, "batch_size": BATCH, "device": "cpu", "progress": False}
    fit(head, carl, data, seed=seed, callback=note, **options)
    return [{"epoch_seconds": float(np.median(ours)), "bare_seconds": float(np.median(theirs))}]


def _bare_epochs(estimator: RatioEstimator, data: Simulations, contrasts: int = 2) -> Iterator[float]:
    """CPU seconds of one epoch after another."""
    theta, x = estimator.theta_scaler(data.theta), estimator.x_scaler(data.x)
    network = copy.deepcopy(estimator.network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    while True:
        started = time.process_time()
        for index in torch.randperm(len(theta)).split(BATCH):
            other = theta[torch.randint(len(theta), (len(index), contrasts))]
            every = torch.cat([theta[index, None], other], 1)
            value = network(torch.cat([x[index, None].expand(-1, 1 + contrasts, -1), every], -1))[..., 0]
            optimizer.zero_grad()
            softplus(value[:, 1:] - value[:, :1]).mean().backward()
            optimizer.step()
        yield time.process_time() - started


def cost_cell(problem: str, method: str, simulations: int, seed: int) -> list[dict[str, Any]]:
    """CPU seconds of sbi's training and its held-out loss; of ours, until that loss is reached and until the end.

    The loss is read on the same fresh rows: minus log density in the simulator's units for nle and npe (as trained,
    without correction for mass outside the prior), and for nre minus the log probability of the right theta among
    ATOMS, the others from the prior. Ours is read at each look at the validation rows, from the weights that would be
    kept there; reading it does not count. `reached_cpu_seconds` is the first look at or below sbi's loss, infinite if
    there is none. `peer_best_cpu_seconds` is the share of sbi's training up to the epoch whose weights it returns: the
    rest is its patience.
    """
    simulator = PROBLEMS[problem]
    data = simulate(simulator, simulations, seed=seed, progress=False)
    fresh = simulate(simulator, FRESH, seed=20_000 + seed, progress=False)
    peer = train("sbi", method, data, simulator, seed)
    epochs = peer.trainer.summary["epochs_trained"][-1]
    best = 1 + int(np.argmin(peer.trainer.summary["validation_loss"][:epochs]))
    target = held_out_loss(method, peer.network, fresh, ours=False)
    looks = watched_fit(method, data, simulator, fresh, seed)
    reached = [used for used, loss in looks[:-1] if loss <= target]
    return [
        {
            "loss": looks[-1][1],
            "peer_loss": target,
            "reached_cpu_seconds": reached[0] if reached else float("inf"),
            "peer_cpu_seconds": peer.cpu_seconds,
            "peer_best_cpu_seconds": peer.cpu_seconds * best / epochs,
            "cpu_seconds": looks[-1][0],
        }
    ]


def watched_fit(
    method: str, data: Simulations, simulator: Any, fresh: Simulations, seed: int
) -> list[tuple[float, float]]:
    """Train with the defaults: (CPU seconds, held-out loss) at each look, and at last of what `fit` returns."""
    loss, looks, looked, paused = getattr(sbi_core.estimators, method), [], [], [0.0]

    @functools.wraps(loss)
    def watched(estimator: Estimator, batch: Any) -> Tensor:
        if not torch.is_grad_enabled():
            looked[:] = [estimator]
        return loss(estimator, batch)

    def look(line: Any) -> None:
        now = time.process_time()
        looks.append((now - started - paused[0], held_out_loss(method, looked[0], fresh, ours=True)))
        paused[0] += time.process_time() - now

    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiWarning)
        run = fit(
            HEADS[method].from_data(data), watched, data, simulator=simulator, seed=seed, callback=look, progress=False
        )
    used = time.process_time() - started - paused[0]
    return [*looks, (used, held_out_loss(method, run.estimator, fresh, ours=True))]


def held_out_loss(method: str, network: Any, rows: Simulations, *, ours: bool) -> float:
    """The loss of a network of either library on rows, nats a row."""
    theta, x = (rows.theta, rows.x) if ours else (rows.theta.float(), rows.x.float())
    with torch.no_grad():
        if method == "nre":
            together = torch.stack([theta.roll(k * len(theta) // ATOMS, 0) for k in range(ATOMS)], 1)
            value = _ratio_values(network, together, x, ours=ours)
            return float(-torch.log_softmax(value.double(), 1)[:, 0].mean())
        if not ours:
            value, given = (x, theta) if method == "nle" else (theta, x)
            return float(-network.log_prob(value[None], condition=given).mean())
        ask: Callable[[Tensor, Tensor], Tensor] = network.log_likelihood
        if isinstance(network, PosteriorEstimator):
            ask = network.log_posterior
        return float(-ask(theta, x).double().mean())


def _ratio_values(network: Any, theta: Tensor, x: Tensor, *, ours: bool) -> Tensor:
    """f at theta (N, ATOMS, D) for x (N, P), as (N, ATOMS)."""
    if ours:
        found: Tensor = network.log_likelihood(theta, x[:, None])
        return found
    flat: Tensor = network(theta.flatten(0, 1), x.repeat_interleave(ATOMS, 0))
    return flat.reshape(len(x), ATOMS)
