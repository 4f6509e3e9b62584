"""Any Pyro program as a simulator: its latents are recorded by tracing, and replayed at any theta."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from numpy.random import SeedSequence
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.errors import InputError, MissingGold, SbiWarning, SimulatorError
from sbi_core.identity import program
from sbi_core.parameters import Parameter, names
from sbi_core.priors import UniformPrior
from sbi_core.seeding import seeded
from sbi_core.simulator import Mined, Simulator

if TYPE_CHECKING:  # Pyro takes a second to import, which only those pay who use it
    from sbi_core.simulators.pyro_layout import Layout
    from sbi_core.simulators.pyro_trace import Draws


class PyroSimulator(Simulator):
    """A Pyro program as a simulator with gold: log p(x, z | theta) is the sum of log p over all its sites.

    z (M, Z) are the latent sites, flattened in the program's order, float64 unless all are float32; x the observed
    ones. At another theta the program is run again with every draw replaced by its stored value, and

        log p(x, z | theta, design) = sum over sites of log p(value | theta, design, values before),

    0 where masked. Draws carry no gradient, so reparametrised ones give true scores. Where a draw is masked, z and x
    hold 0; NaN in a computed x marks a failed row.

    Before its first use the program is tried at 64 draws of the prior. Refused, in one sentence, is what would make
    gold wrong: supports or masks that move with theta, Delta sites, `pyro.factor`, `pyro.param`, obs=..., scaled or
    subsampled plates, masked draws that are used, random numbers outside `pyro.sample`, rows that depend on each other,
    theta that loses its gradient, a missing observed site. `check` does this when it is asked to.

    A program that takes one row at a time, whose sites may be others in each run, has no z. With `vectorized=False` its
    rows are run one after the other and store their joint score, and joint ratios to `contrasts` other thetas.

    Args:
        model: ``model(theta)``, or ``model(theta, design)`` if designs are given; if `design` has a default value, the
            simulator has one too. Vectorised: theta (M, D), design (M, K), and each site has one axis of M rows. Row by
            row: theta (D,), design (K,). Both are float64.
        parameters: the D axes of theta.
        observed: the site that is x, or several, whose numbers are put side by side. A `pyro.deterministic` will do if
            it is computed from draws alone, and not from theta.
        designs: the K axes of the experiment setting.
        prior: any distribution with event shape (D,); uniform on the parameters' ranges by default.
        vectorized: whether the program takes all rows at once.
        contrasts: thetas beside its own at which each row's joint ratio is kept; 0 if vectorised, else 4.
        rows_per_seed: rows drawn by one call and one seed; 1000 if vectorised, else 1.
        categories: x is a class label below this number.
        design_score: whether log p may be differentiated by the design too; what x and z can be must not depend on it.

    Raises:
        InputError: for arguments that do not fit.
        SimulatorError: at the first use, for a program that is refused.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def decay(theta):
        ...     with pyro.plate("rows", len(theta)):
        ...         z = pyro.sample("z", dist.Normal(theta[:, 0], 2.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0))
        >>> toy = PyroSimulator(decay, [Parameter("mu", -1, 1)])
        >>> print(toy.check())
        site                    column   numbers  distribution
        z                       z              1  Normal
        x                       x              1  Normal
    """

    runs_foreign_code = True

    def __init__(
        self,
        model: Callable[..., Any],
        parameters: Sequence[Parameter],
        *,
        observed: str | Sequence[str] = "x",
        designs: Sequence[Parameter] = (),
        prior: Distribution | None = None,
        vectorized: bool = True,
        contrasts: int | None = None,
        rows_per_seed: int | None = None,
        categories: int | None = None,
        design_score: bool = False,
    ) -> None:
        if not callable(model):
            raise InputError(
                f"model is {type(model).__name__}, expected a function model(theta) or model(theta, design)."
            )
        if vectorized and contrasts:
            raise InputError(
                f"contrasts = {contrasts}: a vectorised program keeps its latents, from which ratios to any theta are "
                "read. Leave it out, or say vectorized=False."
            )
        self.observed = (observed,) if isinstance(observed, str) else tuple(observed)
        if not self.observed or len(set(self.observed)) < len(self.observed):
            raise InputError(f"observed = {observed!r}, expected the name of a site, or different names.")
        wanted = ("theta", "design") if designs else ("theta",)
        if not _takes(model, *wanted):
            given = " as designs are given" * bool(designs)
            raise InputError(f"model takes {inspect.signature(model)}, expected ({', '.join(wanted)}){given}.")
        self.model = model
        self.parameters = tuple(parameters)
        self.designs = tuple(designs)
        self.vectorized = vectorized
        self.contrasts = 0 if vectorized else 4 if contrasts is None else contrasts
        self.rows_per_seed = rows_per_seed or (1000 if vectorized else 1)
        self.categories = categories
        self.design_score = design_score
        self._prior = prior
        self._layout: Layout | None = None
        self._tried = False
        self._design_given = bool(designs) and _takes(model, "theta")

    @property
    def name(self) -> str:
        """What it runs."""
        return f"{type(self).__name__}({getattr(self.model, '__name__', type(self.model).__name__)})"

    @property
    def prior(self) -> Distribution:
        """Density of theta, event shape (D,)."""
        return self._prior if self._prior is not None else super().prior

    @property
    def settings(self) -> dict[str, Any]:
        """What fixes the rows: the program, with the functions and constants it uses, and how it is run."""
        return {
            "model": program(self.model),
            "observed": list(self.observed),
            "rows_per_seed": self.rows_per_seed,
            "vectorized": self.vectorized,
        }

    @property
    def has_gold(self) -> bool:
        """Whether `log_joint` exists; gold of a program run row by row is stored with the rows."""
        return self.vectorized

    def check(self, design: Tensor | None = None) -> "Layout | None":
        """Try the program at draws of the prior; return where its sites are stored, a table that can be printed.

        Args:
            design: (K,) or (M, K); by default the model's own, or else drawn from the designs' ranges.

        Returns:
            The sites of z and of x, or `None` of a program that takes one row at a time.

        Raises:
            SimulatorError: for a program that is refused, saying why, and what to write instead.
        """
        if design is None and self.designs and not self._design_given:
            with seeded(1):
                design = UniformPrior(self.designs).sample(torch.Size([64]))
        self._tried = False
        return self._try(None if design is None else torch.atleast_2d(torch.as_tensor(design, dtype=torch.float64)))

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Run the program at theta (M, D), design (M, K): x (M, ...) and z (M, Z), or no z if run row by row."""
        from sbi_core.simulators.pyro_trial import mine_rows

        layout = self._try(design)
        with torch.no_grad(), self._seeded(generator), self._named():
            if layout is not None:
                return layout.columns(self._run(theta, design), len(theta))
            return mine_rows(self._run, theta, None, design, self.observed).x, None

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """log p(x, z | theta, design), all terms, theta (M, D), x (M, ...), z (M, Z), as (M,); NaN for failed rows."""
        from sbi_core.simulators.pyro_trace import DENSITIES, log_density, unvalidated

        if not self.vectorized:
            raise MissingGold(f"simulator '{self.name}' runs row by row: its gold is stored with the rows it makes.")
        layout = self._try(design)
        assert layout is not None  # as it is vectorised
        if z is None and layout.latents:
            raise MissingGold(f"simulator '{self.name}': the simulations were stored without z.")
        usable = torch.cat([column.flatten(1).isfinite() for column in (x, z) if column is not None], 1).all(1)
        if not bool(usable.all()) or not len(theta):
            value = theta.new_full((len(theta),), torch.nan)
            if bool(usable.any()):
                parts = (None if column is None else column[usable] for column in (x, z, design))
                value[usable] = self.log_joint(theta[usable], *parts)  # type: ignore[arg-type]
            return value
        with unvalidated(), self._named():
            draws = self._run(theta, design, layout.values(x, z), DENSITIES)
            layout.check(draws, len(theta))
            axes = layout.axes
            return torch.stack([log_density(d, axes[n]) for n, d in draws.items() if not d.computed]).sum(0)

    def mine(self, theta: Tensor, theta_alt: Tensor | None, design: Tensor | None, generator: torch.Generator) -> Mined:
        """Draw events at theta (M, D); run row by row, with joint scores (M, D) and ratios to theta_alt (M, C, D)."""
        if self.vectorized:
            return super().mine(theta, theta_alt, design, generator)
        from sbi_core.simulators.pyro_trial import mine_rows

        self._try(design)
        with self._seeded(generator), self._named():
            return mine_rows(self._run, theta, theta_alt, design, self.observed)

    def _run(self, theta: Tensor, design: Tensor | None, values: Any = None, depth: int = 0) -> "Draws":
        from sbi_core.simulators.pyro_trace import trace

        if self.designs and design is None and not self._design_given:
            raise InputError(f"simulator '{self.name}' has designs {names(self.designs)}: give simulate(design=...).")
        return trace(self.model, (theta,) if design is None else (theta, design), values, depth)

    def _try(self, design: Tensor | None) -> "Layout | None":
        """Try the program once, at draws of the prior and the first designs (M, K) that it is asked for."""
        if not self._tried:
            from sbi_core.simulators.pyro_trial import try_rows, try_single

            shared = self._run, self.prior, self.parameters, design
            with seeded(0), self._named():
                if self.vectorized:
                    near = self._near(design) if self.design_score and design is not None else None
                    self._layout = try_rows(*shared, near, self.observed)
                else:
                    slow = try_single(*shared, self.contrasts, self.observed)
                    warnings.warn(f"simulator '{self.name}' {slow}", SbiWarning, stacklevel=3)
            self._tried = True
        return self._layout

    def _near(self, design: Tensor) -> Tensor:
        """Designs (M, K) one percent nearer to the low ends of their ranges, or to the high ends if they are low."""
        low, high = (torch.tensor([getattr(axis, end) for axis in self.designs]).double() for end in ("low", "high"))
        way = torch.where(design == low, high, low) - design
        return design + 0.01 * torch.where(way.isfinite(), way, 1.0)

    @contextmanager
    def _seeded(self, generator: torch.Generator) -> Iterator[None]:
        """Seed the global state, which Pyro draws from, with 256 bits of the generator, for a block of code."""
        words = torch.randint(0, 2**32, (8,), generator=generator)
        with seeded(SeedSequence(words.tolist())):
            yield

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say whose site it is."""
        try:
            yield
        except SimulatorError as error:
            raise SimulatorError(f"simulator '{self.name}': {error}") from error.__cause__


def _takes(model: Callable[..., Any], *given: str) -> bool:
    """Whether a function can be called with so many arguments; one that does not say it can."""
    try:
        inspect.signature(model).bind(*given)
    except TypeError:
        return False
    except ValueError:
        return True
    return True
