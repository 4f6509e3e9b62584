"""The one place that seeds.

Every stream of random numbers comes from a `numpy.random.SeedSequence`. torch seeds its Mersenne Twister with only the
low 32 bits of `manual_seed`, so two of 10^5 blocks would share a stream; here the whole state is filled instead.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random import SeedSequence
from torch import Tensor

_WORDS = 624  # state words of the Mersenne Twister, after three words of bookkeeping in torch's state


def fresh_seed() -> int:
    """Draw a seed from the operating system's entropy (63 bits, so that it fits everywhere it is recorded)."""
    return int(SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))


def derived_seed(seed: int, *use: int) -> int:
    """Return a seed of its own for each use of a seed, of 63 bits.

    >>> derived_seed(1, 0) == derived_seed(1, 0), derived_seed(1, 0) == derived_seed(1, 1)
    (True, False)
    """
    return int(SeedSequence(seed, spawn_key=use).generate_state(1, np.uint64)[0] >> np.uint64(1))


def block_seed(seed: int, block: int) -> SeedSequence:
    """Return the seed sequence of one block of rows: a function of the two numbers alone."""
    return SeedSequence(seed, spawn_key=(block,))


def torch_state(seed: SeedSequence) -> Tensor:
    """Return the state of a CPU torch generator, filled with 624 words that come from the whole sequence."""
    generator = torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0]))
    state: np.ndarray = generator.get_state().numpy().view(np.uint64).copy()
    state[3 : 3 + _WORDS] = np.random.PCG64DXSM(seed).random_raw(_WORDS // 2).view(np.uint32)
    return torch.from_numpy(state.view(np.uint8))


def torch_generator(seed: SeedSequence) -> torch.Generator:
    """Return a CPU torch generator whose whole state comes from the sequence."""
    generator = torch.Generator()
    generator.set_state(torch_state(seed))
    return generator


@contextmanager
def seeded(seed: SeedSequence | int) -> Iterator[None]:
    """Seed the global state of torch, NumPy and random for a block of code, and restore it afterwards.

    For libraries that read the global state only (torch.distributions, Pyro, nflows, weight initialisation).
    """
    sequence = seed if isinstance(seed, SeedSequence) else SeedSequence(seed)
    before = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        torch.set_rng_state(torch_state(sequence))
        if cuda:
            torch.cuda.manual_seed_all(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        np.random.seed(sequence.generate_state(8))  # noqa: NPY002
        random.seed(int(sequence.generate_state(1, np.uint64)[0]))
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block of code on one torch thread: sums then have one order, and two busy threads cost more than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
