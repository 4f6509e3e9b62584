"""What embeddings can learn, against what cannot."""

import pytest
import torch
from torch import nn

from sbi_core.estimators.embeddings import embedding
from sbi_core.estimators.networks import reset

by_set = pytest.mark.parametrize("name", ["sets", "attention"])


class Read(nn.Module):
    """A linear head on an embedding."""

    def __init__(self, network, outputs) -> None:
        super().__init__()
        self.network, self.head = network, nn.Linear(network.features, outputs)

    def forward(self, x, n_events):
        return self.head(self.network(x, n_events))


def unexplained(network, draw, steps):
    """Share of the variance of the targets that a trained network leaves; `draw(rows)` gives x, n_events, target."""
    torch.manual_seed(0)
    reset(network)
    head = Read(network, draw(2)[2].shape[1])
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, n_events, target = draw(64)
        loss = (head(x, n_events) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x, n_events, target = draw(2000)
        return float((head(x, n_events) - target).square().mean() / target.var(0).mean())


def sums(rows, reads_count=True):
    """Up to 6 events, the sum of g over them with g nonlinear; padding that looks like events."""
    x, n_events = torch.randn(rows, 6, 2), torch.randint(0, 7, (rows,))
    g = torch.sin(2 * x[..., 0]) * x[..., 1] + x[..., 0] ** 2
    target = (g * (torch.arange(6) < n_events[:, None])).sum(1, keepdim=True)
    return x, n_events if reads_count else None, (target - 3) / 3


@by_set
def test_learns_a_sum_over_events(name) -> None:
    assert unexplained(embedding(name, (6, 2), width=32), sums, 200) < 0.2


def test_learns_a_sum_saboteur() -> None:
    assert unexplained(embedding("sets", (6, 2), width=32), lambda rows: sums(rows, reads_count=False), 200) > 0.2


def choice(rows):
    """The second number of that event whose first number is largest."""
    x, n_events = torch.randn(rows, 6, 2), torch.randint(1, 7, (rows,))
    first = torch.where(torch.arange(6) < n_events[:, None], x[..., 0], -torch.inf)
    return x, n_events, x[torch.arange(rows), first.argmax(1), 1:]


def test_attention_learns_to_choose_and_a_mean_does_not() -> None:
    assert unexplained(embedding("attention", (6, 2), width=32), choice, 200) < 0.1
    assert unexplained(embedding("sets", (6, 2), width=32), choice, 200) > 0.1


def blobs(rows):
    """Images of a blob in noise; its position and brightness."""
    place, light, axis = 4 + 8 * torch.rand(rows, 2), 0.5 + torch.rand(rows, 1), torch.arange(16)
    distance = (axis[:, None] - place[:, :1, None]) ** 2 + (axis - place[:, 1:, None]) ** 2
    x = light[..., None] * torch.exp(-distance / 5) + 0.05 * torch.randn(rows, 16, 16)
    return x, None, torch.cat([(place - 8) / 2.3, (light - 1) / 0.29], 1)


def left_by_a_line():
    torch.manual_seed(0)
    (x, _, y), (test, _, truth) = blobs(8000), blobs(2000)
    weights = torch.linalg.lstsq(nn.functional.pad(x.flatten(1), (0, 1), value=1.0), y).solution
    error = nn.functional.pad(test.flatten(1), (0, 1), value=1.0) @ weights - truth
    return float(error.square().mean() / truth.var(0).mean())


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_learns_where_a_blob_is_and_how_bright(name) -> None:
    network = embedding(name, (16, 16), width=8)
    assert unexplained(network, blobs, 150) < left_by_a_line() / 2


def test_blob_saboteur() -> None:
    """Averaged over flips, the network cannot know on which side the blob is."""
    assert unexplained(embedding("cnn", (16, 16), width=8, symmetry="flips"), blobs, 60) > left_by_a_line() / 2
