"""What a simulator is: one event, its latents, and the part of log p(x, z | theta) that knows theta."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.errors import MissingGold, SimulatorError
from sbi_core.identity import plain as _plain
from sbi_core.identity import program
from sbi_core.parameters import Parameter
from sbi_core.priors import UniformPrior

LogLikelihood = Callable[[Tensor], Tensor]
"""theta (*, D) -> log p(x_obs | theta) in nats, (*), up to a term without theta."""


class Mined(NamedTuple):
    """What a call of `Simulator.mine` returns: M events, and what is kept of their latents.

    Attributes:
        x: (M, ...); NaN marks a failed row.
        z: latents that `log_joint` reads, (M, ...).
        joint_score: grad_theta log p(x, z | theta, design) at each row's own theta, (M, D).
        joint_log_ratio: log p(x, z | theta, design) - log p(x, z | theta_alt, design), (M, C).
        failures: why rows failed whose x is NaN, where that is known: number of the row in this call -> exception.
    """

    x: Tensor
    z: Tensor | None = None
    joint_score: Tensor | None = None
    joint_log_ratio: Tensor | None = None
    failures: Mapping[int, BaseException] | None = None


class Simulator(abc.ABC):
    """A program that draws latents z and an observation x from p(x, z | theta, design), one event a row.

    A subclass names its `parameters` and writes `sample`. If it can also write the part of log p(x, z | theta) that
    depends on theta as `log_joint`, it has gold: joint likelihood ratios and joint scores at any theta follow
    (Brehmer, Louppe, Pavez & Cranmer, arXiv:1805.12244, eqs. 5 and 6).

    Attributes:
        parameters: the D axes of theta.
        designs: the K axes of the experiment setting (may be empty). `design=None` means the simulator's own default.
        rows_per_seed: rows drawn by one call of `sample` and one seed; 1 for code that works row by row.
        categories: x is a class label below this number, stored as one number a row; `None` for anything else.
        x_shape: the shape of one observation, if it is known before the first call.
        design_score: whether `log_joint` keeps every term with the design too.
        runs_foreign_code: whether somebody else's code draws the rows, which may not keep to the generator it is given.
        contrasts: thetas C beside its own at which each row's joint likelihood is kept by `mine`.
        version: to be changed whenever the same seed gives other rows.
    """

    parameters: tuple[Parameter, ...] = ()
    designs: tuple[Parameter, ...] = ()
    rows_per_seed: int = 1000
    categories: int | None = None
    x_shape: tuple[int, ...] | None = None
    design_score: bool = False
    contrasts: int = 0
    runs_foreign_code: bool = False
    version: str = "1"

    @property
    def name(self) -> str:
        """The class's name: what messages and stores call this simulator."""
        return type(self).__name__

    @property
    def prior(self) -> Distribution:
        """Density of theta, event shape (D,): uniform on the parameters' ranges unless overridden."""
        return UniformPrior(self.parameters)

    @property
    def settings(self) -> dict[str, Any]:
        """What else fixes the rows, as plain data: fields of a dataclass, or public instance attributes."""
        if dataclasses.is_dataclass(self):
            pairs = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        else:
            pairs = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        pairs = {key: value for key, value in pairs.items() if not hasattr(Simulator, key)}
        called = {key: callable(value) and not isinstance(value, type) for key, value in pairs.items()}
        return {key: program(value) if called[key] else _plain(value) for key, value in sorted(pairs.items())}

    @property
    def has_gold(self) -> bool:
        """Whether `log_joint` exists."""
        return type(self).log_joint is not Simulator.log_joint

    def may_give(self, column: str) -> bool:
        """Whether rows may have a column of gold, "joint_score" or "joint_log_ratio": mined now, or read from z."""
        mined = self.contrasts > 0 if column == "joint_log_ratio" else type(self).mine is not Simulator.mine
        return self.has_gold or mined

    @abc.abstractmethod
    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw one event per row.

        Args:
            theta: (M, D), float64.
            design: (M, K), float64, or `None` for the default setting.
            generator: the only source of random numbers.

        Returns:
            x (M, ...) and the latents z (M, ...), or `None` where none are kept. NaN in x marks a failed row.
        """

    def mine(self, theta: Tensor, theta_alt: Tensor | None, design: Tensor | None, generator: torch.Generator) -> Mined:
        """Draw one event per row, with the gold that can be kept only while the program runs; by default, none.

        For programs whose latents are no short vector from which a `log_joint` could be read afterwards. Rows then
        carry their joint score and the joint ratios to C contrasts, which `simulate` draws from the proposal
        (from the prior where thetas are given one by one).

        Args:
            theta: (M, D), float64.
            theta_alt: (M, C, D), float64; `None` if `contrasts` is 0.
            design: (M, K), float64, or `None` for the default setting.
            generator: the only source of random numbers.

        Raises:
            SimulatorError: if `sample` does not return a pair.
        """
        made = self.sample(theta, design, generator)
        if not isinstance(made, tuple) or len(made) != 2:
            raise SimulatorError(f"simulator '{self.name}': got {type(made).__name__}, expected a pair (x, z).")
        return Mined(*made)

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """log p(x, z | theta, design) in nats up to terms free of theta.

        Args:
            theta: (M, D), float64, perhaps with a gradient.
            x: (M, ...), float64.
            z: (M, ...), float64.
            design: (M, K) or `None`.

        Returns:
            (M,), float64.
        """
        raise MissingGold(f"simulator '{self.name}' has no log_joint.")

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta, design) in nats, where it is known; theta (*, D), x (*, event), as (*)."""
        raise NotImplementedError(f"simulator '{self.name}' states no exact log_likelihood.")

    def observe(self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None) -> LogLikelihood:
        """Return the function theta (*, D) -> log p(x | theta, design) (*), x (*, event), n_events (*) if needed."""
        options = {} if n_events is None else {"n_events": n_events}
        return lambda theta: self.log_likelihood(theta, x, design, **options)

    @property
    def is_exact(self) -> bool:
        """Whether `log_likelihood` exists."""
        return type(self).log_likelihood is not Simulator.log_likelihood

    def count(self, z: Tensor | None) -> Tensor | None:
        """Number of events in each row (M,), for simulators of runs; `None` where a row is one event."""
        return None

    def check_rows(self, n: int, proposal: Distribution | Tensor) -> None:  # noqa: B027  (most have nothing to say)
        """Warn of what a campaign should know; `simulate` calls this before n rows are drawn.

        The proposal is a density of theta, event shape (D,), or one theta (D,), or one a row (n, D).
        """

    def draw(self, axes: Any, simulations: Any) -> None:
        """Draw some simulations for people to look at; the default shows nothing."""
        axes.text(0.5, 0.5, f"{self.name} draws no picture", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
