"""Simulations: one row per simulation, one column per thing that was kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import check_labels, check_shapes, invent_parameters, read_csv, to_column
from sbi_core.errors import InputError
from sbi_core.parameters import Parameter, match, names
from sbi_core.priors import describe, restore
from sbi_core.seeding import torch_generator

MISSING, OK, INVALID, FAILED, TIMED_OUT = 0, 1, 2, 3, 4
"""Values of the column `status`: not written, usable, x not finite, the simulator raised an error, or took too long."""


def status_of(x: Tensor) -> Tensor:
    """Column `status` (N,) of rows x (N, ...) that the simulator returned."""
    return torch.where(torch.isfinite(x).flatten(1).all(1), OK, INVALID).to(torch.uint8)


@dataclass(frozen=True)
class Info:
    """What the columns mean and where they came from; plain data apart from `proposal`.

    Attributes:
        parameters: the axes of theta.
        designs: the axes of the design.
        proposal: the density theta was drawn from; `None` if unknown.
        categories: number of class labels if x is one.
        simulator: its name.
        version: its version.
        settings: what else fixes the rows.
        seed: of the campaign; `None` for rows made elsewhere.
        design: description of the designs that were asked for.
        rows_per_seed: rows that were drawn together; `None` if unknown.
        contrasts: thetas kept beside each row's own; `None` if unknown.
    """

    parameters: tuple[Parameter, ...]
    designs: tuple[Parameter, ...] = ()
    proposal: Distribution | None = None
    categories: int | None = None
    simulator: str = ""
    version: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    design: Any = None
    rows_per_seed: int | None = None
    contrasts: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a file."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["parameters"] = [asdict(p) for p in self.parameters]
        plain["designs"] = [asdict(p) for p in self.designs]
        plain["proposal"] = describe(self.proposal)
        plain["settings"] = dict(self.settings)
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Read back what `to_json` wrote."""
        values = {f.name: plain[f.name] for f in fields(cls) if f.name in plain}
        values["parameters"] = tuple(Parameter(**p) for p in plain["parameters"])
        values["designs"] = tuple(Parameter(**p) for p in plain["designs"])
        values["proposal"] = restore(plain["proposal"])
        return cls(**values)


class Rows(Protocol):
    """What `fit` reads: `Simulations` in memory or a `Store` on disk."""

    @property
    def info(self) -> Info: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> "Simulations": ...


