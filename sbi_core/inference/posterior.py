"""What every posterior is: a distribution over theta that says what was checked."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from sbi_core.errors import InputError
from sbi_core.parameters import Parameter, positions


class Posterior(Distribution):
    """A `torch.distributions.Distribution` over theta, event shape (D,): it can be the next prior.

    Attributes:
        parameters: the D axes of theta.
        verdicts: what was checked, and what came out; "unchecked" where nothing was.
        flags: what a careful reader should know, in sentences.
        members: the posteriors of an ensemble's members one by one: what training left open.
        seed: of its draws.
        x_obs: what it was inferred from.
        has_density: whether `log_prob` is known.
        levels: nominal level -> level of the region to quote (see `Recalibration`); `None` if they are the same.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  (the base class declares it so)
    parameters: tuple[Parameter, ...]
    verdicts: Mapping[str, str]
    flags: Sequence[str]
    members: "Sequence[Posterior]" = ()
    levels: Callable[[float], float] | None = None
    seed: int | None = None
    x_obs: Tensor | None = None
    has_density = True

    def spread(self, read: Callable[["Posterior"], Tensor]) -> Tensor:
        """Standard deviation over an ensemble's members of whatever is read from their posteriors.

        Of the ensemble's own posterior the standard error is this over the root of the number of members.

        Args:
            read: such as `lambda posterior: posterior.mean`; it gives a tensor (*).

        Raises:
            InputError: if the posterior is not that of an ensemble.
        """
        if not self.members:
            raise InputError("spread needs the posterior of an ensemble: infer(Ensemble([...]), ...).")
        return torch.stack([torch.as_tensor(read(member)) for member in self.members]).std(0)

    def marginal(self, names: Sequence[str]) -> "Posterior":
        """The posterior of the named parameters, in that order, the others integrated out."""
        found = self._marginal(self._columns(names))
        found.members = tuple(member.marginal(names) for member in self.members)
        return found

    def _marginal(self, kept: list[int]) -> "Posterior":
        raise NotImplementedError

    def curve(self, k: int) -> tuple[Tensor, Tensor]:
        """Density of parameter k for a picture: points (G,) and density there (G,); not for batches."""
        raise NotImplementedError

    def surface(self, j: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Joint density of parameters j and k for a picture: points (G,), (H,), density (G, H); not for batches."""
        raise NotImplementedError

    def threshold(self, level: float) -> Tensor:
        """Log density, nats (*), above which `level` of the probability lies."""
        raise NotImplementedError

    def contains(self, theta: Tensor, level: float = 0.683) -> Tensor:
        """Whether theta (*, D) lies in the region of highest density that holds `level` of the probability, (*)."""
        return self.log_prob(theta) >= self.threshold(level if self.levels is None else self.levels(level))

    def _columns(self, wanted: Sequence[str]) -> list[int]:
        """Positions of named parameters."""
        return positions(wanted, self.parameters)

    def credible_interval(self, level: float = 0.683) -> tuple[Tensor, Tensor]:
        """Equal-tailed interval of each parameter: ends (*, D)."""
        raise NotImplementedError

    def to_arviz(self) -> Any:
        """The draws as ArviZ reads them: an `InferenceData` with ArviZ below 1, an `xarray.DataTree` from 1 on.

        Raises:
            InputError: without ArviZ and xarray, which come with `pip install 'sbi-core[arviz]'`.
        """
        from sbi_core.inference.export import to_arviz

        return to_arviz(self)

    def to_netcdf(self, path: str | Path) -> Path:
        """Write the draws, their log density, x_obs, verdicts and flags to a netCDF file that every ArviZ reads.

        Raises:
            InputError: without xarray and h5netcdf, which come with `pip install 'sbi-core[arviz]'`.
        """
        from sbi_core.inference.export import to_netcdf

        return to_netcdf(self, path)

    def summary(self, level: float = 0.683) -> dict[str, dict[str, Any]]:
        """Mean, standard deviation and equal-tailed interval of each parameter, by name (not for batches).

        Of an ensemble also how far trainings lie apart: `mean_training`, `low_training` and `high_training` are the
        standard deviations of these over the members.
        """
        read: dict[str, Callable[[Posterior], Tensor]] = {
            "mean": lambda posterior: torch.as_tensor(posterior.mean),
            "low": lambda posterior: posterior.credible_interval(level)[0],
            "high": lambda posterior: posterior.credible_interval(level)[1],
        }
        columns = {name: get(self) for name, get in read.items()} | {"sd": torch.as_tensor(self.stddev)}
        if self.members:
            columns |= {f"{name}_training": self.spread(get) for name, get in read.items()}
        return {
            parameter.name: {"level": level, **{name: float(value[k]) for name, value in columns.items()}}
            for k, parameter in enumerate(self.parameters)
        }
