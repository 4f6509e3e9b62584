"""Expected information gain from one function f(theta, x, design): read-out, contrastive bounds, exact brackets."""

import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.design.estimates import Rollouts, Term
from sbi_core.design.gain import LOWER, NONE, UPPER, Gain, bracketed
from sbi_core.design.readers import check_exact, joint_reader, of_runs, reader
from sbi_core.design.rollouts import inner_set, roll, see
from sbi_core.errors import InputError, MissingGold, SbiWarning
from sbi_core.simulations import Info, Simulations
from sbi_core.simulator import Simulator

OUTER, INNER = 1024, 1024
"""Experiments, and thetas that see each of them, by default."""

FEW = 10.0
"""Thetas of the inner set that must matter to an experiment, or its posterior is not resolved."""

WRONG = 1e-4
"""p-value of `Rollouts.balance` below which f is called wrong."""


def posterior_gain(
    estimator: Any,
    simulator: Simulator,
    prior: Distribution,
    design: Any = None,
    *,
    n: int = OUTER,
    inner: int = INNER,
    seed: int = 0,
) -> Gain:
    """Expected information gain read from posteriors: the mean over simulated x of KL(prior e^f / Z || prior).

    With weights w_l = e^f(theta_l, x) / sum e^f over L thetas of the belief, KL = sum_l w_l f(theta_l, x) - log Z, Z
    the mean of e^f. The theta that made x is integrated out, so the terms spread less than log ratios do, and much less
    once their regression on the posterior means of theta and theta^2 is taken off, which average to the belief's own
    (if they do not, f is wrong, and a flag says so). The bias of order 1 / L is taken off by the jackknife. Where few
    thetas of the belief matter to an experiment, half of the L are drawn near its posterior, and weighted. Class labels
    are summed over instead of simulated, if f is normalised in x: then no call of the simulator is needed.
    Labels come as often as f says, everything else as the simulator makes it.
    It is no bound: where f is wrong, it may be on either side (see `contrastive_bound`).

    Args:
        estimator: anything with `observe`, trained at many designs if it has any; a simulator that knows its exact
            likelihood gives the exact gain, apart from sampling.
        simulator: what is to be run; `Events` for runs of the size that will be taken.
        prior: the current belief, event shape (D,); theta is averaged over it.
        design: (K,), or `None` for the simulator's own.
        n: experiments to simulate.
        inner: thetas to see each with.
        seed: fixes all; the same seed at other designs uses the same random numbers.

    Raises:
        InputError: for a term that is not finite, or what `simulate` refuses.
    """
    estimator = of_runs(estimator, simulator)
    if _sums_labels(estimator, simulator):
        return _over_labels(estimator, simulator, prior, design, inner, seed)
    found = roll(reader(estimator), simulator, prior, design, n=n, inner=inner, seed=seed, near=True)
    flags, method = doubts(found), "posterior read-out"
    return _said(_gain(found, _divergence, NONE, method, corrected=True, controlled=not flags, flags=flags))


def contrastive_bound(
    estimator: Any,
    simulator: Simulator,
    prior: Distribution,
    design: Any = None,
    *,
    n: int = OUTER,
    inner: int = INNER,
    seed: int = 0,
) -> Gain:
    """Prior-contrastive estimation: a lower bound in expectation for any f, and at most log(L + 1).

        E[f(theta_0, x) - log (1 / (L + 1)) sum_(l=0..L) e^f(theta_l, x)],  x ~ p(x | theta_0)

    On simulations that f was not trained on it certifies a read-out; with the exact likelihood it is sPCE. Foster et
    al., arXiv:1911.00294, eq. 9, and arXiv:2103.02438, eq. 9; van den Oord et al., arXiv:1807.03748, for a learned f.
    Their L thetas are independent; here they may be spread evenly, and the bound holds as S = sum_(l>0) e^f_l then
    varies less: E[(L + 1) e^f_0 / (e^f_0 + S) | x] over theta_0 of the belief, convex in S, is 1 for independent ones.
    Arguments as in `posterior_gain`.
    """
    estimator = of_runs(estimator, simulator)
    found = roll(reader(estimator), simulator, prior, design, n=n, inner=inner, seed=seed)
    return _said(contrastive(found, exact=isinstance(estimator, Simulator)))


def nested_bound(
    simulator: Simulator,
    prior: Distribution,
    design: Any = None,
    *,
    n: int = OUTER,
    inner: int = INNER,
    seed: int = 0,
) -> Gain:
    """Nested Monte Carlo with a common inner set: an upper bound in expectation, for exact likelihoods.

        E[log p(x | theta_0) - log (1 / L) sum_(l=1..L) p(x | theta_l)]

    By Jensen's inequality, as the L thetas are independent of the pair; it is sNMC of Foster et al., arXiv:2103.02438,
    eq. 10, with L thetas common to all x, and falls to the gain like 1 / L (Rainforth et al., arXiv:1709.06181).
    Arguments as in `posterior_gain`.

    Raises:
        InputError: if the simulator states no exact likelihood: a wrong f gives no upper bound.
    """
    check_exact(simulator)
    found = roll(reader(simulator), simulator, prior, design, n=n, inner=inner, seed=seed)
    return _said(_gain(found, _nested_term(found), UPPER, "nested Monte Carlo"))


def bracket(
    simulator: Simulator,
    prior: Distribution,
    design: Any = None,
    *,
    n: int = OUTER,
    inner: int = INNER,
    seed: int = 0,
) -> tuple[Gain, Gain]:
    """`contrastive_bound` and `nested_bound` of an exact likelihood from the same experiments; they hold the gain."""
    check_exact(simulator)
    found = roll(reader(simulator), simulator, prior, design, n=n, inner=inner, seed=seed)
    pair = bracketed(contrastive(found, exact=True), _gain(found, _nested_term(found), UPPER, "nested Monte Carlo"))
    return _said(pair[0]), _said(pair[1])


