"""A set of rows in a few numbers that have a name."""

import torch
from torch import Tensor


def summaries_of(z: Tensor, *, spacing: bool = True) -> Tensor:
    """Sets z (M, n, C) in numbers (M, Q), as `summary_names` names them.

    Mean, log sd, skewness, log kurtosis and lag-1 autocorrelation of each column, correlations of each two (Fisher's
    transform), and the mean log distance of rows; with `spacing` also that to the nearest row, which says how densely
    they lie, and whether some are repeated.
    """
    n = z.shape[1]
    mean = z.mean(1)
    off = z - mean[:, None]
    sd = off.square().mean(1).sqrt().clamp(min=1e-9)
    unit = off / sd[:, None]
    i, j = torch.triu_indices(z.shape[2], z.shape[2], 1)
    together = (unit.mT @ unit / n)[:, i, j].clamp(-0.999999, 0.999999).atanh()
    shape = [unit.pow(3).mean(1).asinh(), unit.pow(4).mean(1).clamp(min=1e-9).log()]
    lag = (unit[:, 1:] * unit[:, :-1]).mean(1)
    apart = torch.cdist(z, z)
    size = apart.mean((1, 2)).clamp(min=1e-12).log()[:, None]
    near = [(apart + torch.eye(n) * 1e9).amin(2).clamp(min=1e-6).log().mean(1)[:, None]] if spacing else []
    return torch.cat([mean, sd.log(), *shape, lag, together, size, *near], 1)


def summary_names(columns: list[str], *, spacing: bool = True) -> list[str]:
    """The names of the columns of `summaries_of`, for rows whose columns have these names."""
    what = ("mean", "log sd", "skewness", "log kurtosis", "autocorrelation")
    pairs = [f"correlation of {a} and {b}" for k, a in enumerate(columns) for b in columns[k + 1 :]]
    ends = ["log distance of rows", *(["log distance to the nearest row"] if spacing else [])]
    return [*(f"{name} of {column}" for name in what for column in columns), *pairs, *ends]
