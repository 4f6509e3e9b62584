"""The files through which a program and `CommandSimulator` speak: csv, npy and json."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sbi_core.columns import read_csv


@dataclass(frozen=True)
class Request:
    """What a program is asked.

    Attributes:
        parameters: names of the axes of theta.
        designs: names of the axes of the design.
        theta: (M, D).
        design: (M, K), or `None`.
        theta_alt: (M, C, D), or `None`.
        seed: of all randomness.
    """

    parameters: Sequence[str]
    designs: Sequence[str]
    theta: np.ndarray
    design: np.ndarray | None
    theta_alt: np.ndarray | None
    seed: int

    def row(self, number: int, seed: int) -> "Request":
        """One row alone, with a seed of its own."""
        design, alt = (None if part is None else part[[number]] for part in (self.design, self.theta_alt))
        return replace(self, theta=self.theta[[number]], design=design, theta_alt=alt, seed=seed)

    @property
    def table(self) -> np.ndarray:
        """Theta and design side by side, (M, D + K)."""
        return self.theta if self.design is None else np.concatenate([self.theta, self.design], 1)

    @property
    def header(self) -> list[str]:
        """The names of the table's columns."""
        return [*self.parameters, *(self.designs if self.design is not None else ())]


def _write_csv(path: Path, asked: Request) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(asked.header)
        writer.writerows([[repr(float(cell)) for cell in row] for row in asked.table])


def _read_csv(path: Path) -> dict[str, Any]:
    """Numbers (M, K), with or without a line of names above them."""
    with path.open(encoding="utf-8") as file:
        first = file.readline().split(",")[0].strip()
    if not first:
        return {"x": np.empty((0, 0))}
    try:
        float(first)
    except ValueError:
        return {"x": read_csv(path)[1]}
    return {"x": np.loadtxt(path, delimiter=",", ndmin=2)}


def _write_npy(path: Path, asked: Request) -> None:
    np.save(path, asked.table)


def _read_npy(path: Path) -> dict[str, Any]:
    return {"x": np.load(path, allow_pickle=False)}


def _write_json(path: Path, asked: Request) -> None:
    columns = {"theta": asked.theta, "design": asked.design, "theta_alt": asked.theta_alt}
    content: dict[str, Any] = {name: value.tolist() for name, value in columns.items() if value is not None}
    named = {"parameters": list(asked.parameters), "designs": asked.header[len(asked.parameters) :]}
    path.write_text(json.dumps({**named, **content, "seed": asked.seed}), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        content = {"x": content}
    return {name: np.array(value, dtype=np.float64) for name, value in content.items()}  # null becomes NaN


FORMATS: dict[str, tuple[Callable[[Path, Request], None], Callable[[Path], dict[str, Any]]]] = {
    "csv": (_write_csv, _read_csv),
    "npy": (_write_npy, _read_npy),
    "json": (_write_json, _read_json),
}
"""How a request is written, and how x (M, ...), and what else a program returns, is read."""
