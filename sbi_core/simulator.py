"""What a simulator is: one event, its latents, and the part of log p(x, z | theta) that knows theta."""

import abc
import ast
import dataclasses
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError, MissingGold, SimulatorError
from sbi_core.parameters import Parameter, names
from sbi_core.priors import UniformPrior

LogLikelihood = Callable[[Tensor], Tensor]
"""theta (*, D) -> log p(x_obs | theta) in nats, (*), up to a term without theta."""


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
        version: to be changed whenever the same seed gives other rows.
    """

    parameters: tuple[Parameter, ...] = ()
    designs: tuple[Parameter, ...] = ()
    rows_per_seed: int = 1000
    categories: int | None = None
    x_shape: tuple[int, ...] | None = None
    design_score: bool = False
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
        return {key: _plain(value) for key, value in sorted(pairs.items())}

    @property
    def has_gold(self) -> bool:
        """Whether `log_joint` exists."""
        return type(self).log_joint is not Simulator.log_joint

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

    def draw(self, axes: Any, simulations: Any) -> None:
        """Draw some simulations for people to look at; the default shows nothing."""
        axes.text(0.5, 0.5, f"{self.name} draws no picture", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()


def _plain(value: Any) -> Any:
    """Make a setting comparable and writable: arrays become a hash, functions their name and a hash of their code."""
    if isinstance(value, Tensor | np.ndarray):
        array = np.ascontiguousarray(value.numpy(force=True) if isinstance(value, Tensor) else value)
        return f"{array.dtype}{list(array.shape)}:{hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Simulator):
        return {"simulator": value.name, "version": value.version, **value.settings}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Parameter):
        return dataclasses.asdict(value)
    if isinstance(value, types.FunctionType):
        return value.__qualname__ + _fingerprint(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def _fingerprint(function: types.FunctionType) -> str:
    """Hash of a function's own code, comments and layout apart; empty where the source cannot be had."""
    try:
        code = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, SyntaxError):
        return ""
    return ":" + hashlib.sha256(code.encode()).hexdigest()[:16]


class FunctionSimulator(Simulator):
    """A plain Python or NumPy function as a simulator without gold.

    Args:
        function: ``function(theta, rng) -> x``, or ``function(theta, design, rng) -> x`` if designs are given.
            Vectorised: theta (M, D) in, x (M, ...) out. Row by row: theta (D,) in, x of one row out.
            `rng` is a `numpy.random.Generator`, the only source of random numbers.
        parameters: the axes of theta.
        designs: the axes of the experiment setting.
        vectorized: whether the function takes all rows at once.
        rows_per_seed: rows drawn by one call and one seed; 1000 if vectorised, else 1.
        prior: any distribution with event shape (D,); uniform on the parameters' ranges by default.
        categories: x is a class label below this number.
        x_shape: the shape of one observation, if it should be checked from the first call on.

    Example:
        >>> import sbi_core
        >>> def shift(theta, rng):
        ...     return theta + 0.3 * rng.standard_normal(theta.shape)
        >>> toy = FunctionSimulator(shift, [Parameter("mu", -2, 2)])
        >>> sbi_core.simulate(toy, 5, seed=1, progress=False).x.shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        function: Callable[..., Any],
        parameters: Sequence[Parameter],
        *,
        designs: Sequence[Parameter] = (),
        vectorized: bool = True,
        rows_per_seed: int | None = None,
        prior: Distribution | None = None,
        categories: int | None = None,
        x_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.function = function
        self.parameters = tuple(parameters)
        self.designs = tuple(designs)
        self.vectorized = vectorized
        self.rows_per_seed = rows_per_seed or (1000 if vectorized else 1)
        self._prior = prior
        self.categories = categories
        self.x_shape = x_shape

    @property
    def prior(self) -> Distribution:
        """Density of theta, event shape (D,)."""
        return self._prior if self._prior is not None else super().prior

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, None]:
        """Call the function on theta (M, D), with a NumPy generator seeded from 256 bits of `generator`; x (M, ...)."""
        words = torch.randint(0, 2**32, (8,), generator=generator)
        rng = np.random.default_rng(words.tolist())
        if self.designs and design is None:
            raise InputError(f"simulator '{self.name}' has designs {names(self.designs)}: give simulate(design=...).")
        columns = [theta.numpy()] if design is None else [theta.numpy(), design.numpy()]
        if self.vectorized:
            return self._tensor(self.function(*columns, rng), columns[0][0].tolist()), None
        rows: list[Tensor] = []
        for row in zip(*columns, strict=True):
            at, shape = row[0].tolist(), tuple(rows[0].shape) if rows else self.x_shape
            x = self._tensor(self.function(*row, rng), at)
            if not x.ndim:
                raise SimulatorError(self._wrong("a single number", at, "an array; of shape (1,) for one number a row"))
            if shape is not None and x.shape != shape:
                raise SimulatorError(self._wrong(f"shape {tuple(x.shape)}", at, f"shape {shape} in every row"))
            rows.append(x)
        return torch.stack(rows), None

    def _tensor(self, x: Any, theta: list[float]) -> Tensor:
        if not isinstance(x, Tensor | np.ndarray | np.generic | float | int):
            raise SimulatorError(self._wrong(type(x).__name__, theta, "an array"))
        return to_column("x", x)

    def _wrong(self, got: str, theta: list[float], expected: str) -> str:
        first = "the first theta of the call is" if self.vectorized else "at theta ="
        return f"simulator '{self.name}': the function returned {got}, expected {expected}; {first} {theta}."
