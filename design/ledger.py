"""What a loop has asked and been told, on disk: a killed loop goes on where it was."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.design.gain import Gain
from sbi_core.errors import InputError
from sbi_core.estimators.files import replace_file


class Ledger:
    """A folder with `loop.json`, and for each round its design, the mark that it was begun, and its outcome.

    Each file is written whole (temporary file, fsync, rename), the outcome as soon as it is known.

    Args:
        folder: where; `None` keeps nothing.
        identity: what must be the same for a loop to be carried on.

    Raises:
        InputError: if the folder holds another loop.
    """

    def __init__(self, folder: str | Path | None, identity: dict[str, Any]) -> None:
        self.path = None if folder is None else Path(folder)
        if self.path is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        known, asked = self.path / "loop.json", json.loads(json.dumps(identity))
        if known.exists():
            found = json.loads(known.read_text())
            if different := [key for key in asked if found.get(key) != asked[key]]:
                says = "; ".join(f"{key}: found {found.get(key)!r}, asked {asked[key]!r}" for key in different)
                raise InputError(f"{self.path} belongs to another loop ({says}). Choose another folder.")
        else:
            replace_file(known, json.dumps(asked, indent=1).encode())

    def design(self, number: int) -> tuple[Tensor, Gain | None, dict[str, Any]] | None:
        """The design (K,) of a round, its predicted gain, and what else was written, if it was chosen before."""
        path = self._file(number, "design.json")
        if path is None or not path.exists():
            return None
        found = json.loads(path.read_text())
        gain = found.pop("gain")
        return (
            torch.tensor(found.pop("design"), dtype=torch.float64),
            None if gain is None else Gain(**{**gain, "flags": tuple(gain["flags"])}),
            found,
        )

    def choose(self, number: int, design: Tensor, gain: Gain | None, **more: Any) -> None:
        """Write down what is to be done in a round."""
        plain = {"design": design.tolist(), "gain": None if gain is None else asdict(gain), **more}
        self._write(number, "design.json", json.dumps(plain, indent=1).encode())

    def begun(self, number: int) -> bool:
        """Whether the experiment of a round was begun before."""
        path = self._file(number, "begun")
        return path is not None and path.exists()

    def begin(self, number: int) -> None:
        """Mark the experiment of a round as begun."""
        self._write(number, "begun", b"")

    def outcome(self, number: int) -> tuple[Tensor, Tensor | None] | None:
        """x (event) and the number of events (), as they were told; `None` if they were not."""
        path = self._file(number, "outcome.npz")
        if path is None or not path.exists():
            return None
        with np.load(path, allow_pickle=False) as found:
            count = torch.from_numpy(found["n_events"]) if "n_events" in found.files else None
            return torch.from_numpy(found["x"]), count

    def tell(self, number: int, x: Tensor, count: Tensor | None) -> None:
        """Keep the outcome of a round."""
        columns = {"x": x.numpy()} | ({} if count is None else {"n_events": count.numpy()})
        content = io.BytesIO()
        np.savez(content, **columns)
        self._write(number, "outcome.npz", content.getvalue())

    def _file(self, number: int, name: str) -> Path | None:
        return None if self.path is None else self.path / f"{number:03d}.{name}"

    def _write(self, number: int, name: str, content: bytes) -> None:
        path = self._file(number, name)
        if path is not None:
            replace_file(path, content)
