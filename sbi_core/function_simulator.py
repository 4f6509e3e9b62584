"""A user's function as a simulator."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError, SimulatorError, nearest
from sbi_core.parameters import Parameter, names
from sbi_core.simulator import Mined, Simulator

_GOLD = ("joint_score", "joint_log_ratio")


class FunctionSimulator(Simulator):
    """A plain function as a simulator; it may return its gold beside x.

    The function receives, in this order, theta; theta_alt if `contrasts` are asked for; the design if there are any;
    and the only source of random numbers, a `numpy.random.Generator` (a `torch.Generator` with `backend="torch"`).
    Vectorised, theta is (M, D), theta_alt (M, C, D), design (M, K), and x (M, ...) is expected. Row by row, the axis M
    is missing everywhere.

    It returns x, or a mapping (or `Mined`) with `x` and the gold it has: `joint_score`, grad_theta log p(x, z | theta),
    (M, D), and `joint_log_ratio`, log p(x, z | theta) - log p(x, z | theta_alt), (M, C), which needs `contrasts`. Both
    are those of the latents z that made x, not of x. Where log p(x, z | theta) can be written down afterwards from a
    short z, a subclass of `Simulator` is better: it has its gold at any theta.

    A store is continued only by a function of the same `sbi_core.identity.identity`.

    NaN in x marks a row that failed; so does an exception in code that works row by row (see `simulate`, and there the
    time limit of a row).

    Args:
        function: see above.
        parameters: the axes of theta.
        designs: the axes of the experiment setting.
        vectorized: whether the function takes all rows at once.
        backend: "numpy" or "torch": what the function receives. It may return either.
        contrasts: thetas C beside its own at which the function gives each row's joint log ratio.
        rows_per_seed: rows drawn by one call and one seed; 1000 if vectorised, else 1.
        prior: any distribution with event shape (D,); uniform on the parameters' ranges by default.
        categories: x is a class label below this number.
        x_shape: the shape of one observation, if it should be checked from the first call on.

    Raises:
        InputError: for an unknown backend, and where a design is needed and none is given.
        SimulatorError: if the function returns something else.

    Example:
        >>> import sbi_core
        >>> def shift(theta, rng):
        ...     return theta + 0.3 * rng.standard_normal(theta.shape)
        >>> toy = FunctionSimulator(shift, [Parameter("mu", -2, 2)])
        >>> sbi_core.simulate(toy, 5, seed=1, progress=False).x.shape
        torch.Size([5, 1])
        >>> def mined(theta, rng):
        ...     z = theta + rng.standard_normal(theta.shape)
        ...     return {"x": z + 0.3 * rng.standard_normal(theta.shape), "joint_score": z - theta}
        >>> toy = FunctionSimulator(mined, [Parameter("mu", -2, 2)])
        >>> sbi_core.simulate(toy, 5, seed=1, progress=False).joint_score.shape
        torch.Size([5, 1])
    """

    runs_foreign_code = True

    def __init__(
        self,
        function: Callable[..., Any],
        parameters: Sequence[Parameter],
        *,
        designs: Sequence[Parameter] = (),
        vectorized: bool = True,
        backend: str = "numpy",
        contrasts: int = 0,
        rows_per_seed: int | None = None,
        prior: Distribution | None = None,
        categories: int | None = None,
        x_shape: tuple[int, ...] | None = None,
    ) -> None:
        if backend not in ("numpy", "torch"):
            raise InputError(f"backend = {backend!r}: {nearest(str(backend), ('numpy', 'torch'))}")
        if not isinstance(contrasts, int) or contrasts < 0:
            raise InputError(f"contrasts = {contrasts!r}, expected a whole number from 0 up.")
        self.function = function
        self.parameters = tuple(parameters)
        self.designs = tuple(designs)
        self.vectorized = vectorized
        self.backend = backend
        self.contrasts = contrasts
        self.rows_per_seed = rows_per_seed or (1000 if vectorized else 1)
        self._prior = prior
        self.categories = categories
        self.x_shape = x_shape

    @property
    def prior(self) -> Distribution:
        """Density of theta, event shape (D,)."""
        return self._prior if self._prior is not None else super().prior

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, None]:
        """x (M, ...) at theta (M, D); its gold is left aside (contrasts are then theta itself)."""
        alt = theta[:, None].expand(-1, self.contrasts, -1) if self.contrasts else None
        return self.mine(theta, alt, design, generator).x, None

    def mine(self, theta: Tensor, theta_alt: Tensor | None, design: Tensor | None, generator: torch.Generator) -> Mined:
        """Call the function at theta (M, D), theta_alt (M, C, D): x (M, ...) and the gold that it returns."""
        if self.designs and design is None:
            raise InputError(f"simulator '{self.name}' has designs {names(self.designs)}: give simulate(design=...).")
        given = [column for column in (theta, theta_alt, design) if column is not None]
        rng: Any = generator
        if self.backend == "numpy":
            words = torch.randint(0, 2**32, (8,), generator=generator)
            rng, given = np.random.default_rng(words.tolist()), [column.numpy() for column in given]  # type: ignore[misc]
        if self.vectorized:
            return self._read(self.function(*given, rng), theta[0].tolist())
        rows: list[Mined] = []
        for row in zip(*given, strict=True):
            made = self._read(self.function(*row, rng), at := row[0].tolist())
            if not made.x.ndim:
                raise SimulatorError(self._wrong("a single number", at, "an array; of shape (1,) for one number a row"))
            shape = tuple(rows[0].x.shape) if rows else self.x_shape
            if shape is not None and made.x.shape != shape:
                raise SimulatorError(self._wrong(f"shape {tuple(made.x.shape)}", at, f"shape {shape} in every row"))
            if rows and [value is None for value in made] != [value is None for value in rows[0]]:
                raise SimulatorError(self._wrong("other gold than before", at, "the same in every row"))
            rows.append(made)
        return Mined(*(None if parts[0] is None else torch.stack(parts) for parts in zip(*rows, strict=True)))  # type: ignore[arg-type]

    def _read(self, made: Any, theta: list[float]) -> Mined:
        """What the function returned, as tensors."""
        columns: dict[str, Any] = (
            made._asdict() if isinstance(made, Mined) else dict(made) if isinstance(made, Mapping) else {"x": made}
        )
        columns = {name: value for name, value in columns.items() if value is not None}
        if "x" not in columns or not set(columns) <= {"x", *_GOLD}:
            raise SimulatorError(self._wrong(f"{sorted(columns)}", theta, f"x, and of gold {' and '.join(_GOLD)}"))
        for value in columns.values():
            if not isinstance(value, Tensor | np.ndarray | np.generic | float | int):
                raise SimulatorError(self._wrong(type(value).__name__, theta, "an array"))
        x, score, ratio = (to_column(n, columns[n]) if n in columns else None for n in ("x", *_GOLD))
        assert x is not None  # looked for above
        return Mined(x, joint_score=score, joint_log_ratio=ratio)

    def _wrong(self, got: str, theta: list[float], expected: str) -> str:
        first = "the first theta of the call is" if self.vectorized else "at theta ="
        return f"simulator '{self.name}': the function returned {got}, expected {expected}; {first} {theta}."