@dataclass(frozen=True)
class Simulations:
    """A frozen table with one row per simulation.

    Attributes:
        theta: (N, D), float64.
        x: (N, ...), floating point; NaN means failure.
        info: names, ranges, provenance.
        design: (N, K), float64.
        z: latents that matter, (N, ...).
        n_events: events in each row (N,), int64; x and z are zero-padded beyond.
        theta_alt: contrasts stored with each row, (N, C, D), float64.
        joint_log_ratio: log p(x, z | theta) - log p(x, z | theta_alt), (N, C), float64.
        joint_score: grad_theta log p(x, z | theta) at the row's own theta, (N, D), float64.
        status: 1 usable, 2 x not finite, 3 the simulator raised an error, 4 it took too long, (N,), uint8.
        row: number of the row in its campaign, (N,), int64.
        failures: number of a row in its campaign -> what happened there, for rows of status 3 and 4.
    """

    theta: Tensor
    x: Tensor
    info: Info
    design: Tensor | None = None
    z: Tensor | None = None
    n_events: Tensor | None = None
    theta_alt: Tensor | None = None
    joint_log_ratio: Tensor | None = None
    joint_score: Tensor | None = None
    status: Tensor = field(default=None)  # type: ignore[assignment]
    row: Tensor = field(default=None)  # type: ignore[assignment]
    failures: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status is None:
            object.__setattr__(self, "status", status_of(self.x))
        if self.row is None:
            object.__setattr__(self, "row", torch.arange(len(self.theta), device=self.theta.device))

    @classmethod
    def from_arrays(
        cls,
        theta: Any,
        x: Any,
        *,
        parameters: Sequence[Parameter] | None = None,
        proposal: Distribution | None = None,
        designs: Sequence[Parameter] = (),
        categories: int | None = None,
        **columns: Any,
    ) -> Self:
        """Build a table from rows made elsewhere (NumPy arrays, tensors or nested lists).

        Args:
            theta: (n, D), finite.
            x: (n, ...); real. NaN marks failed rows.
            parameters: the axes of theta; invented from the data's ranges if not given.
            proposal: the density theta was drawn from, event shape (D,).
            designs: the axes of the column `design`.
            categories: x is a class label below this number.
            columns: design (n, K), z (n, ...), n_events (n,), theta_alt (n, C, D), joint_log_ratio (n, C),
                joint_score (n, D).

        Raises:
            InputError: naming the column, its shape or type, and what was expected.
        """
        known = [f.name for f in fields(cls) if f.name not in ("theta", "x", "info", "status", "row", "failures")]
        if unknown := set(columns) - set(known):
            raise InputError(f"unknown columns {sorted(unknown)}; known: {', '.join(known)}.")
        table: dict[str, Any] = {name: to_column(name, value) for name, value in columns.items() if value is not None}
        table |= {"theta": to_column("theta", theta), "x": to_column("x", x)}
        width = len(parameters) if parameters else proposal.event_shape[0] if proposal is not None else None
        check_shapes(table, width)
        if parameters is None:
            parameters = getattr(proposal, "parameters", None) or invent_parameters(table["theta"])
        if categories is not None:
            check_labels("x", table["x"], categories)
        info = Info(tuple(parameters), tuple(designs), proposal, categories)
        return cls(**table, info=info)

    @classmethod
    def from_npz(cls, path: str | Path, **options: Any) -> Self:
        """Read a NumPy archive whose arrays are named like the columns; options as in `from_arrays`."""
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name not in ("status", "row")}
        if missing := {"theta", "x"} - set(arrays):
            raise InputError(f"{path} has no array {sorted(missing)}; found {sorted(arrays)}.")
        return cls.from_arrays(arrays.pop("theta"), arrays.pop("x"), **arrays, **options)

    @classmethod
    def from_csv(cls, path: str | Path, *, parameters: Sequence[Parameter], **options: Any) -> Self:
        """Read a table with a header: columns named as parameters are theta, as designs design, all others x."""
        header, table = read_csv(path)
        designs = names(options.get("designs", ()))
        missing = [name for name in (*names(parameters), *designs) if name not in header]
        if missing:
            raise InputError(f"{path} has no column for the parameters {missing}; its header is {header}.")
        theta = table[:, [header.index(name) for name in names(parameters)]]
        x = table[:, [k for k, name in enumerate(header) if name not in (*names(parameters), *designs)]]
        if designs:
            options["design"] = table[:, [header.index(name) for name in designs]]
        return cls.from_arrays(theta, x, parameters=parameters, **options)

    def to_npz(self, path: str | Path) -> None:
        """Write the columns as a NumPy archive."""
        np.savez_compressed(path, **{name: value.numpy(force=True) for name, value in self.columns().items()})  # type: ignore[arg-type]

    @classmethod
    def concat(cls, parts: Sequence["Simulations"]) -> "Simulations":
        """Stack tables with the same columns; parameters and designs are matched by name.

        Raises:
            InputError: if columns or shapes differ, or the same rows of one campaign come twice.
        """
        first = parts[0]
        aligned = [first, *(part.reordered(first.info.parameters, first.info.designs) for part in parts[1:])]
        for number, part in enumerate(aligned):
            for name, value in first.columns().items():
                other = part.columns().get(name)
                if other is None or other.shape[1:] != value.shape[1:] or len(part.columns()) != len(first.columns()):
                    shape = None if other is None else tuple(other.shape)
                    raise InputError(
                        f"batch {number} cannot be appended: column {name} has shape {shape}, expected "
                        f"(n, {', '.join(map(str, value.shape[1:]))}); columns {list(part.columns())} against "
                        f"{list(first.columns())}."
                    )
        stacked = {name: torch.cat([part.columns()[name] for part in aligned]) for name in first.columns()}
        failures = {row: text for part in parts for row, text in part.failures.items()}
        info, campaigns = first.info, [replace(part.info, parameters=(), designs=()).to_json() for part in aligned]
        for name in ("rows_per_seed", "contrasts"):  # which rows from before they were recorded do not know
            if None in (known := {campaign[name] for campaign in campaigns}) and len(known) == 2:
                campaigns = [{**campaign, name: None} for campaign in campaigns]
        if info.seed is None or any(campaign != campaigns[0] for campaign in campaigns):
            same = all(campaign["proposal"] == campaigns[0]["proposal"] for campaign in campaigns)
            info = replace(info, proposal=info.proposal if same else None, seed=None)
            failures = {}
            for part, start in zip(parts, accumulate(map(len, parts), initial=0), strict=False):
                failures |= {start + k: part.failures[r] for k, r in enumerate(part.row.tolist()) if r in part.failures}
            stacked["row"] = torch.arange(len(stacked["theta"]))
        elif len(stacked["row"].unique()) < len(stacked["row"]):
            raise InputError(f"duplicate rows: the batches share rows of the campaign with seed {info.seed}.")
        return cls(**stacked, info=info, failures=failures)

    def columns(self) -> dict[str, Tensor]:
        """Return the columns that are present, by name, (N, ...) each."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self) if f.name not in ("info", "failures"))
        return {name: value for name, value in pairs if value is not None}

    def __len__(self) -> int:
        return len(self.theta)

    def __iter__(self) -> Iterator["Simulations"]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index: Any) -> "Simulations":
        """Rows by slice, index tensor or mask; a single number gives a table with one row."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
            index = slice(index, index + 1 or None)
        columns: dict[str, Any] = {name: value[index] for name, value in self.columns().items()}
        own = columns["row"].tolist() if self.failures else ()
        return replace(self, **columns, failures={row: self.failures[row] for row in own if row in self.failures})

    @property
    def valid(self) -> Tensor:
        """Mask (N,) of usable rows."""
        return self.status == OK

    def split(self, fraction: float, *, seed: int) -> tuple["Simulations", "Simulations"]:
        """Split at random: the second part has round(fraction * N) rows; no row is in both."""
        order = torch.randperm(len(self), generator=torch_generator(np.random.SeedSequence(seed)))
        cut = len(self) - round(fraction * len(self))
        return self[order[:cut]], self[order[cut:]]

    def to(self, device: str | torch.device) -> "Simulations":
        """Move every column to a device."""
        columns: dict[str, Any] = {name: value.to(device) for name, value in self.columns().items()}
        return replace(self, **columns)

    def reordered(self, parameters: Sequence[Parameter], designs: Sequence[Parameter] = ()) -> "Simulations":
        """Return the table with its parameters, and its designs if any are asked for, matched by name to an order."""
        where = f"simulations of '{self.info.simulator or 'unknown origin'}'"
        order, info = match(parameters, self.info.parameters, where), self.info
        settings = match(designs, info.designs, where) if designs and info.designs else list(range(len(info.designs)))
        moved = {name: order for name in ("theta", "theta_alt", "joint_score") if order != sorted(order)}
        moved |= {"design": settings} if settings != sorted(settings) else {}
        if not moved:
            return self
        info = replace(
            info,
            parameters=tuple(info.parameters[k] for k in order),
            designs=tuple(info.designs[k] for k in settings),
            proposal=info.proposal if order == sorted(order) else None,
        )
        columns = {name: (getattr(self, name), way) for name, way in moved.items()}
        return replace(self, info=info, **{name: v[..., way] for name, (v, way) in columns.items() if v is not None})
