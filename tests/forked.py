"""
Programs in processes of their own, which need not import torch for two seconds: a server that has imported it is forked.

They are for tests of what a program does. Tests of what a process imports, or how it starts, take real processes.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from sb3_qpd.child_processes import interrupts_wait, take_interrupts

SECONDS = 900  # even on a very busy machine
WITH_TORCH = "sb3_qpd.search.workers"  # imports torch and most of the package, but no optional package


def run_forked(*arguments: str | Path, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """
    Run ``python ARGUMENTS``, as ``subprocess.run`` does. Systems without a fork server take a new process.

    :param arguments: ``-m``, the name of a module and its arguments; or the path of a script and its arguments
    :param folder: current folder of the program; ``None`` for that of the tests
    :param variables: environment variables, besides those of the tests
    """
    command, environment = [*map(str, arguments)], {**os.environ, **variables}
    folder = Path.cwd() if folder is None else folder
    if sys.platform != "linux":
        options = {"capture_output": True, "text": True, "timeout": SECONDS}
        return subprocess.run([sys.executable, *command], cwd=folder, env=environment, **options)  # type: ignore[call-overload]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([WITH_TORCH])
    with tempfile.TemporaryDirectory() as name:
        output, errors = Path(name, "output"), Path(name, "errors")
        process = context.Process(target=_run, args=(command, folder, environment, output, errors))
        with interrupts_wait():  # the server may become that of the package's own workers, which need it
            process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{command} takes more than {SECONDS} s")
        return subprocess.CompletedProcess(command, process.exitcode, output.read_text(), errors.read_text())


def _run(command: list[str], folder: Path, environment: dict[str, str], output: Path, errors: Path) -> None:
    """Run the program in this process, which was forked for it."""
    take_interrupts()
    for stream, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out, and Weights & Biases ends its file there
