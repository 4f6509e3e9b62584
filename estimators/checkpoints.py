"""Unfinished trainings on disk: one file of safetensors and JSON behind its checksum, replaced as a whole."""

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from sbi_core.errors import SbiWarning, StoreError, TrainingError
from sbi_core.estimators.files import replace_file

if TYPE_CHECKING:
    from sbi_core.estimators.loop import Loop, Parts

SECONDS = 10.0
"""Least time between two checkpoints; one is due at the end of the first epoch after that."""

FORMAT = 3


class Checkpoint:
    """Where a training keeps its state, so that after any end it carries on with the same bits.

    The file holds the weights, their average, the kept ones, the optimiser, the record, the rows' own thetas and the
    state of the random numbers, all as data.

    Args:
        folder: where; `None` keeps nothing.
        identity: what must be the same for a training to be carried on, as plain data.
    """

    def __init__(self, folder: str | Path | None, identity: Mapping[str, Any]) -> None:
        self.path = None if folder is None else Path(folder) / "training.checkpoint"
        self.identity = dict(identity)
        self.written = -float("inf")
        self.flags: list[str] = []
        self.seconds = 0.0

    @property
    def begun(self) -> bool:
        """Whether there is a state to carry on from."""
        return self.path is not None and self.path.exists()

    def offer(self, loop: "Loop", rows: "Parts") -> None:
        """Write the state if it is time; a disk that is full is reported, and training goes on."""
        last = loop.epoch == loop.plan.epochs or loop.is_stale
        if self.path is None or (not last and time.monotonic() - self.written < SECONDS):
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, _packed(self.identity, loop, rows))
        except (OSError, StoreError) as error:
            if not self.flags:
                self.flags.append(f"the checkpoint of epoch {loop.epoch} was not written: {error}")
                warnings.warn(self.flags[0], SbiWarning, stacklevel=2)
        self.written = time.monotonic()

    def resume(self, loop: "Loop", rows: "Parts") -> bool:
        """Put a training where its checkpoint was, torch's global random state included; whether there was one.

        Raises:
            TrainingError: if the checkpoint is of another training.
            StoreError: if the file is truncated or altered.
        """
        if self.path is None or not self.begun:
            return False
        tensors, known = _unpacked(self.path)
        other = [name for name, value in self.identity.items() if known["identity"].get(name) != value]
        if other:
            said = "; ".join(f"{name} was {known['identity'].get(name)}, is {self.identity[name]}" for name in other)
            raise TrainingError(
                f"checkpoint {self.path} is of another training: {said}. Give another folder, or delete it."
            )
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, rest = name.partition("/")
            parts.setdefault(group, {})[rest] = value
        loop.model.load_state_dict(parts["model"])
        loop.average.load_state_dict(parts["average"])
        loop.kept = {name: value.to(loop.plan.device) for name, value in parts["kept"].items()}
        loop.lowest, loop.start = (parts[name][""] if name in parts else None for name in ("lowest", "start"))
        for name, value in _moments(loop).items():
            value.copy_(parts["optimizer"][name])
        for name in ("steps", "epoch", "best_epoch", "seconds", "history"):
            setattr(loop, name, known[name])
        self.seconds = loop.seconds
        rows.restore(parts.get("rows", {}))
        rows.clipped = known["clipped"]
        torch.set_rng_state(parts["random"]["cpu"])
        if "cuda" in parts["random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(parts["random"]["cuda"], loop.plan.device)
        return True


def seed_of(folder: str | Path | None) -> int | None:
    """The seed of the training whose checkpoint is in a folder; `None` if there is none."""
    path = None if folder is None else Path(folder) / "training.checkpoint"
    return None if path is None or not path.exists() else int(_unpacked(path)[1]["identity"]["seed"])


def _packed(identity: Mapping[str, Any], loop: "Loop", rows: "Parts") -> bytes:
    tensors = {f"model/{name}": value for name, value in loop.model.state_dict().items()}
    tensors |= {f"average/{name}": value for name, value in loop.average.state_dict().items()}
    tensors |= {f"kept/{name}": value for name, value in loop.kept.items()}
    tensors |= {f"optimizer/{name}": value for name, value in _moments(loop).items()}
    tensors |= {f"{name}/": at for name in ("lowest", "start") if (at := getattr(loop, name)) is not None}
    tensors |= {f"rows/{name}": value for name, value in rows.state().items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if loop.plan.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(loop.plan.device)
    known = {name: getattr(loop, name) for name in ("steps", "epoch", "best_epoch", "seconds", "history")}
    known |= {"format": FORMAT, "identity": dict(identity), "clipped": rows.clipped}
    content = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, {"state": json.dumps(known)})
    return hashlib.sha256(content).digest() + content


def _moments(loop: "Loop") -> dict[str, Tensor]:
    kinds = {"first": loop.moments[0], "second": loop.moments[1], "count": loop.counts}
    return {f"{kind}/{number}": value for kind, values in kinds.items() for number, value in enumerate(values)}


def _unpacked(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    whole = path.read_bytes()
    digest, content = whole[:32], whole[32:]
    if hashlib.sha256(content).digest() != digest:
        raise StoreError(f"{path} is truncated or altered: its checksum is wrong. Delete it to train from the start.")
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # safetensors: length, JSON, numbers
    known = json.loads(header["__metadata__"]["state"])
    if known["format"] != FORMAT:
        raise StoreError(f"{path}: format version found {known['format']}, supported {FORMAT}.")
    return load(content), known
