"""Somebody else's executable as a simulator: parameters go to it in a file, observables come back in one."""

import hashlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError, SimulatorError, nearest
from sbi_core.parameters import Parameter, names
from sbi_core.seeding import derived_seed
from sbi_core.simulator import Mined, Simulator
from sbi_core.simulators.command_files import FORMATS, Request
from sbi_core.simulators.command_process import CommandFailed, run

_FINGERPRINT = 50_000_000
"""Bytes of a file up to which its content tells one program from another."""


class CommandSimulator(Simulator):
    """An executable or script as a simulator, called once for each block of rows, in a working folder of its own.

    Words of the command are replaced: `{input}` and `{output}` by the names of its two files, `{seed}` by the seed of
    the call, `{rows}` by the number of rows, `{folder}` by the working folder; with `rows_per_seed=1` also the name of
    each parameter and design, in braces, by its value. No shell reads the command. Words that name existing files,
    seen from where the simulator was made, become absolute, and what is in these files is part of the simulator's
    settings: a campaign is not continued with an edited script.

    | format | input | output |
    |---|---|---|
    | csv | a header of the parameters' and designs' names, then a line a row | numbers, with or without a header |
    | npy | array (M, D + K) | array (M, ...) |
    | json | {"parameters", "designs", "theta", "design", "seed"} | list (M, ...), or {"x", "joint_score", ...} |

    In JSON a program may also return its gold, as functions do: `joint_score` (M, D), and with `contrasts`, whose
    `theta_alt` (M, C, D) stands in the input, `joint_log_ratio` (M, C).

    A call fails if the program cannot be run, ends with another code than 0, writes no output, or takes longer than its
    time limit; it is then repeated with the same seed `retries` times. If a call for several rows fails all the same,
    the rows are tried one by one, each with a seed of its own, and those that fail are NaN, with what the program wrote
    to its standard error in `Simulations.failures`. Output of the wrong shape ends the campaign: that is a mistake, not
    bad luck.

    The program must take all randomness from its seed, 63 bits by default.

    Args:
        command: the program and its arguments, as one text (quoted as in a shell) or a list.
        parameters: the axes of theta; or their ranges by name, {"mass": [0.5, 2.0]}.
        designs: the axes of the experiment setting, likewise.
        format: of both files, a name in the table.
        output: name of the file that the program writes in its working folder, or "-" for its standard output; by
            default x.csv, x.npy or x.json.
        rows_per_seed: rows of one call.
        time_limit: seconds for one row; a call has as many times that as it has rows. All processes that the program
            began in its group are then ended.
        retries: how often a call that failed is repeated.
        seed_bits: bits of the seeds, for programs that read small ones only. Two of 10^5 calls share one of 31 bits.
        contrasts: thetas C beside its own at which the program gives each row's joint log ratio.
        folder: where working folders are made; they are then kept if the call failed. By default they are temporary.
        environment: variables added to those of this process.
        prior: any distribution with event shape (D,); uniform on the parameters' ranges by default.
        x_shape: the shape of one observation, if it should be checked from the first call on.

    Raises:
        InputError: if there is no such program or format, or the command cannot be filled in.

    Example:
        >>> from sbi_core import simulate
        >>> script = "from random import *; seed({seed}); print(gauss({mu}, 1))"
        >>> world = {"output": "-", "rows_per_seed": 1, "parameters": [Parameter("mu", -1, 1)]}
        >>> coin = CommandSimulator(["python3", "-c", script], **world)
        >>> simulate(coin, 3, seed=1, progress=False).x.shape
        torch.Size([3, 1])
    """

    runs_foreign_code = True

    def __init__(
        self,
        command: str | Sequence[str],
        parameters: Sequence[Parameter] | Mapping[str, Sequence[float]],
        *,
        designs: Sequence[Parameter] | Mapping[str, Sequence[float]] = (),
        format: str = "csv",
        output: str | None = None,
        rows_per_seed: int = 100,
        time_limit: float | None = None,
        retries: int = 1,
        seed_bits: int = 63,
        contrasts: int = 0,
        folder: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
        prior: Distribution | None = None,
        x_shape: Sequence[int] | None = None,
    ) -> None:
        if format not in FORMATS:
            raise InputError(f"format = {format!r}: {nearest(str(format), FORMATS)}")
        for name, value, least in (("rows_per_seed", rows_per_seed, 1), ("retries", retries, 0)):
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} = {value!r}, expected a whole number from {least} up.")
        if not isinstance(seed_bits, int) or not 8 <= seed_bits <= 63:
            raise InputError(f"seed_bits = {seed_bits!r}, expected a whole number from 8 to 63.")
        if time_limit is not None and not time_limit > 0:
            raise InputError(f"time_limit = {time_limit!r}, expected a positive number of seconds, or None.")
        if contrasts and format != "json":
            raise InputError(
                f"contrasts = {contrasts} need format='json', which has room for theta_alt; got {format!r}."
            )
        self.parameters, self.designs = _axes(parameters), _axes(designs)
        self.command = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
        self.format = format
        self.output = f"x.{format}" if output is None else output
        self.rows_per_seed = rows_per_seed
        self.seed_bits = seed_bits
        self.contrasts = contrasts
        self.x_shape = None if x_shape is None else tuple(x_shape)
        self._time_limit, self._retries = time_limit, retries
        self._folder = None if folder is None else Path(folder).absolute()
        self._environment = dict(environment or {})
        self.environment = {name: _hash(value.encode()) for name, value in self._environment.items()}
        self._prior = prior
        self._words, self.files = _found(self.command, (f"theta.{format}", self.output))
        by_value = [
            axis.name for axis in (*self.parameters, *self.designs) if f"{{{axis.name}}}" in " ".join(self._words)
        ]
        if by_value and rows_per_seed > 1:
            raise InputError(
                f"command has {{{by_value[0]}}}, the value in one row, and rows_per_seed = {rows_per_seed}: set "
                f"rows_per_seed=1, or let the program read theta.{format}."
            )

    @property
    def prior(self) -> Distribution:
        """Density of theta, event shape (D,)."""
        return self._prior if self._prior is not None else super().prior

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, None]:
        """x (M, ...) at theta (M, D); gold is left aside (contrasts are then theta itself)."""
        alt = theta[:, None].expand(-1, self.contrasts, -1) if self.contrasts else None
        return self.mine(theta, alt, design, generator).x, None

    def mine(self, theta: Tensor, theta_alt: Tensor | None, design: Tensor | None, generator: torch.Generator) -> Mined:
        """Run the program at theta (M, D), theta_alt (M, C, D): x (M, ...) and the gold that it returns."""
        if self.designs and design is None:
            raise InputError(f"simulator '{self.name}' has designs {names(self.designs)}: give simulate(design=...).")
        drawn = int(torch.randint(0, 2**63 - 1, (), generator=generator))
        alt, setting = (None if column is None else column.numpy() for column in (theta_alt, design))
        asked = Request(names(self.parameters), names(self.designs), theta.numpy(), setting, alt, self._seed(drawn))
        try:
            return self._called(asked)
        except (CommandFailed, TimeoutError):
            if len(theta) == 1:
                raise
        made: dict[int, Mined] = {}
        failures: dict[int, BaseException] = {}
        for row in range(len(theta)):
            try:
                made[row] = self._called(asked.row(row, self._seed(derived_seed(drawn, row))))
            except (CommandFailed, TimeoutError) as error:
                failures[row] = error
        if not made:
            raise failures[0]
        return _stacked(made, failures)

    def _seed(self, drawn: int) -> int:
        return drawn >> (63 - self.seed_bits)

    def _called(self, asked: Request) -> Mined:
        """One call of the program, repeated if it fails."""
        for _ in range(self._retries):
            try:
                return self._once(asked)
            except (CommandFailed, TimeoutError):
                continue
        return self._once(asked)

    def _once(self, asked: Request) -> Mined:
        """One run of the program in a folder of its own."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"call-{asked.seed}-", dir=self._folder))
        write, read = FORMATS[self.format]
        answer = folder / ("stdout.txt" if self.output == "-" else self.output)
        seconds = None if self._time_limit is None else self._time_limit * len(asked.theta)
        kept = self._folder is not None
        try:
            write(folder / f"theta.{self.format}", asked)
            run(self._filled(asked, folder), folder, seconds, self._environment, answer if self.output == "-" else None)
            if not answer.exists():
                raise CommandFailed(f"{self._words[0]} ended well, but wrote no {answer.name}")
            made = self._read(read, answer, asked)
            kept = False
        except Exception as error:
            if kept:
                error.args = (f"{error} (see {folder})", *error.args[1:])
            raise
        finally:
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)
        return made

    def _filled(self, asked: Request, folder: Path) -> list[str]:
        """The command with everything in braces replaced that is known."""
        values = {"seed": str(asked.seed), "rows": str(len(asked.theta)), "folder": str(folder)}
        values |= {"input": f"theta.{self.format}", "output": self.output}
        if len(asked.theta) == 1:
            values |= {name: repr(float(cell)) for name, cell in zip(asked.header, asked.table[0], strict=True)}
        words = self._words
        for name, value in values.items():
            words = [word.replace(f"{{{name}}}", value) for word in words]
        return words

    def _read(self, read: Callable[[Path], dict[str, Any]], answer: Path, asked: Request) -> Mined:
        try:
            found = read(answer)
        except (ValueError, OSError, InputError) as error:
            text = answer.read_text(encoding="utf-8", errors="replace")[:200]
            raise SimulatorError(
                f"simulator '{self.name}': {answer.name} cannot be read as {self.format} ({error}); it begins {text!r}."
            ) from error
        unknown = sorted(set(found) - {"x", "joint_score", "joint_log_ratio"})
        if unknown or "x" not in found:
            raise SimulatorError(
                f"simulator '{self.name}': {answer.name} holds {sorted(found)}, expected x, and of gold joint_score "
                "and joint_log_ratio."
            )
        columns = {name: to_column(name, value) for name, value in found.items()}
        rows = len(asked.theta)
        for name, column in columns.items():
            if not column.ndim or len(column) != rows:
                raise SimulatorError(
                    f"simulator '{self.name}': {name} in {answer.name} has shape {tuple(column.shape)}, expected "
                    f"({rows}, ...), a row for each theta; the first theta is {asked.theta[0].tolist()}."
                )
        return Mined(columns["x"], None, columns.get("joint_score"), columns.get("joint_log_ratio"))


def _axes(given: Any) -> tuple[Parameter, ...]:
    """Parameters, or their ranges by name, as a configuration has them."""
    if isinstance(given, Mapping):
        return tuple(Parameter(name, float(low), float(high)) for name, (low, high) in given.items())
    return tuple(given)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _found(command: list[str], own: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The command's words with files made absolute, but for the call's own, and what is in these: name -> hash."""
    if not command:
        raise InputError("command is empty: expected a program and its arguments, such as 'python sim.py {input}'.")
    program = shutil.which(command[0])
    if program is None:
        raise InputError(f"command: there is no program {command[0]!r}; give its path, and make it executable.")
    words, files = [os.path.abspath(program) if os.sep in command[0] else program], {}
    for word in command[1:]:
        words.append(os.path.abspath(word) if os.path.isfile(word) and word not in own else word)
    for word, path in zip(command, words, strict=True):
        if os.sep in path and os.path.isfile(path) and (word != command[0] or os.sep in word):
            small = os.path.getsize(path) <= _FINGERPRINT
            files[word] = _hash(Path(path).read_bytes()) if small else "large"
    return words, files


def _stacked(made: Mapping[int, Mined], failures: Mapping[int, BaseException]) -> Mined:
    """Rows that were tried one by one: NaN where they failed."""
    columns: dict[str, Tensor | None] = {}
    for name in ("x", "joint_score", "joint_log_ratio"):
        parts = {row: value for row, one in made.items() if (value := getattr(one, name)) is not None}
        if not parts:
            continue
        like = next(iter(parts.values()))
        if len(parts) < len(made) or any(part.shape != like.shape for part in parts.values()):
            raise SimulatorError(f"{name} has another shape in one row of a call than in the next.")
        nothing = torch.full_like(like, torch.nan)
        columns[name] = torch.cat([parts.get(row, nothing) for row in range(len(made) + len(failures))])
    return Mined(**columns, failures=failures)  # type: ignore[arg-type]
