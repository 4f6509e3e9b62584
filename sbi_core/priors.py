"""The default prior, and how a prior is written down without code."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints

from sbi_core.errors import InputError
from sbi_core.parameters import Parameter, names
from sbi_core.seeding import seeded

RECORDED = (
    "Uniform",
    "Normal",
    "LogNormal",
    "HalfNormal",
    "Beta",
    "Gamma",
    "Exponential",
    "Laplace",
    "Cauchy",
    "StudentT",
    "MultivariateNormal",
)


class UniformPrior(Distribution):
    """Independent uniform density on the closed box of the parameters' ranges; event shape (D,), float64.

    log p(theta) = -sum_d log(high_d - low_d) inside. An integer parameter has equal probability on each whole number.

    Args:
        parameters: D parameters with finite ranges.

    Raises:
        InputError: if a range is not finite.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  (the base class declares it so)

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = tuple(parameters)
        self.low = torch.tensor([p.low for p in self.parameters], dtype=torch.float64)
        self.high = torch.tensor([p.high for p in self.parameters], dtype=torch.float64)
        for parameter, low, high in zip(self.parameters, self.low, self.high, strict=True):
            if not bool(torch.isfinite(low) and torch.isfinite(high)):
                raise InputError(
                    f"Parameter '{parameter.name}' ranges from {parameter.low} to {parameter.high}; a uniform prior "
                    "needs a finite range. Give it one, or give the simulator a prior."
                )
        self.integer = torch.tensor([p.integer for p in self.parameters])
        super().__init__(event_shape=torch.Size([len(self.parameters)]), validate_args=False)

    def __repr__(self) -> str:
        return f"UniformPrior({', '.join(f'{p.name} in [{p.low:g}, {p.high:g}]' for p in self.parameters)})"

    @property
    def support(self) -> constraints.Constraint:
        """The closed box."""
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    @property
    def mean(self) -> Tensor:
        """Centre of the box, (D,)."""
        return (self.low + self.high) / 2

    @property
    def variance(self) -> Tensor:
        """Variance along each axis, (D,)."""
        width = self.high - self.low
        return torch.where(self.integer, ((width + 1) ** 2 - 1) / 12, width**2 / 12)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own signature)
        """Draw (*sample_shape, D) values."""
        return self.from_unit(torch.rand((*sample_shape, *self.event_shape), dtype=torch.float64))

    def from_unit(self, unit: Tensor) -> Tensor:
        """Quantiles of each axis: points of the unit cube (*, D), overwritten, become theta (*, D)."""
        width = self.high - self.low
        if not self.integer.any():
            return unit.mul_(width).add_(self.low)  # in place: training draws many
        return self.low + torch.where(self.integer, torch.floor(unit * (width + 1)).minimum(width), unit * width)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density (nats) of value (*, D), as (*)."""
        value = value.to(self.low)
        inside = (value >= self.low) & (value <= self.high) & ~(self.integer & (value != value.round()))
        density = -torch.log(self.high - self.low + self.integer.to(self.low)).sum()
        return torch.where(inside.all(-1), density, -torch.inf)


def describe(distribution: Distribution | None) -> dict[str, Any] | None:
    """Write a distribution down as plain data; what cannot be is named, marked opaque and known by what it draws."""
    if distribution is None:
        return None
    if isinstance(distribution, UniformPrior):
        return {"type": "UniformPrior", "parameters": [asdict(p) for p in distribution.parameters]}
    if isinstance(distribution, Independent):
        base = describe(distribution.base_dist)
        return {"type": "Independent", "base": base, "dims": distribution.reinterpreted_batch_ndims}
    kind = type(distribution)
    if kind.__name__ in RECORDED and kind is getattr(torch.distributions, kind.__name__):
        wanted = ("loc", "scale_tril") if kind.__name__ == "MultivariateNormal" else tuple(distribution.arg_constraints)
        return {"type": kind.__name__, "arguments": {key: getattr(distribution, key).tolist() for key in wanted}}
    with seeded(0):
        drawn = distribution.sample(torch.Size([1000])).double().numpy(force=True)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return {"type": name, "opaque": True, "draws": hashlib.sha256(drawn.tobytes()).hexdigest()[:16]}


def restore(description: Mapping[str, Any] | None) -> Distribution | None:
    """Build the distribution that `describe` wrote down; `None` for an opaque one. Runs no code but torch's own."""
    if description is None or description.get("opaque"):
        return None
    kind = description["type"]
    if kind == "UniformPrior":
        return UniformPrior([Parameter(**p) for p in description["parameters"]])
    if kind == "Independent":
        base = restore(description["base"])
        return None if base is None else Independent(base, description["dims"])
    if kind not in RECORDED:
        raise InputError(f"distribution type {kind!r} is not one of {', '.join(RECORDED)}.")
    arguments = {key: torch.tensor(value, dtype=torch.float64) for key, value in description["arguments"].items()}
    return getattr(torch.distributions, kind)(**arguments)


def bounds(support: constraints.Constraint, dims: int) -> tuple[Tensor, Tensor]:
    """Least and largest value that a support allows each of D parameters, (D,) each, float64; infinite if any.

    >>> bounds(constraints.independent(constraints.positive, 1), 2)
    (tensor([0., 0.], dtype=torch.float64), tensor([inf, inf], dtype=torch.float64))
    """
    base: Any = getattr(support, "base_constraint", support)
    ends = getattr(base, "lower_bound", -torch.inf), getattr(base, "upper_bound", torch.inf)
    low, high = (torch.as_tensor(end, dtype=torch.float64).expand(dims) for end in ends)
    return low, high


def check_prior(prior: Distribution, parameters: Sequence[Parameter], what: str = "prior") -> None:
    """Raise `InputError` unless the prior's events are as long as the parameters."""
    if not isinstance(prior, Distribution):
        raise InputError(f"{what}: expected a torch.distributions.Distribution, got {type(prior).__name__}.")
    expected = torch.Size([len(parameters)])
    if prior.event_shape != expected or prior.batch_shape:
        cure = " Wrap it in torch.distributions.Independent(prior, 1)." if prior.batch_shape == expected else ""
        raise InputError(
            f"{what} has event shape {tuple(prior.event_shape)} and batch shape {tuple(prior.batch_shape)}, but theta "
            f"has {len(parameters)} parameters {names(parameters)}: expected event shape {tuple(expected)}.{cure}"
        )
