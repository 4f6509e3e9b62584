"""How far a mean is from what it should be, in standard errors that are measured."""

import torch


def z_of_mean(values, expected=0.0):
    """Largest distance of the column means of values (N, ...) from `expected`, in measured standard errors."""
    values = torch.as_tensor(values).detach().double()
    values = values.reshape(len(values), -1)
    error = values.std(0) / len(values) ** 0.5
    return float(((values.mean(0) - expected).abs() / error).max())
