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

from sbi_core.design.choice import Choice
from sbi_core.design.gain import Gain
from sbi_core.errors import InputError
from sbi_core.estimators.files import replace_file
from sbi_core.parameters import Parameter
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
        while (found := self._decided(number)) is not None:
            was = found["choice"]
            for key in [key for key, value in self._choice.items() if was.get(key) != value]:
                rounds.setdefault(key, []).append(number)
            number += 1
        return tuple(f"rounds {found} were decided with another {key} than now." for key, found in rounds.items())

    def design(self, number: int) -> tuple[Tensor, Gain | None] | None:
        """The design (K,) of a round and its predicted gain, if it was chosen before."""
        found = self._decided(number)
        if found is None:
            return None
        return torch.tensor(found["design"], dtype=torch.float64), _gain(found["gain"])

    def choice(self, number: int, axes: tuple[Parameter, ...]) -> Choice | None:
        """What was looked at when the design of a round was chosen, on these axes."""
        found, kept = self._decided(number), self.design(number)
        if found is None or kept is None or kept[1] is None or not (seen := found.get("looked_at")):
            return None
        candidates, costs = (torch.tensor(seen[key], dtype=torch.float64) for key in ("candidates", "costs"))
        excluded = {int(k): reason for k, reason in seen["excluded"].items()}
        gains = tuple(map(_gain, seen["gains"]))
        return Choice(kept[0], kept[1], axes, candidates, gains, costs, excluded, seen["seed"], tuple(seen["flags"]))

    def choose(self, number: int, design: Tensor, gain: Gain | None, choice: Choice | None = None) -> None:
        """Write down what is to be done in a round, at design (K,), with its predicted gain and all that was seen."""
        seen = choice and {
            "candidates": choice.candidates.tolist(),
            "gains": [_written(one) for one in choice.gains],
            "costs": choice.costs.tolist(),
            "excluded": dict(choice.excluded),
            "seed": choice.seed,
            "flags": choice.flags,
        }
        content = {"design": design.tolist(), "gain": _written(gain), "choice": self._choice, "looked_at": seen}
        self._write(number, "design.json", _json(content))

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

    def _decided(self, number: int) -> dict[str, Any] | None:
        path = self._file(number, "design.json")
        if path is None or not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found

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
    plain = str(value) if isinstance(value, Path) else _plain(value)
    if isinstance(plain, dict | list):
        return fingerprint(plain)
    return plain if _is_standard(plain) else str(plain)


def _written(gain: Gain | None) -> dict[str, Any] | None:
    """A gain as plain data; its infinite numbers are its defaults, and are left out."""
    return None if gain is None else {key: value for key, value in asdict(gain).items() if _is_standard(value)}


def _gain(found: Mapping[str, Any] | None) -> Gain | None:
    return None if found is None else Gain(**{**found, "flags": tuple(found["flags"])})


def _is_standard(value: Any) -> bool:
    """Whether JSON knows it: infinity and NaN it does not."""
    return not isinstance(value, float) or math.isfinite(value)


def _json(plain: Any) -> bytes:
    return json.dumps(plain, indent=1, allow_nan=False).encode()
