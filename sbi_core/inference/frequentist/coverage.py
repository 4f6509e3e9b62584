"""How often the sets contain the truth, over the range of theta."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError, nearest
from sbi_core.inference.checks.check import Check
from sbi_core.inference.frequentist.limits import METHODS
from sbi_core.inference.frequentist.maximum import Box
from sbi_core.inference.frequentist.neyman import Belt, signed
from sbi_core.inference.frequentist.rates import extended
from sbi_core.inference.frequentist.toys import Plan, toy_statistics
from sbi_core.inference.frequentist.wilks import asked_levels, interest
from sbi_core.parameters import Parameter
from sbi_core.seeding import fresh_seed, one_thread, seeded


@dataclass(frozen=True)
class Coverage:
    """Share of toys whose set contains the truth, at G thetas.

    Attributes:
        parameters: the D axes of theta.
        theta: the truths, (G, D).
        method: of the sets.
        levels: of confidence, L.
        share: (L, G).
        error: its standard error if the level held, binomial, from these toys and from those of the
            critical values, (L, G).
        p_value: of the truth in each toy, (G, T).
        belt: the toys of the critical values; `None` for Wilks' sets.
        seed: of everything random.
        seconds: that it took.
    """

    parameters: tuple[Parameter, ...]
    theta: Tensor
    method: str
    levels: tuple[float, ...]
    share: Tensor
    error: Tensor
    p_value: Tensor
    belt: Belt | None
    seed: int
    seconds: float

    @property
    def checks(self) -> tuple[Check, ...]:
        """One for each level: its worst theta, in a band of 4 standard errors."""
        return tuple(self._check(k) for k in range(len(self.levels)))

    def summary(self) -> dict[str, Any]:
        """Plain data: shares at each theta, and the checks."""
        return {
            "method": self.method,
            "theta": self.theta.tolist(),
            "share": {str(level): found.tolist() for level, found in zip(self.levels, self.share, strict=True)},
            "checks": [check.to_json() for check in self.checks],
            "seed": self.seed,
        }

    def _check(self, k: int) -> Check:
        level = self.levels[k]
        z = (self.share[k] - level) / self.error[k]
        worst = int(z.abs().argmax())
        value, error = float(self.share[k, worst]), float(self.error[k, worst])
        at = ", ".join(f"{p.name} = {v:.3g}" for p, v in zip(self.parameters, self.theta[worst].tolist(), strict=True))
        text = (
            f"{float(self.share[k].min()):.3f} to {float(self.share[k].max()):.3f} at {len(self.theta)} thetas; "
            f"farthest off at {at}: {value:.3f}, {float(z[worst]):+.1f} standard errors"
        )
        band = (level - 4 * error, level + 4 * error)
        return Check(f"coverage at {level:.1%}", "", value, band, bool((z.abs() <= 4).all()), text)


def coverage_map(
    estimator: Any,
    simulator: Any,
    theta: Any,
    *,
    of: Sequence[str] | str | None = None,
    method: str = "feldman_cousins",
    events: int = 1,
    design: Any = None,
    constraints: Mapping[Any, Distribution] | None = None,
    rate: Any = None,
    exposure: float = 1.0,
    level: float | Sequence[float] = (0.683, 0.95),
    toys: int = 500,
    critical_toys: int = 2000,
    ties: str = "shared",
    seed: int | None = None,
    time_limit: float = 600.0,
) -> Coverage:
    """Coverage of the sets of `limits`, measured with fresh toys at each theta.

    A truth is in the set of a toy if its p-value is above 1 - level, by other toys made at that theta ("neyman",
    "feldman_cousins") or by the chi-squared law ("profile"). With nuisance parameters those other toys are made at
    their true values.

    Args:
        estimator: what reads the toys.
        simulator: what draws them.
        theta: truths, (G, D).
        of: parameters of interest; by default all.
        method: as in `limits`.
        events: independent ones in each toy; with a rate the number is drawn.
        design: of all events, (K,), or one each, (events, K).
        constraints: auxiliary measurements, drawn anew in each toy.
        rate: as in `limits`.
        exposure: as in `limits`.
        level: of confidence.
        toys: fresh ones at each theta.
        critical_toys: others, that give the critical values.
        ties: "shared": toys with the same statistic are put in random order, so that a discrete statistic covers
            exactly as often as it should; "against": they count against the truth's exclusion, as in `limits`, and the
            sets of a discrete statistic cover too often.
        seed: of all toys.
        time_limit: seconds; there is no answer if it is too short.

    Raises:
        InputError: for arguments that do not fit, or out of time.
    """
    started = time.monotonic()
    axes: tuple[Parameter, ...] = getattr(estimator, "axes", None) or estimator.parameters
    columns = interest(of, axes)
    at = to_column("theta", theta)
    box = Box.of(axes)
    if at.ndim != 2 or at.shape[1] != len(axes) or bool(((at < box.low) | (at > box.high)).any()):
        raise InputError(f"theta has shape {tuple(at.shape)}, expected (G, {len(axes)}) inside the parameters' ranges.")
    if method not in METHODS:
        raise InputError(f"method = {method!r} is unknown: {nearest(method, METHODS)}")
    if method == "neyman" and len(columns) > 1:
        raise InputError("method='neyman' orders toys by a signed root, of one parameter. For two: 'feldman_cousins'.")
    if ties not in ("shared", "against"):
        raise InputError(f"ties = {ties!r}: expected 'shared' or 'against'.")
    levels = asked_levels(level)
    setting = None if design is None else to_column("design", design)
    poisson = extended(estimator, simulator, rate, exposure, setting)
    plan = Plan(estimator, box, columns, events, setting, poisson, constraints, simulator)
    plan.check()
    seed = fresh_seed() if seed is None else seed
    rows, belts = list[Tensor](), list[Belt]()
    with seeded(seed), one_thread():
        for point in at:
            fresh = toy_statistics(plan, point, toys)
            if method == "profile":
                rows.append(_chi_squared(fresh.q, len(columns)))
            else:
                other = toy_statistics(plan, point, critical_toys)
                one = Belt(point[None], other.q[None], other.estimate[None], method == "neyman", columns)
                psi = point[None, list(columns)]
                seen = signed(fresh.q[None], fresh.estimate[None], psi) if one.central else fresh.q[None]
                draw = torch.rand(seen.shape).double()
                rows.append(one.p_value(seen, draw if ties == "shared" else None)[0][0])
                belts.append(one)
            if time.monotonic() - started > time_limit:
                raise InputError(f"coverage_map: {time_limit:g} s ended it after {len(rows)} of {len(at)} thetas.")
    p = torch.stack(rows)
    wanted = torch.tensor(levels).double()[:, None].expand(-1, len(at))
    share = (p[None] > 1 - wanted[..., None]).double().mean(-1)
    fewer = 1 / toys + (1 / critical_toys if belts else 0.0)
    joined = None
    if belts:
        q, estimate = torch.cat([b.q for b in belts]), torch.cat([b.estimate for b in belts])
        joined = Belt(at, q, estimate, belts[0].central, columns)
    return Coverage(
        tuple(axes),
        at,
        method,
        levels,
        share,
        (wanted * (1 - wanted) * fewer).sqrt(),
        p,
        joined,
        seed,
        time.monotonic() - started,
    )


def _chi_squared(q: Tensor, dims: int) -> Tensor:
    """Probability of a larger q (T,) by Wilks' law, (T,)."""
    from scipy.stats import chi2  # slow to import

    return torch.from_numpy(chi2.sf(q.numpy(), dims))