def latent_bound(
    simulator: Simulator,
    prior: Distribution,
    design: Any = None,
    *,
    n: int = OUTER,
    inner: int = INNER,
    seed: int = 0,
) -> Gain:
    """I(theta; x, z | design) from joint ratios: an upper bound of the gain that needs no training.

    Nested Monte Carlo of log p(x, z | theta): z and x together say at least as much about theta as x does. Arguments
    as in `posterior_gain`.

    Raises:
        MissingGold: if the simulator has no `log_joint`.
    """
    if not simulator.has_gold:
        raise MissingGold(f"latent_bound needs joint ratios, and simulator '{simulator.name}' has no log_joint.")
    found = roll(joint_reader(simulator), simulator, prior, design, n=n, inner=inner, seed=seed)
    return _said(_gain(found, _nested_term(found), UPPER, "joint ratios", flags=resolved(found)))


def linear_gaussian_gain(matrix: Any, noise: Any, covariance: Any) -> Gain:
    """1/2 log det(1 + A S A^T N^-1): the gain of x ~ N(A theta, N) about theta ~ N(mu, S), nats.

    Args:
        matrix: A (P, D).
        noise: N (P, P).
        covariance: S (D, D).

    Example:
        >>> round(linear_gaussian_gain([[1.0]], [[1.0]], [[3.0]]).value, 6)
        0.693147
    """
    a, n, s = (torch.as_tensor(value, dtype=torch.float64) for value in (matrix, noise, covariance))
    if a.ndim != 2 or n.shape != (len(a), len(a)) or s.shape != (a.shape[1], a.shape[1]):
        raise InputError(
            f"matrix {tuple(a.shape)}, noise {tuple(n.shape)}, covariance {tuple(s.shape)}: expected (P, D), (P, P) "
            "and (D, D)."
        )
    lower = torch.linalg.cholesky(n)
    seen = torch.linalg.solve_triangular(lower, a, upper=False) @ torch.linalg.cholesky(s)
    value = 0.5 * torch.linalg.slogdet(torch.eye(len(a)).double() + seen @ seen.mT)[1]
    return Gain(float(value), 0.0, NONE, "closed form")


def _gain(
    found: Rollouts,
    term: Term,
    direction: str,
    method: str,
    *,
    corrected: bool = False,
    controlled: bool = False,
    ceiling: float = math.inf,
    flags: tuple[str, ...] = (),
) -> Gain:
    value, error = found.estimate(term, corrected=corrected, controlled=controlled)
    calls = len(found.theta)
    return Gain(value, error, direction, method, ceiling, calls, found.evaluations, found.seconds, flags=flags)


def _said(gain: Gain) -> Gain:
    """The same, and a warning for what makes a bound none."""
    for text in gain.flags:
        if text.startswith("EIG bound"):
            warnings.warn(text, SbiWarning, stacklevel=3)
    return gain


def contrastive(found: Rollouts, *, exact: bool = False) -> Gain:
    """The lower bound of `contrastive_bound`, from rollouts."""

    def term(log_sum: Tensor, mean: Tensor, inner: int) -> Tensor:
        return found.own - torch.logaddexp(log_sum, found.own) + math.log(inner + 1)

    return _gain(found, term, LOWER, "sPCE" if exact else "contrastive bound", ceiling=math.log(found.inner + 1))


def _nested_term(found: Rollouts) -> Term:
    return lambda log_sum, mean, inner: found.own - log_sum + math.log(inner)


def _divergence(log_sum: Tensor, mean: Tensor, inner: int) -> Tensor:
    return mean[:, 0] - log_sum + math.log(inner)


def resolved(found: Rollouts) -> tuple[str, ...]:
    """A flag if the inner set is too coarse for the posteriors."""
    matter = found.effective()
    if matter >= FEW:
        return ()
    return (f"EIG: of {found.inner} thetas only {matter:.1f} matter to an experiment. Raise inner.",)


def doubts(found: Rollouts) -> tuple[str, ...]:
    """Flags of a read-out: an inner set that is too coarse, or else an f whose posteriors do not balance."""
    flags = resolved(found)
    if flags or found.balance() > WRONG:
        return flags
    return ("EIG: posterior means do not average to the belief's own, so f is wrong somewhere.",)


def _sums_labels(estimator: Any, simulator: Simulator) -> bool:
    """Whether x is one label, and the estimator says how probable each is."""
    normalised = isinstance(estimator, Simulator) or getattr(estimator, "normalized", None) == "x"
    return bool(simulator.categories) and normalised


def _over_labels(estimator: Any, simulator: Simulator, prior: Distribution, design: Any, inner: int, seed: int) -> Gain:
    started = time.monotonic()
    others = inner_set(simulator, prior, inner, seed)
    labels = torch.arange(simulator.categories or 0).double()[:, None]
    at = None if design is None else torch.as_tensor(design, dtype=torch.float64).expand(len(labels), -1)
    rows = Simulations(others[:1].expand(len(labels), -1), labels, Info(simulator.parameters), design=at)
    found = see(reader(estimator), rows, others, started)

    def term(log_sum: Tensor, mean: Tensor, count: int) -> Tensor:
        share = (log_sum - math.log(count)).exp() * len(labels)
        return torch.where(share > 0, share * _divergence(log_sum, mean, count), 0.0)

    value, error = found.estimate(term, drawn=False, corrected=True)
    method = "posterior read-out, summed over x"
    return Gain(value, error, NONE, method, evaluations=found.evaluations, seconds=found.seconds)
