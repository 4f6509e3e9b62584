"""A user's function as a simulator."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError, SimulatorError
from sbi_core.parameters import Parameter, names
from sbi_core.simulator import Simulator


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
