"""Conditional normalising flows: an exactly normalised density of a value, given a context.

Built from the transforms of nflows 0.14 that were checked: affine and rational-quadratic spline layers (see `splines`),
autoregressive and coupling, and the reversal between them. Sampling is done here: the samplers of nflows draw float32
whatever the weights are, and join the wrong axis when they work in batches with a context.
"""

import copy
import math
from functools import partial

import torch
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    AffineCouplingTransform,
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    ReversePermutation,
)
from nflows.transforms.made import MADE
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from sbi_core.errors import InputError, nearest
from sbi_core.estimators.splines import FLOOR, SLOPE_ONE, AutoregressiveSpline, CouplingSpline

FLOWS = ("maf", "nsf", "affine_coupling", "spline_coupling")
"""Kinds of flow: autoregressive with affine or with spline layers, coupling with affine or with spline layers."""

SPLINED = 6
"""Columns up to which splines are the default; beyond, from 1000 rows, they learn less than lines do."""

_ROWS = 20_000
"""Rows that are inverted at once."""


def kind_for(width: int) -> str:
    """Kind of flow that serves so many columns by default."""
    return "nsf" if width <= SPLINED else "maf"


class ConditionalFlow(nn.Module):
    """p(value | context) = N(z; 0, 1) |det dz/dvalue|, with z the value sent through a chain of invertible layers.

    - ``maf``: z_i = scale_i v_i + shift_i, from v_1 .. v_(i-1) and the context (Papamakarios, Pavlakou & Murray,
      arXiv:1705.07057, eq. 3).
    - ``nsf``: a monotone rational-quadratic spline of v_i in place of the line (Durkan, Bekasov, Murray &
      Papamakarios, arXiv:1906.04032, eq. 4), identity beyond `tail_bound`.
    - ``affine_coupling``, ``spline_coupling``: the same two, but about half of the columns move, given the other half
      (Dinh, Sohl-Dickstein & Bengio, arXiv:1605.08803). Layers 2k and 2k + 1 split the columns by binary digit k of
      their number, so few layers let every column meet every other. Sampling takes one pass, not W.

    A new flow is the standard normal, whatever its seed, for the last layer of each network starts at the identity.
    Values are expected in standard units. One column works for every kind: its layers read the context alone.

    The gradient of log_prob is one `torch.autograd.grad` of the sum over the batch, since rows do not mix; it may be
    differentiated again, and `torch.func.vmap` works. Splines are C1: the slope of log_prob is continuous only between
    knots.

    Args:
        width: columns W of the value.
        context: columns C of the context; 0 makes a density without a context.
        kind: one of `FLOWS`.
        transforms: layers in the chain.
        hidden: units in each hidden layer of the networks.
        bins: of a spline.
        tail_bound: splines act on [-tail_bound, tail_bound] (from 1 to 16: beyond, nflows loses the last knot in
            float32).

    Raises:
        InputError: an option cannot be used.

    Example:
        >>> flow = ConditionalFlow(2, 3, kind="maf")
        >>> flow.log_prob(torch.zeros(4, 2), torch.zeros(4, 3)).shape
        torch.Size([4])
        >>> flow.sample(torch.zeros(4, 3), 10).shape
        torch.Size([4, 10, 2])
    """

    def __init__(
        self,
        width: int,
        context: int,
        *,
        kind: str = "nsf",
        transforms: int = 5,
        hidden: int = 50,
        bins: int = 8,
        tail_bound: float = 5.0,
    ) -> None:
        super().__init__()
        if kind not in FLOWS:
            raise InputError(f"kind = {kind!r}: {nearest(kind, FLOWS)}")
        counts = {"width": width, "transforms": transforms, "hidden": hidden, "bins": bins}
        for name, count in counts.items():
            if count < 1:
                raise InputError(f"{name} = {count}, expected at least 1.")
        if context < 0:
            raise InputError(f"context = {context}, expected the number of its columns, 0 for none.")
        if bins * FLOOR > 1:
            raise InputError(f"bins = {bins}, expected at most 1000; 4 to 16 are usual.")
        if not 1 <= tail_bound <= 16:
            raise InputError(f"tail_bound = {tail_bound}, expected 1 to 16: bring the values to standard units.")
        if "coupling" in kind and width > 1 and transforms < 2:
            raise InputError(
                f"kind = {kind!r} moves half of the columns in a layer: transforms = 1, expected 2 or more."
            )
        self.width, self.context = width, context
        self._build = partial(_chain, width, context, kind, transforms, hidden, bins, float(tail_bound))
        self.transform = self._build()

    def reset(self) -> None:
        """Draw new initial weights from torch's global random state."""
        self.transform.load_state_dict(self._build().state_dict())

    def log_prob(self, value: Tensor, context: Tensor) -> Tensor:
        """log p(value | context) in nats, value (N, W), context (N, C), result (N,), in the precision of the weights.

        A row that holds NaN or infinity, in value or context, gives NaN; it moves no other row, nor any gradient of
        theirs.

        Raises:
            InputError: shapes that do not fit.
        """
        self._check("value", value, self.width)
        self._check("context", context, self.context)
        if len(value) != len(context):
            raise InputError(
                f"value has {len(value)} rows, context {len(context)}; expected as many. Expand one of them."
            )
        if not len(value):
            return value.new_zeros(0, dtype=self._dtype)
        value, context = value.to(self._dtype), context.to(self._dtype)
        whole = value.isfinite().all(-1) & context.isfinite().all(-1)
        value, context = (torch.where(whole[:, None], rows, 0.0) for rows in (value, context))
        noise, log_slope = self.transform(value, _fill(context))
        result: Tensor = log_slope - 0.5 * (noise**2).sum(-1) - 0.5 * self.width * math.log(2 * math.pi)
        return torch.where(whole, result, torch.nan)

    @torch.no_grad()
    def sample(self, context: Tensor, n: int) -> Tensor:
        """Draw n values for each row of context (N, C), result (N, n, W), from torch's global random state.

        The layers are inverted in float64. Draws for a context that is not finite are NaN.

        Raises:
            InputError: a shape that does not fit, or n below 1.
        """
        self._check("context", context, self.context)
        if n < 1:
            raise InputError(f"n = {n}, expected at least 1 draw for each row of context.")
        whole = context.isfinite().all(-1)
        if not len(context) or not all(bool(weight.isfinite().all()) for weight in self.parameters()):
            return torch.full((len(context), n, self.width), torch.nan, dtype=self._dtype, device=context.device)
        noise = torch.randn(len(context), n, self.width, dtype=torch.float64, device=context.device)
        given = _fill(torch.where(whole[:, None], context, 0.0).double()).repeat_interleave(n, 0)
        exact = copy.deepcopy(self.transform).double()
        parts = zip(noise.flatten(0, 1).split(_ROWS), given.split(_ROWS), strict=True)
        value = torch.cat([exact.inverse(*part)[0] for part in parts]).view_as(noise)
        return torch.where(whole[:, None, None], value, torch.nan).to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @staticmethod
    def _check(name: str, rows: Tensor, columns: int) -> None:
        if rows.ndim != 2 or rows.shape[1] != columns:
            raise InputError(f"{name} has shape {tuple(rows.shape)}, expected (N, {columns}); flatten leading axes.")


