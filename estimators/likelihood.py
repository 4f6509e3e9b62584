"""The likelihood head: a normalised density of x given theta."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sbi_core.errors import InputError
from sbi_core.estimators.estimator import Estimator, joined
from sbi_core.estimators.flows import ConditionalFlow, kind_for
from sbi_core.estimators.networks import mlp, reset
from sbi_core.estimators.regression import GaussianRegression
from sbi_core.parameters import Parameter
from sbi_core.seeding import seeded
from sbi_core.simulations import Simulations


class LikelihoodEstimator(Estimator):
    """log q(x | theta, design), normalised in x: nats per unit of x, of label columns the log probability.

    Label columns come first, each a softmax given theta, design and the labels before it; the other columns follow as
    one flow given theta, design and all labels, or one of the residuals of their linear regression on all that:

        q(x | theta) = prod_j q(label_j | label_1 .. label_(j-1), theta) q(numbers | labels, theta).

    Papamakarios, Sterratt & Murray, arXiv:1805.07226, eq. 4, for the flow.

    Args:
        parameters: the D axes of theta.
        x_shape: shape of one observation; it is flattened to W columns.
        designs: the K axes of the design.
        categories: x is one class label below this number.
        labels: columns of x that are class labels, with the number of classes of each.
        flow: kind of flow, one of `FLOWS`; by default "nsf" up to 6 columns and "maf" beyond.
        transforms: layers of the flow.
        flow_hidden: units in each hidden layer of the flow's networks.
        regression: whether the flow may be that of the residuals of a linear regression (see `start`).
        hidden: widths of the hidden layers of the softmaxes.
        left_out: columns that were constant in the training rows; found by `fit`.
        embedding: refused: x itself is what there is a density of.

    Raises:
        InputError: for an embedding, or labels that do not fit.

    Example:
        >>> from sbi_core import simulate
        >>> from sbi_core.simulators import LinearGaussian
        >>> data = simulate(LinearGaussian(2), 100, seed=1, progress=False)
        >>> head = LikelihoodEstimator.from_data(data)
        >>> head.log_likelihood(data.theta, data.x).shape
        torch.Size([100])
        >>> head.sample(data.theta, 3).shape
        torch.Size([100, 3, 2])
    """

    normalized = "x"
    uncounted = "A density of x needs x of one width: train on single events, and infer(..., iid=True)."

    def __init__(
        self,
        parameters: Sequence[Parameter],
        x_shape: Sequence[int],
        *,
        designs: Sequence[Parameter] = (),
        categories: int | None = None,
        labels: Mapping[int, int] | None = None,
        flow: str | None = None,
        transforms: int = 5,
        flow_hidden: int = 50,
        regression: bool = True,
        hidden: Sequence[int] = (64, 64),
        left_out: Sequence[int] = (),
        embedding: None = None,
    ) -> None:
        if embedding is not None:
            raise InputError(
                f"LikelihoodEstimator takes no embedding ({embedding!r}): it is a density of x itself. Use estimator="
                "ratio or posterior with this embedding, or let the simulator return a summary of x."
            )
        super().__init__(parameters, x_shape, designs=designs, categories=categories)
        width = self.width
        classes = {0: categories} if categories else {int(k): int(n) for k, n in (labels or {}).items()}
        for column, count in classes.items():
            if not 0 <= column < width or count < 2:
                raise InputError(f"labels = {classes}, expected columns 0 to {width - 1} with at least 2 classes each.")
        self.options = {
            "labels": None if categories else {str(k): n for k, n in classes.items()},
            "flow": flow or kind_for(width - len(classes)),
            "transforms": transforms,
            "flow_hidden": flow_hidden,
            "regression": regression,
            "hidden": list(hidden),
            "left_out": list(left_out),
        }
        self.classes = classes
        self._build()

    def _build(self) -> None:
        inputs, networks = len(self.axes) + len(self.designs), []
        self.numbers = [k for k in range(self.width) if k not in self.classes and k not in self.options["left_out"]]
        with seeded(0):
            for count in self.classes.values():
                networks.append(mlp(inputs, self.options["hidden"], count))
                inputs += count
            self.softmaxes = nn.ModuleList(networks)
            kind, layers, units = (self.options[name] for name in ("flow", "transforms", "flow_hidden"))
            width = len(self.numbers)
            self.flow = ConditionalFlow(width, inputs, kind=kind, transforms=layers, hidden=units) if width else None
            self.regression = GaussianRegression(width, inputs) if width else None

    def reset(self) -> None:
        """Draw new initial weights from torch's global random state."""
        reset(self.softmaxes)
        if self.flow is not None:
            self.flow.reset()

    def adapt(self, rows: Simulations) -> list[str]:
        """Fit scaling and regression to training rows; leave constant columns out, and return a flag for them."""
        flags = super().adapt(rows)
        constant = [k for k in self.x_scaler.constant if k not in self.classes]
        if constant != self.options["left_out"]:
            self.options["left_out"] = constant
            self._build()
        if self.regression is not None and self.options["regression"]:
            given = self._conditions(rows.theta, rows.design)
            flat = self._columns(rows.x)
            given += [one_hot(self._labels(flat[:, k], n), n).float() for k, n in self.classes.items()]
            self.regression.adapt(self.x_scaler(flat)[:, self.numbers], joined(given))
        return flags

    def observe(
        self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Scale x (*, event) once and return the function theta (*, D) -> nats (*); n_events (*), if given, are all."""
        flat = self._columns(x)
        self._count(n_events, flat.shape[:-1])
        labels = [self._labels(flat[..., column], count) for column, count in self.classes.items()]
        value = self.x_scaler(flat)[..., self.numbers]
        slope = self.x_scaler.log_slope(flat)[..., self.numbers].sum(-1)

        def log_likelihood(theta: Tensor) -> Tensor:
            given = self._conditions(theta, design)
            result = slope.to(given[0].dtype)
            for network, label, count in zip(self.softmaxes, labels, self.classes.values(), strict=True):
                chosen = one_hot(label, count).to(given[0].dtype)
                result = result + (torch.log_softmax(network(joined(given)), -1) * chosen).sum(-1)
                given = [*given, chosen]
            if self.flow is not None and self.regression is not None:
                both = joined([value, *given])
                pairs = both.reshape(-1, both.shape[-1])
                value_of, context = pairs[:, : len(self.numbers)], pairs[:, len(self.numbers) :]
                density = self.regression.log_prob(self.flow, value_of, context)
                result = result + density.reshape(both.shape[:-1])
            return result

        return log_likelihood

    @torch.no_grad()
    def sample(self, theta: Tensor, n: int, design: Tensor | None = None) -> Tensor:
        """Draw n observations at each theta (*, D), (*, n, event), float64, from torch's global random state.

        Columns that were left out of training have the value they had there.
        """
        given = joined(self._conditions(theta, design))
        context = given.reshape(-1, given.shape[-1]).repeat_interleave(n, 0)
        unit = torch.zeros(len(context), self.width, dtype=torch.float64, device=context.device)
        drawn = {}
        for network, (column, count) in zip(self.softmaxes, self.classes.items(), strict=True):
            label = torch.multinomial(torch.softmax(network(context), -1), 1)[:, 0]
            context = torch.cat([context, one_hot(label, count).to(context.dtype)], -1)
            drawn[column] = label.double()
        if self.flow is not None and self.regression is not None:
            unit[:, self.numbers] = self.regression.sample(self.flow, context, 1)[:, 0]
        x = self.x_scaler.inverse(unit)
        for column, label in drawn.items():
            x[:, column] = label
        return x.reshape(*given.shape[:-1], n, *self.x_shape)
