"""sbi-core: simulation-based inference that mines the simulator's gold."""

from pathlib import Path as _Path

if not (_Path(__file__).parent / "simulators").exists():  # a checkout: the other rooms stand beside this folder
    __path__.append(str(_Path(__file__).parent.parent))

from sbi_core.campaign import simulate
from sbi_core.errors import (
    GoldError,
    InputError,
    MissingGold,
    SbiError,
    SbiWarning,
    SimulatorError,
    StoreError,
    TrainingError,
)
from sbi_core.events import Events
from sbi_core.function_simulator import FunctionSimulator
from sbi_core.gold import joint_log_ratio, joint_score
from sbi_core.gold_check import check_gold
from sbi_core.inference import Posterior, check_observation, diagnose, infer, limits
from sbi_core.parameters import Parameter
from sbi_core.priors import UniformPrior
from sbi_core.simulations import Simulations
from sbi_core.simulator import Mined, Simulator
from sbi_core.store import Store

__version__ = "0.1.0"

__all__ = [
    "Events",
    "FunctionSimulator",
    "GoldError",
    "InputError",
    "Mined",
    "MissingGold",
    "Parameter",
    "Posterior",
    "SbiError",
    "SbiWarning",
    "Simulations",
    "Simulator",
    "SimulatorError",
    "Store",
    "StoreError",
    "TrainingError",
    "UniformPrior",
    "check_gold",
    "check_observation",
    "diagnose",
    "infer",
    "joint_log_ratio",
    "joint_score",
    "limits",
    "simulate",
]
