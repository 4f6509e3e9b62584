"""A careless network and a measure of invariance that several tests share."""

import torch
from torch import nn


class Careless(nn.Module):
    """Reads n_events, and the padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 6)

    def forward(self, x, n_events):
        present = torch.arange(x.shape[1]) < n_events[:, None]
        return (self.layer(x) * present[..., None]).sum(1)


def invariant(network, x, copy) -> bool:
    return torch.allclose(network(copy(x)), network(x), rtol=0, atol=1e-12)