class _Conditioner(nn.Module):
    """A masked network whose output for column i sees the columns before i, and for every i the context.

    In nflows' own the first column is a constant when there is more than one: no unit may feed it. A column of zeros
    in front takes that place.
    """

    def __init__(self, width: int, context: int, hidden: int, each: int) -> None:
        super().__init__()
        self.each = each
        self.network = MADE(width + 1, hidden, context, output_multiplier=each, activation=torch.tanh)

    def forward(self, value: Tensor, context: Tensor) -> Tensor:
        """Value (N, W), context (N, C); `each` numbers a column, (N, W each)."""
        every: Tensor = self.network(pad(value, (1, 0)), context)
        return every[:, self.each :]


class _AffineCoupling(AffineCouplingTransform):
    """Affine coupling whose scale may exceed 1 (nflows' own stays below 1.001, so no density gets narrow)."""

    def _scale_and_shift(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = parameters.reshape(len(parameters), -1, 2).unbind(-1)
        return softplus(scale) + FLOOR, shift


def _chain(
    width: int, context: int, kind: str, transforms: int, hidden: int, bins: int, tail_bound: float
) -> CompositeTransform:
    """The layers from value to noise, each the identity."""
    spline = {"num_bins": bins, "tails": "linear", "tail_bound": tail_bound}
    line, curve = [SLOPE_ONE, 0.0], [0.0] * 2 * bins + [SLOPE_ONE] * (bins - 1)
    identity = line if kind in ("maf", "affine_coupling") else curve
    autoregressive = kind in ("maf", "nsf")
    columns = max(context, 1)  # see `_fill`

    def network(fixed: int, outputs: int) -> ResidualNet:
        # Tanh: with SiLU, draws for contexts a little outside the training rows reached 1e9.
        return ResidualNet(fixed, outputs, hidden, columns, activation=torch.tanh)

    layers: list[nn.Module] = []
    for k in range(transforms):
        if kind == "affine_coupling":
            layer = _AffineCoupling(_moving(width, k), network)
        elif kind == "spline_coupling":
            layer = CouplingSpline(_moving(width, k), network, **spline)
        elif kind == "maf":
            layer = MaskedAffineAutoregressiveTransform(width, hidden)
        else:
            layer = AutoregressiveSpline(width, hidden, **spline)
        if autoregressive:
            layers += [ReversePermutation(width)] if k else []
            layer.autoregressive_net = _Conditioner(width, columns, hidden, len(identity))
        last = (layer.autoregressive_net.network if autoregressive else layer.transform_net).final_layer
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor(identity).repeat(len(last.bias) // len(identity))
        layers.append(layer)
    return CompositeTransform(layers)


def _moving(width: int, layer: int) -> list[int]:
    """1 for the columns that a coupling layer moves: binary digit layer // 2 of their number, or its opposite."""
    digits = (width - 1).bit_length()
    return [(column >> (layer // 2 % digits)) & 1 ^ (layer & 1) for column in range(width)] if digits else [1]


def _fill(context: Tensor) -> Tensor:
    """One column of zeros in place of none: nflows' networks cannot do without."""
    return context if context.shape[1] else context.new_zeros(len(context), 1)
