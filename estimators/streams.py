"""Which rows are trained on and which are held out; rows from a store that is larger than memory."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.estimators.batches import Source, check_rows
from sbi_core.estimators.estimator import Estimator
from sbi_core.gold_check import GoldCheck
from sbi_core.simulations import Rows, Simulations
from sbi_core.store import Store

HELD_OUT = 100_000
"""Rows held out of a stream, at most, up to a whole chunk."""

Prepare = Callable[..., tuple[Source, GoldCheck | None]]
"""(rows, check=...) -> what batches come from, and the report on its gold."""


@dataclass
class Stream:
    """Whole chunks in an order that is drawn anew for every pass, some of them in memory and shuffled together.

    Random rows straight from disk cost a read each; a chunk costs one for all of its rows. While one part is trained
    on, the next is read.

    Attributes:
        store: where the rows are.
        chunks: numbers of the chunks to train on.
        at_once: chunks in one part.
        rows: usable rows in them.
        source: makes of a part what batches come from.
        clipped: most rows of a part at one visit with a joint ratio that was clipped.
        far: numbers of the rows that `Estimator.far` has named so far.
        watch: that method, for the first pass.
    """

    store: Store
    chunks: list[int]
    at_once: int
    rows: int
    source: Callable[[Simulations], Source]
    clipped: int = 0
    far: set[int] = field(default_factory=set)
    watch: Callable[[Simulations], list[int]] | None = None

    def __len__(self) -> int:
        return self.rows

    def steps(self, batch_size: int) -> int:
        """Batches in one pass, at most."""
        return -(-len(self.chunks) // self.at_once) + self.rows // batch_size

    def parts(self) -> Iterator[Source]:
        """One pass over all rows; reads torch's global random state."""
        order = [self.chunks[k] for k in torch.randperm(len(self.chunks)).tolist()]
        groups = [order[k : k + self.at_once] for k in range(0, len(order), self.at_once)]
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.store.chunks, groups[0])
            for following in [*groups[1:], None]:
                rows = ahead.result()
                if following:
                    ahead = reader.submit(self.store.chunks, following)
                source = self.source(rows)
                if self.watch is not None:
                    self.far.update(self.watch(source.rows))
                yield source
                self.clipped = max(self.clipped, source.clipped)
        self.watch = None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep: nothing, as every pass begins with the rows as they were simulated."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""


@dataclass(frozen=True)
class Split:
    """The rows of a training.

    Attributes:
        training: what is trained on.
        validation: what is held out.
        sample: training rows in memory, on which scales are measured: all, or one part of a stream.
        gold: the report on their gold, if it was checked.
        flags: what a reader should know about the rows.
    """

    training: Source | Stream
    validation: Source
    sample: Source
    gold: GoldCheck | None
    flags: list[str]


def split(
    data: Rows,
    estimator: Estimator,
    prepare: Prepare,
    *,
    fraction: float,
    generator: torch.Generator,
    memory: float,
    check: bool,
    invalid: str,
) -> Split:
    """Hold out a share of the rows at random: single rows of what fits into memory, whole chunks of a larger store."""
    spread = getattr(estimator, "theta_ref", None) is None
    if isinstance(data, Store) and len(data) * data.row_bytes > memory:
        return _streamed(data, estimator, prepare, fraction, generator, memory, check, invalid, spread)
    rows, flags = check_rows(data[:].reordered(estimator.axes, estimator.designs), invalid, spread=spread)
    order = torch.randperm(len(rows), generator=generator)
    held_out = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
    source, gold = prepare(rows, check=check)
    training = source.part(order[held_out:])
    validation = source.part(order[:held_out], training.score_scale)
    return Split(training, validation, training, gold, [*flags, *source.flags])


def _streamed(
    store: Store,
    estimator: Estimator,
    prepare: Prepare,
    fraction: float,
    generator: torch.Generator,
    memory: float,
    check: bool,
    invalid: str,
    spread: bool,
) -> Split:
    rows = {k: n for k, n in store.committed().items() if n}
    if len(rows) < 2:
        raise InputError(
            f"{store.path} holds its {len(store)} rows in one chunk, more than memory = {memory:.3g} bytes. Raise "
            "memory, or simulate with smaller chunk_rows."
        )
    theta, status = store.column("theta"), store.column("status")
    narrow = Simulations(theta, theta[:, :0], store.info, status=status, row=store.column("row"))
    _, flags = check_rows(narrow.reordered(estimator.axes, estimator.designs), invalid, spread=spread)
    usable = dict(zip(rows, (int((part == 1).sum()) for part in status.split(list(rows.values()))), strict=True))

    def source(read: Simulations, **options: Any) -> tuple[Source, GoldCheck | None]:
        read = read.reordered(estimator.axes, estimator.designs)
        return prepare(read[read.valid], **options)

    numbers = [k for k in rows if usable[k]]
    order = [numbers[k] for k in torch.randperm(len(numbers), generator=generator).tolist()]
    at_once = max(1, int(memory / 4 / (store.chunk_rows * store.row_bytes)))
    enough = -(-HELD_OUT // store.chunk_rows)
    held_out = min(max(round(fraction * len(order)), 1), len(order) - 1, at_once, enough)
    first, gold = source(store.chunks(order[held_out : held_out + at_once]), check=check)
    sample = first.part(slice(None))

    def scaled(read: Simulations) -> Source:
        return replace(source(read)[0], score_scale=sample.score_scale, own_scale=False)

    chunks = order[held_out:]
    training = Stream(store, chunks, at_once, sum(usable[k] for k in chunks), scaled)
    validation = scaled(store.chunks(order[:held_out]))
    return Split(training, validation, sample, gold, [*flags, *first.flags])
