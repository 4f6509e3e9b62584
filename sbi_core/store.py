"""Simulations on disk: a Zarr v3 group whose chunks count only once their commit mark is written.

Layout of the folder: one array per column, chunked by the unit of work and checksummed with crc32c, NaN where nothing
was written; attributes with the provenance; `commits/<chunk>.json`, written last and atomically, with the number of
rows that may be trusted. Nothing in it is code. (`commits` is a Zarr group, so that other readers list the folder.)
"""

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from sbi_core.errors import StoreError, nearest
from sbi_core.simulations import FAILED, MISSING, Info, Simulations

if TYPE_CHECKING:
    import zarr

FORMAT = 1


class Store:
    """A campaign's simulations on disk, read like `Simulations`.

    Args:
        path: the folder.

    Raises:
        StoreError: if there is no store, or one of another format.

    Example:
        >>> import tempfile
        >>> from sbi_core import FunctionSimulator, Parameter, simulate
        >>> toy = FunctionSimulator(lambda theta, rng: rng.normal(theta), [Parameter("mu", -2, 2)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = simulate(toy, 1500, store=f"{folder}/toy.zarr", seed=1, progress=False)
        ...     print(len(store), store[:10].theta.shape, store.info.seed)
        1500 torch.Size([10, 1]) 1
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "zarr.json").is_file():
            raise StoreError(f"{self.path} is not a store: it has no zarr.json.")
        found = self._attributes.get("sbi_core", {})
        if found.get("format") != FORMAT:
            raise StoreError(f"{self.path}: format version found {found.get('format')}, supported {FORMAT}.")
        self.chunk_rows: int = found["chunk_rows"]
        self.packages: dict[str, str] = found["packages"]
        self.provenance: dict[str, Any] = found["info"]
        self.info = Info.from_json(found["info"])

    @classmethod
    def create(cls, path: str | Path, info: Info, columns: Mapping[str, Tensor], chunk_rows: int) -> Self:
        """Make an empty store.

        Args:
            path: a folder that does not exist, or is empty.
            info: provenance.
            columns: any rows (M, ...) of the right shapes and types.
            chunk_rows: rows per chunk, the unit of writing.
        """
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"{path} exists, is not empty and is not a store; choose another folder.")
        described: dict[str, Any] = {
            "format": FORMAT,
            "chunk_rows": chunk_rows,
            "columns": sorted(columns),
            "info": info.to_json(),
            "packages": package_versions(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")  # a store appears whole or not at all
        group = zarr.open_group(unfinished, mode="w", zarr_format=3, attributes={"sbi_core": described})
        for name, column in columns.items():
            group.create_array(
                name,
                shape=(0, *column.shape[1:]),
                chunks=(chunk_rows, *column.shape[1:]),
                dtype=column.numpy().dtype,
                fill_value=np.nan if column.is_floating_point() else MISSING,
                compressors=[ZstdCodec(level=1), Crc32cCodec()],
            )
        group.create_group("commits")
        unfinished.replace(path)
        return cls(path)

    @property
    def _attributes(self) -> dict[str, Any]:
        return json.loads((self.path / "zarr.json").read_text()).get("attributes", {})

    @cached_property
    def _arrays(self) -> dict[str, "zarr.Array[Any]"]:
        import zarr

        arrays = {}
        with zarr.config.set({"array.write_empty_chunks": True}):  # so that a file that is not there is a fault
            for name in self._attributes["sbi_core"]["columns"]:
                try:
                    arrays[name] = zarr.open_array(self.path / name, mode="r+")
                except FileNotFoundError:
                    raise StoreError(f"{self.path}: the array of column {name} is missing.") from None
        return arrays

    def reserve(self, rows: int) -> None:
        """Make the arrays long enough for `rows` rows; to be called before any worker writes."""
        length = -(-rows // self.chunk_rows) * self.chunk_rows
        for array in self._arrays.values():
            if array.shape[0] < length:
                array.resize((length, *array.shape[1:]))

    def write(self, chunk: int, columns: Mapping[str, Tensor], failures: Mapping[int, str] | None = None) -> None:
        """Write rows (M, ...) as the chunk's first M rows, then its commit mark. One writer per chunk.

        What happened in rows that failed, by their number in the campaign, goes with the mark.
        """
        if set(columns) != set(self._arrays):
            raise StoreError(f"{self.path}: columns {sorted(columns)} do not fit the store's {sorted(self._arrays)}.")
        start = chunk * self.chunk_rows
        for name, column in columns.items():
            whole = np.full((self.chunk_rows, *column.shape[1:]), self._arrays[name].fill_value, column.numpy().dtype)
            whole[: len(column)] = column.numpy()
            self._arrays[name][start : start + self.chunk_rows] = whole
        mark = self.path / "commits" / f"{chunk:08d}.json"
        partial = mark.with_suffix(f".{os.getpid()}.partial")
        with open(partial, "w") as file:
            mark_of = {"rows": len(columns["theta"])}
            json.dump(mark_of | ({"failures": failures} if failures else {}), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(mark)

    def committed(self) -> dict[int, int]:
        """Return chunk -> rows that may be trusted, in order."""
        return {chunk: self._mark(chunk)["rows"] for chunk in self._marked()}

    @property
    def failures(self) -> dict[int, str]:
        """Number of a row in its campaign -> what happened there, for rows whose simulator failed or took too long."""
        return self._failures(self._marked())

    def _failures(self, chunks: Iterable[int]) -> dict[int, str]:
        return {int(row): text for k in chunks for row, text in self._mark(k).get("failures", {}).items()}

    def _marked(self) -> list[int]:
        return sorted(int(mark.stem) for mark in (self.path / "commits").glob("[0-9]*.json"))

    def _mark(self, chunk: int) -> dict[str, Any]:
        mark: dict[str, Any] = json.loads((self.path / "commits" / f"{chunk:08d}.json").read_text())
        return mark

    def __len__(self) -> int:
        return sum(self.committed().values())

    def __getitem__(self, index: Any) -> Simulations:
        """Read committed rows: a number, a slice, an index tensor or a mask, as in `Simulations`."""
        rows = self._rows(self.committed())
        if isinstance(index, int | np.integer):
            if not -len(rows) <= index < len(rows):
                raise IndexError(f"row {index} of {len(rows)}")
            index = slice(index, index + 1 or None)
        return self._simulations(rows[index.numpy() if isinstance(index, Tensor) else index])

    def _rows(self, committed: Mapping[int, int]) -> np.ndarray:
        """Places in the arrays of the rows of committed chunks."""
        runs = [np.arange(k * self.chunk_rows, k * self.chunk_rows + n) for k, n in committed.items()]
        return np.concatenate(runs or [np.arange(0)])

    def _simulations(self, wanted: np.ndarray) -> Simulations:
        columns = {name: torch.from_numpy(self._read(name, wanted)) for name in self._arrays}
        failed = columns["row"][columns["status"] >= FAILED].tolist()
        texts = self._failures({row // self.chunk_rows for row in failed})
        return Simulations(**columns, info=self.info, failures={row: texts[row] for row in failed if row in texts})

    def _read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read rows in whole runs: consecutive numbers cost one read."""
        array = self._arrays[name]
        if 0 in array.shape[1:]:  # zarr writes no chunks of nothing
            return np.empty((len(rows), *array.shape[1:]), array.dtype)
        pieces: Iterable[np.ndarray] = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        for chunk in np.unique(rows // self.chunk_rows):
            file = self.path.joinpath(name, "c", str(chunk), *["0"] * (array.ndim - 1))
            if not file.is_file():
                raise StoreError(f"{self.path}: chunk {chunk} is committed, but its file {file} is missing.")
        try:
            read = [np.asarray(array[int(p[0]) : int(p[-1]) + 1]) for p in pieces if len(p)]
        except ValueError as error:
            raise StoreError(
                f"{self.path}: column {name} cannot be read, a checksum or length is wrong ({error})."
            ) from error
        return np.concatenate(read) if read else np.empty((0, *array.shape[1:]), array.dtype)

    def column(self, name: str) -> Tensor:
        """All committed rows of one column, (N, ...), without reading the others."""
        if name not in self._arrays:
            raise StoreError(f"{self.path}: there is no column {name!r}: {nearest(name, self._arrays)}")
        return torch.from_numpy(self._read(name, self._rows(self.committed())))

    def chunks(self, numbers: Iterable[int]) -> Simulations:
        """Committed rows of some chunks, in the order of `numbers`."""
        committed = self.committed()
        return self._simulations(self._rows({k: committed[k] for k in numbers}))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in memory."""
        return sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in self._arrays.values())

    @property
    def theta(self) -> Tensor:
        """All committed theta, (N, D)."""
        return self.column("theta")

    @property
    def x(self) -> Tensor:
        """All committed observations, (N, ...)."""
        return self.column("x")


def package_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("sbi-core", "torch", "numpy", "zarr", "nflows", "pyro-ppl"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
