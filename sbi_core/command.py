"""What the commands have in common: from a command line to jobs, their run folders, and what is printed."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sbi_core.arguments import CONFIG, command_line, read_arguments
from sbi_core.errors import InputError, SbiError, SbiWarning
from sbi_core.interrupts import Ended, terminable
from sbi_core.run_folder import read_record, recall
from sbi_core.seeding import fresh_seed
from sbi_core.settings import EMBEDDING, MANNER, PROGRAM_RUNNERS, Program


@dataclass(frozen=True)
class Asked:
    """The settings of one job.

    Attributes:
        folder: the run folder.
        plain: the settings.
        settings: the same with interpolations such as ${oc.env:...} as they were written; only these are recorded.
        seed: of everything.
        record: what the run folder held before; empty if it is new.
        trusted: groups whose `_target_` may be code.
    """

    folder: Path
    plain: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int
    record: Mapping[str, Any]
    trusted: Collection[str]

    def may_build(self, group: str, config: Mapping[str, Any], *, needed: bool) -> bool:
        """Whether `_target_` of a group may be built: code that only a run folder names is not run.

        Raises:
            InputError: if it may not, and is needed.
        """
        target = str(config.get("_target_"))
        if ("." not in target and target not in PROGRAM_RUNNERS) or {group, f"{group}._target_"} & set(self.trusted):
            return True
        if needed:
            raise InputError(
                f"the run folder names {group}._target_ = {target}, which is code. If you trust it, say so: "
                f"{group}._target_={target}"
            )
        return False


def run_command(
    program: Program,
    argv: Sequence[str] | None,
    prepare: Callable[[DictConfig, Path | None, Collection[str]], Any],
    run: Callable[[Any], str],
) -> int:
    """Run a command line, job by job, and print the result of each in one line.

    Args:
        program: what it reads.
        argv: what follows the program's name; `sys.argv` by default.
        prepare: (configuration, run folder if it is known, keys that the command line names) -> job; it refuses what
            cannot work.
        run: job -> its result in words.

    Returns:
        0, or 2 if the request cannot be understood (nothing was done), or 1 if something went wrong on the way.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that a user's own module is found, and never instead of an installed one
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        codes.append(_run(program, config, request.given, prepare, run))

    application = hydra.main(version_base="1.3", config_path=CONFIG, config_name=program.config)(task)
    try:
        request = read_arguments(program, sys.argv[1:] if argv is None else argv)
        for config in request.configs:
            prepare(config, None if request.multirun else Path(resolved(config)["run_dir"]), request.given)
        with command_line(program, request.arguments):
            application()
    except SbiError as error:
        return _complain(program, error, 2)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return max(codes, default=0)


def asked(program: Program, config: DictConfig, folder: Path | None, given: Collection[str]) -> Asked:
    """Read the settings of a job: those of the run folder, if there is one, changed where the request may.

    Args:
        program: whose settings.
        config: the composed configuration.
        folder: where the run is, or will be; `None` if that is not known yet.
        given: the keys that the command line names itself.

    Raises:
        SbiError: naming the setting.
    """
    wanted: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    record = read_record(program, folder) if folder is not None else None
    settings = wanted if record is None else recall(program, record["settings"], wanted, given, folder or Path())
    plain = resolved(OmegaConf.create(settings))
    program.check(plain)
    if str(plain["device"]).startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device = {plain['device']}: torch finds no such device here; use device=cpu.")
    return Asked(
        folder=folder or Path(),
        plain=plain,
        settings={key: value for key, value in settings.items() if key not in MANNER},
        seed=plain["seed"] if plain["seed"] is not None else (record or {}).get("seed", fresh_seed()),
        record=record or {},
        trusted=set(given) if record is not None else {*program.groups, EMBEDDING},
    )


def resolved(config: Any) -> dict[str, Any]:
    """A configuration as plain data, with its interpolations.

    Raises:
        InputError: for one that cannot be resolved.
    """
    try:
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise InputError(str(error).splitlines()[0]) from error
    return plain


def _run(
    program: Program,
    config: DictConfig,
    given: Collection[str],
    prepare: Callable[[DictConfig, Path | None, Collection[str]], Any],
    run: Callable[[Any], str],
) -> int:
    folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    folder = folder.absolute() if folder.parts[:1] == ("..",) else folder
    try:
        job = prepare(config, folder, given)
    except SbiError as error:
        return _complain(program, error, 2)
    try:
        with _notes(program), terminable():
            result = run(job)
    except SbiError as error:
        return _complain(program, error, 1)
    except KeyboardInterrupt:
        code = 130
    except Ended as stop:
        code = stop.code
    except SystemExit as error:
        return _complain(program, error, 1)
    else:
        print(f"{result}; report: {folder / 'report.html'}", flush=True)
        return 0
    print(f"{program.name}: interrupted; run_dir={folder} continues it.", file=sys.stderr)
    return code


def _complain(program: Program, error: BaseException, code: int) -> int:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    print(f"{program.name}: {type(error).__name__}: {error}", file=sys.stderr)
    return code


@contextmanager
def _notes(program: Program) -> Iterator[None]:
    """Show warnings that are about the result as one line each."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
            if issubclass(category, SbiWarning):
                print(f"{program.name}: note: {message}", file=sys.stderr)
            else:
                usual(message, category, *rest, **options)

        warnings.showwarning = show
        warnings.simplefilter("always", SbiWarning)
        yield
