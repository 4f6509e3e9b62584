import random

import numpy as np
import pytest
import torch
from numpy.random import SeedSequence

from sbi_core.seeding import block_seed, fresh_seed, one_thread, seeded, torch_generator

HIGH = 2**32  # seeds 7 and 7 + HIGH share their low 32 bits


def stream(seed):
    return torch.rand(8, generator=torch_generator(seed)).tolist()


def global_draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]  # noqa: NPY002


def test_seeds_with_the_same_low_bits_differ():
    assert stream(SeedSequence(7)) != stream(SeedSequence(7 + HIGH))
    assert stream(SeedSequence(7)) == stream(SeedSequence(7))
    naive = [torch.rand(8, generator=torch.Generator().manual_seed(seed)).tolist() for seed in (7, 7 + HIGH)]
    assert naive[0] == naive[1], "saboteur: manual_seed keeps only the low bits"


def test_blocks_of_one_campaign_never_share_a_stream():
    first = [tuple(stream(block_seed(1, k))[:2]) for k in range(3000)]
    assert len(set(first)) == 3000


def test_block_depends_on_both_numbers_alone():
    assert stream(block_seed(3, 5)) == stream(block_seed(3, 5))
    assert len({tuple(stream(block_seed(*pair))) for pair in [(3, 5), (5, 3), (3, 6), (0, 5)]}) == 4


def test_generator_state_is_filled_with_the_sequence():
    """torch draws what NumPy's Mersenne Twister draws from the same 624 words (64 bits a number, low half second)."""
    seed = SeedSequence(11)
    twin = np.random.MT19937()
    words = np.random.PCG64DXSM(seed).random_raw(312).view(np.uint32)
    twin.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    drawn = torch.randint(0, 2**31, (1000,), generator=torch_generator(seed))
    assert np.array_equal(drawn.numpy(), twin.random_raw(2000)[1::2] % 2**31)


def test_fresh_seeds_do_not_repeat():
    seeds = {fresh_seed() for _ in range(5000)}
    assert len(seeds) == 5000 and all(0 <= seed < 2**63 for seed in seeds)


def test_seeded_block_repeats_and_restores():
    outside = global_draws()
    with seeded(5):
        first = global_draws()
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    with seeded(5):
        assert global_draws() == first
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1] and random.getstate() == state[2]  # noqa: NPY002
    assert global_draws() != first != outside


def test_seeded_restores_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(SeedSequence(5)):
        raise KeyError(torch.rand(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_thread_is_undone():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
