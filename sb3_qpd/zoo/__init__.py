"""
RL Zoo's own programs, with ``qpd`` among their algorithms.

    sb3-qpd zoo train --algo qpd --env LunarLander-v3 -params teacher:my_agents/ppo/LunarLander-v3_1
    python -m sb3_qpd.zoo enjoy --algo qpd --env LunarLander-v3 -f logs

Arguments, files and folders are RL Zoo's, and so is its code: it runs as it is installed. This package adds the algorithm and
its search space (:mod:`~sb3_qpd.zoo.search`), the entries of ``hyperparams/qpd.yml`` and their checks
(:mod:`~sb3_qpd.zoo.entries`), the student's own files in the run folder (:mod:`~sb3_qpd.zoo.manager`), and replacements for
what is broken in the installed packages (:mod:`~sb3_qpd.zoo.compat`). A script of your own calls ``register()`` for all that.
"""

import importlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sb3_qpd.child_processes import import_matplotlib

ALGO = "qpd"
_PLOTS = ("plot_train", "plot_from_file", "all_plots")
PROGRAMS = ("train", "enjoy", "record_video", "push_to_hub", "load_from_hub", *_PLOTS)
# RL Zoo's programs import these without requiring them, so that this package requires them
UNDECLARED = ("requests", "pandas", "seaborn")
_ABSENT = object()

# bounds of a run, here and on the command line
MAX_TIMESTEPS = 10**11  # a year at 3,000 steps a second
MAX_N_ENVS = 4_096  # each is a Python object, or a process


def __getattr__(name: str) -> Any:
    """``hyperparams``: the entries, which RL Zoo reads from a package that ``--conf-file`` names. They are read each time."""
    if name != "hyperparams":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sb3_qpd.zoo.entries import read_entries

    return read_entries()


def register(trust_files: bool = False) -> None:
    """
    Make ``qpd`` one of RL Zoo's algorithms in this process. Call it before ``rl_zoo3.train`` is imported. RL Zoo, SB3's
    ``VecNormalize.load`` and ``QPDDistiller.load`` read files as data from then on, see :mod:`~sb3_qpd.zoo.untrusted`.

    :param trust_files: see :func:`run`
    """
    import rl_zoo3
    from rl_zoo3 import exp_manager, hyperparams_opt

    from sb3_qpd.distillation.distiller import QPDDistiller
    from sb3_qpd.zoo.compat import replacements
    from sb3_qpd.zoo.manager import StudentManager
    from sb3_qpd.zoo.search import convert_qpd_params, sample_qpd_params

    for owner, name, value in replacements(trust_files):
        setattr(owner, name, value)
    rl_zoo3.ALGOS[ALGO] = QPDDistiller
    hyperparams_opt.HYPERPARAMS_SAMPLER[ALGO] = sample_qpd_params
    hyperparams_opt.HYPERPARAMS_CONVERTER[ALGO] = convert_qpd_params  # type: ignore[assignment]
    exp_manager.ExperimentManager = StudentManager  # type: ignore[misc]
    StudentManager.has_begun = False


@contextmanager
def registered(trust_files: bool = False) -> Iterator[None]:
    """
    Register ``qpd`` for a while: what :func:`register` changes in other packages is as before afterwards.

    :param trust_files: see :func:`run`
    """
    import rl_zoo3
    import torch as th
    from rl_zoo3 import exp_manager, hyperparams_opt

    from sb3_qpd.zoo.compat import replacements

    tables: tuple[dict[str, Any], ...] = (
        rl_zoo3.ALGOS,
        hyperparams_opt.HYPERPARAMS_SAMPLER,
        hyperparams_opt.HYPERPARAMS_CONVERTER,
    )
    known = [dict(table) for table in tables]
    places = [*((owner, name) for owner, name, _ in replacements()), (exp_manager, "ExperimentManager")]
    values = [(owner, name, vars(owner).get(name, _ABSENT)) for owner, name in places]
    n_threads = th.get_num_threads()  # the programs' --num-threads
    try:
        register(trust_files)
        yield
    finally:
        for owner, name, value in values:
            if value is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        for table, entries in zip(tables, known, strict=True):
            table.clear()
            table.update(entries)
        th.set_num_threads(n_threads)


def run(
    program: str,
    arguments: Sequence[str],
    trust_files: bool = False,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> None:
    """
    Run one of RL Zoo's programs in this process, as ``python -m`` would.

    :param program: one of ``PROGRAMS``
    :param arguments: arguments of the program
    :param trust_files: let RL Zoo evaluate, unpickle and import what its files say. Otherwise
        :mod:`~sb3_qpd.zoo.untrusted` reads them as data
    :param checkpoint_every: environment steps between two checkpoints of ``train``, 0 for none, see
        :class:`~sb3_qpd.Checkpoint`
    :param resume: whether ``train`` goes on with the newest run of the environment that was killed
    :raises ValueError: RL Zoo refused its arguments
    :raises ImportError: a package that RL Zoo does not require is missing
    """
    before = sys.argv
    import_matplotlib()
    try:
        with registered(trust_files), _limited_downloads():
            from sb3_qpd.zoo.manager import StudentManager

            StudentManager.checkpoint_every, StudentManager.resume = checkpoint_every, resume
            sys.argv = [f"sb3-qpd zoo {program}", *arguments]
            if program in _PLOTS:
                getattr(importlib.import_module("rl_zoo3.plots"), program)()
            else:
                runpy.run_module(f"rl_zoo3.{program}", run_name="__main__")
    except AssertionError as error:  # how RL Zoo refuses arguments, such as a file of -i that is not there
        if has_begun() or not str(error):
            raise
        raise ValueError(str(error)) from error
    except ModuleNotFoundError as error:
        if error.name not in UNDECLARED:
            raise
        raise ImportError(
            f"{program} needs the package {error.name}, which sb3_qpd requires: pip install {error.name}"
        ) from error
    finally:
        sys.argv = before


@contextmanager
def _limited_downloads() -> Iterator[None]:
    """Limits on what the Hub answers to a program, as for all downloads of this package."""
    from sb3_qpd.teachers.files.archive import MAX_FILE_BYTES
    from sb3_qpd.teachers.hub_limits import limited_answers

    with limited_answers(MAX_FILE_BYTES):
        yield


def has_begun() -> bool:
    """Whether the program has begun to learn. An error before that is the user's, and one line."""
    manager = sys.modules.get("sb3_qpd.zoo.manager")
    return manager is not None and manager.StudentManager.has_begun
