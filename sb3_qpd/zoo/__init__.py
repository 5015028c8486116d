"""
RL Zoo's own programs, with ``qpd`` among their algorithms.

    sb3-qpd zoo train --algo qpd --env LunarLander-v3 -params teacher:"'my_agents/ppo/LunarLander-v3_1'"
    python -m sb3_qpd.zoo enjoy --algo qpd --env LunarLander-v3 -f logs

Arguments, files and folders are RL Zoo's, and so is its code: it runs as it is installed. What this package adds: the
algorithm and its search space (:mod:`~sb3_qpd.zoo.search`), the entries of ``hyperparams/qpd.yml`` and what is checked in
them (:mod:`~sb3_qpd.zoo.entries`), the student's own files in the run folder (:mod:`~sb3_qpd.zoo.manager`), and bridges over
defects of today's packages (:mod:`~sb3_qpd.zoo.compat`). In a script of one's own ``register()`` does all of that.
"""

import importlib
import runpy
import sys
from collections.abc import Sequence
from typing import Any

ALGO = "qpd"
_PLOTS = ("plot_train", "plot_from_file", "all_plots")
PROGRAMS = ("train", "enjoy", "record_video", "push_to_hub", "load_from_hub", *_PLOTS)
# imported by RL Zoo's programs without being required by it, and by whom they are brought
UNDECLARED = {name: "sb3_qpd[zoo]" for name in ("requests", "pandas", "seaborn")}


def __getattr__(name: str) -> Any:
    """``hyperparams`` is what RL Zoo asks of a package that ``--conf-file`` names: the entries, read anew each time."""
    if name != "hyperparams":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sb3_qpd.zoo.entries import read_entries

    return read_entries()


def register() -> None:
    """Make ``qpd`` one of RL Zoo's algorithms in this process. Call it before ``rl_zoo3.train`` is imported."""
    import rl_zoo3
    from rl_zoo3 import exp_manager, hyperparams_opt

    from sb3_qpd.distillation.distiller import QPDDistiller
    from sb3_qpd.zoo import compat as bridges
    from sb3_qpd.zoo.manager import StudentManager
    from sb3_qpd.zoo.search import convert_qpd_params, sample_qpd_params

    bridges.build()
    rl_zoo3.ALGOS[ALGO] = QPDDistiller
    hyperparams_opt.HYPERPARAMS_SAMPLER[ALGO] = sample_qpd_params
    hyperparams_opt.HYPERPARAMS_CONVERTER[ALGO] = convert_qpd_params  # type: ignore[assignment]
    exp_manager.ExperimentManager = StudentManager  # type: ignore[misc]
    StudentManager.has_begun = False


def run(program: str, arguments: Sequence[str]) -> None:
    """
    Run one of RL Zoo's programs in this process, as ``python -m`` would.

    :param program: one of ``PROGRAMS``
    :param arguments: the program's own
    """
    before = sys.argv
    try:
        register()
        sys.argv = [f"sb3-qpd zoo {program}", *arguments]
        if program in _PLOTS:
            getattr(importlib.import_module("rl_zoo3.plots"), program)()
        else:
            runpy.run_module(f"rl_zoo3.{program}", run_name="__main__")
    except AssertionError as error:  # RL Zoo's way to refuse, such as a file of -i that is not there
        if has_begun() or not str(error):
            raise
        raise ValueError(str(error)) from error
    except ModuleNotFoundError as error:
        if error.name not in UNDECLARED:
            raise
        raise ImportError(f"{program} needs the package {error.name}: pip install '{UNDECLARED[error.name]}'") from error
    finally:
        sys.argv = before


def has_begun() -> bool:
    """Whether the program has begun to learn: what goes wrong before is somebody's mistake, and one line."""
    manager = sys.modules.get("sb3_qpd.zoo.manager")
    return manager is not None and manager.StudentManager.has_begun
