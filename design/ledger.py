"""What a loop has asked and been told, on disk: a killed loop goes on where it was."""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sbi_core.design.gain import Gain
from sbi_core.errors import InputError
from sbi_core.estimators.files import replace_file
from sbi_core.seeding import fresh_seed
from sbi_core.simulator import Simulator, _plain


class Ledger:
    """A folder with `loop.json`, and for each round its design, the mark that it was begun, and its outcome.

    Each file is written whole (temporary file, fsync, rename), the outcome as soon as it is known.

    Args:
        folder: where; `None` keeps nothing.
        seed: of the loop; `None` takes that of the folder, or a fresh one.
        identity: what must be the same for a loop to be carried on.
        choice: what decides, and may change on the way: it is written with each design.

    Attributes:
        seed: of the loop.

    Raises:
        InputError: if the folder holds another loop.
    """

    def __init__(
        self, folder: str | Path | None, seed: int | None, identity: Mapping[str, Any], choice: Mapping[str, Any]
    ) -> None:
        self.path = None if folder is None else Path(folder)
        self._choice = fingerprint(choice)
        known = None if self.path is None else self.path / "loop.json"
        found = json.loads(known.read_text()) if known is not None and known.exists() else None
        self.seed: int = seed if seed is not None else found["seed"] if found else fresh_seed()
        asked = {"seed": self.seed, **fingerprint(identity)}
        if found and (different := [key for key in asked if found.get(key) != asked[key]]):
            says = "; ".join(f"{key}: found {found.get(key)!r}, asked {asked[key]!r}" for key in different)
            raise InputError(f"{self.path} belongs to another loop ({says}). Choose another folder.")
        if known is not None and not found:
            known.parent.mkdir(parents=True, exist_ok=True)
            replace_file(known, _json(asked))

    def changes(self) -> tuple[str, ...]:
        """What has decided some of the rounds so far, and is not what decides now, in sentences."""
        rounds: dict[str, list[int]] = {}
        number = 0
        while (path := self._file(number, "design.json")) is not None and path.exists():
            was = json.loads(path.read_text())["choice"]
            for key in [key for key, value in self._choice.items() if was.get(key) != value]:
                rounds.setdefault(key, []).append(number)
            number += 1
        return tuple(f"rounds {found} were decided with another {key} than now." for key, found in rounds.items())

    def design(self, number: int) -> tuple[Tensor, Gain | None] | None:
        """The design (K,) of a round and its predicted gain, if it was chosen before."""
        path = self._file(number, "design.json")
        if path is None or not path.exists():
            return None
        found = json.loads(path.read_text())
        gain = found["gain"]
        design = torch.tensor(found["design"], dtype=torch.float64)
        return design, None if gain is None else Gain(**{**gain, "flags": tuple(gain["flags"])})

    def choose(self, number: int, design: Tensor, gain: Gain | None) -> None:
        """Write down what is to be done in a round, at design (K,); a gain's infinite numbers are its defaults."""
        finite = None if gain is None else {k: v for k, v in asdict(gain).items() if _is_standard(v)}
        self._write(number, "design.json", _json({"design": design.tolist(), "gain": finite, "choice": self._choice}))

    def begun(self, number: int) -> bool:
        """Whether the experiment of a round was begun before."""
        path = self._file(number, "begun")
        return path is not None and path.exists()

    def begin(self, number: int) -> None:
        """Mark the experiment of a round as begun."""
        self._write(number, "begun", b"")

    def put_off(self, number: int) -> None:
        """Take the mark back."""
        if (path := self._file(number, "begun")) is not None:
            path.unlink(missing_ok=True)

    def outcome(self, number: int) -> tuple[Tensor, Tensor | None] | None:
        """x (event) and the number of events (), as they were told; `None` if they were not."""
        path = self._file(number, "outcome.npz")
        if path is None or not path.exists():
            return None
        with np.load(path, allow_pickle=False) as found:
            count = torch.from_numpy(found["n_events"]) if "n_events" in found.files else None
            return torch.from_numpy(found["x"]), count

    def tell(self, number: int, x: Tensor, count: Tensor | None) -> None:
        """Keep the outcome of a round: x (event), number of events ()."""
        columns: dict[str, Any] = {"x": x.numpy()} | ({} if count is None else {"n_events": count.numpy()})
        content = io.BytesIO()
        np.savez(content, **columns)
        self._write(number, "outcome.npz", content.getvalue())

    def _file(self, number: int, name: str) -> Path | None:
        return None if self.path is None else self.path / f"{number:03d}.{name}"

    def _write(self, number: int, name: str, content: bytes) -> None:
        path = self._file(number, name)
        if path is not None:
            replace_file(path, content)


def fingerprint(value: Any) -> Any:
    """A setting as plain data for a file: what cannot be written is named, arrays and weights become a hash."""
    if isinstance(value, Mapping):
        return {str(key): fingerprint(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [fingerprint(one) for one in value]
    if isinstance(value, partial):
        return fingerprint({"function": value.func, "arguments": value.args, "options": value.keywords})
    if is_dataclass(value) and not isinstance(value, type | Simulator):
        return fingerprint({"type": type(value), **{field.name: getattr(value, field.name) for field in fields(value)}})
    if isinstance(value, nn.Module):
        digest = hashlib.sha256()
        for name, tensor in value.state_dict().items():
            digest.update(f"{name}{_plain(tensor)}".encode())
        return f"{type(value).__qualname__}:{digest.hexdigest()[:16]}"
    plain = _plain(value)
    if isinstance(plain, dict | list):
        return fingerprint(plain)
    return plain if _is_standard(plain) else str(plain)


def _is_standard(value: Any) -> bool:
    """Whether JSON knows it: infinity and NaN it does not."""
    return not isinstance(value, float) or math.isfinite(value)


def _json(plain: Any) -> bytes:
    return json.dumps(plain, indent=1, allow_nan=False).encode()
