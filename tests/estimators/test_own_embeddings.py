"""A user's own module as embedding."""

import pytest
import torch
from embedding_toys import Careless, invariant
from torch import nn

from sbi_core.errors import InputError
from sbi_core.estimators.embeddings import as_embedding


def test_own_module_in_one_line() -> None:
    module = nn.Sequential(nn.LazyConv1d(4, 2), nn.BatchNorm1d(4), nn.Dropout(), nn.Flatten(), nn.LazyLinear(7))
    module[1].eval()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    wrapped = as_embedding(module, (3, 5))
    assert wrapped.features == 7 and not wrapped.takes_n_events and wrapped.network is module
    assert module.training and module[2].training and not module[1].training
    assert module[1].running_mean.abs().sum() == 0 and module[1].num_batches_tracked == 0
    assert wrapped(torch.randn(4, 3, 5)).shape == (4, 7)
    assert as_embedding(wrapped, (3, 5)) is wrapped
    with pytest.raises(InputError, match=r"built for x_shape = \(3, 5\), and x has shape \(5, 3\)"):
        as_embedding(wrapped, (5, 3))
    wrapped = as_embedding(nn.Flatten(), (3, 5))
    torch.manual_seed(0)
    as_embedding(nn.Sequential(nn.Dropout(), nn.Flatten()), (3, 5))
    assert wrapped.features == 15 and torch.equal(torch.get_rng_state(), state)


def test_own_module_may_read_n_events_and_have_a_symmetry() -> None:
    wrapped = as_embedding(Careless(), [5, 3])
    assert wrapped.takes_n_events and wrapped.features == 6
    x = torch.randn(2, 5, 3)
    assert torch.equal(wrapped(x), wrapped(x, torch.tensor([5, 5])))
    backwards = as_embedding(Careless(), (5, 3), symmetry="reversal")
    n_events = torch.tensor([2, 5])
    torch.testing.assert_close(
        backwards(x, n_events), (backwards.network(x, n_events) + backwards.network(x.flip(1), n_events)) / 2
    )
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    turned = as_embedding(module, (8, 8), symmetry="rotations").double()
    x = torch.randn(2, 8, 8).double()
    assert invariant(turned, x, lambda x: x.rot90(1, (-2, -1))) and not invariant(turned, x, lambda x: x.flip(-1))


class Answers(nn.Module):
    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(4, 2), r"Linear fails on x of zeros \(2, 3\), float32: mat1 and mat2"),
        (nn.Identity, r"embedding is type, expected an nn.Module or a name"),
        (Answers(lambda x: x[:, 0]), r"Answers gives \(2,\) for 2 rows, expected \(2, F\)"),
        (Answers(lambda x: x[None]), r"Answers gives \(1, 2, 3\)"),
        (Answers(lambda x: x.mean(0, keepdim=True)), r"Answers gives \(1, 3\)"),
        (Answers(lambda x: (x, x)), r"Answers gives tuple"),
    ],
)
def test_own_module_that_does_not_fit(module, message) -> None:
    with pytest.raises(InputError, match=message):
        as_embedding(module, (3,))


@pytest.mark.parametrize("symmetry", ["flips", "rotations", "permutation"])
def test_own_module_refuses_a_group_that_does_not_fit(symmetry) -> None:
    with pytest.raises(InputError, match=f"symmetry '{symmetry}'"):
        as_embedding(nn.Identity(), (3,), symmetry=symmetry)
