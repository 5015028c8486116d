"""
The exported C on emulated microcontrollers: its outputs, flash and RAM, and the instructions that an action takes.

Instructions are counted, not cycles. Wait states of the flash, and loads and branches of several cycles, are not included.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sb3_qpd.export.c.memory import episode_windows, window_model
from sb3_qpd.export.c.runtime import run_compiler
from sb3_qpd.export.c.text import read_template, rename
from sb3_qpd.export.c.vectors import c_observations
from sb3_qpd.integer import IntegerModel

_SEMIHOSTING = "-nographic -monitor none -serial none -semihosting-config enable=on,target=native -icount shift=0 -kernel"


@dataclass(frozen=True)
class Microcontroller:
    """
    A processor, with the tools that build programs for it and emulate it.

    :param tools: prefix of the names of ``gcc`` and ``size``
    :param flags: options for compiler and linker
    :param emulator: command of the emulator, up to the name of the program
    :param origin: address of the memory
    :param packages: Debian packages with these tools
    """

    tools: str
    flags: str
    emulator: str
    origin: int
    packages: str


def _cortex_m(board: str, flags: str) -> Microcontroller:
    """An ARM processor on one of the MPS2 boards that QEMU emulates."""
    return Microcontroller(
        tools="arm-none-eabi-",
        flags=f"-mthumb {flags}",
        emulator=f"qemu-system-arm -M {board} {_SEMIHOSTING}",
        origin=0,
        packages="gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm",
    )


MICROCONTROLLERS = {
    "cortex-m4f": _cortex_m("mps2-an386", "-mcpu=cortex-m4 -mfpu=fpv4-sp-d16 -mfloat-abi=hard"),
    "cortex-m3": _cortex_m("mps2-an385", "-mcpu=cortex-m3"),
    "rv32imc": Microcontroller(
        tools="riscv64-unknown-elf-",
        flags="-march=rv32imc -mabi=ilp32 --specs=picolibc.specs",
        emulator=f"qemu-system-riscv32 -M virt -bios none {_SEMIHOSTING}",
        origin=0x80000000,
        packages="gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf qemu-system-misc",
    ),
}


@dataclass
class Emulation:
    """
    Results of an emulation.

    :param outputs: the head's accumulators, int32, shape (batch_size, n_out)
    :param actions: shape (batch_size,) for Discrete actions, else (batch_size, action_dim)
    :param instructions: instructions of each action, to within 40 on Cortex-M; pushing the newest frame is included
    :param flash: bytes of code, of constants and of the library functions that are called
    :param ram: bytes of static memory, the stack of frames included
    :param call_stack: bytes of call stack
    """

    outputs: np.ndarray
    actions: np.ndarray
    instructions: np.ndarray
    flash: int
    ram: int
    call_stack: int

    def milliseconds(self, mhz: float) -> float:
        """
        Time of the median action in milliseconds, if every instruction took one cycle.

        :param mhz: clock of the processor in MHz
        """
        return float(np.median(self.instructions)) / (1000 * mhz)


def missing_tools(microcontroller: str) -> str:
    """
    The tools that are missing to emulate a microcontroller, and the command that installs them.

    :param microcontroller: a key of ``MICROCONTROLLERS``
    :return: empty if nothing is missing
    """
    chip = MICROCONTROLLERS[microcontroller]
    tools = (f"{chip.tools}gcc", f"{chip.tools}size", chip.emulator.split()[0])
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return f"{', '.join(missing)} not found: apt-get install --no-install-recommends {chip.packages}" if missing else ""


def emulate(
    folder: str | os.PathLike[str],
    model: IntegerModel,
    observations: np.ndarray,
    microcontroller: str = "cortex-m4f",
    *,
    cflags: Sequence[str] = ("-O2",),
    name: str = "policy",
) -> Emulation:
    """
    Build exported C for a microcontroller and run it on observations.

    :param folder: folder that ``export_c`` wrote into
    :param model: the student, which brings raw observations to the form that its C takes
    :param observations: raw observations, shape (batch_size, *observation_shape)
    :param microcontroller: a key of ``MICROCONTROLLERS``
    :param cflags: options for the compiler of the policy
    :param name: name that was given to ``export_c``
    :raises RuntimeError: if tools are missing, or the build or the emulator fails
    """
    if model.history > 1:
        model, observations = window_model(model), episode_windows(model, observations)
    if problem := missing_tools(microcontroller):
        raise RuntimeError(problem)
    chip = MICROCONTROLLERS[microcontroller]
    with tempfile.TemporaryDirectory() as build:
        program = _build(Path(folder).resolve(), Path(build), chip, cflags, name)
        n_frames = _n_frames(Path(folder, f"{name}.h"))
        c_observations(model, n_frames, observations).tofile(Path(build, "observations.bin"))
        done = subprocess.run([*shlex.split(chip.emulator), program], cwd=build, capture_output=True, text=True)
        results = Path(build, "results.bin")
        if done.returncode or not results.exists():
            raise RuntimeError(f"{chip.emulator} failed: {done.stderr or done.stdout}")
        flash, ram = _memory(Path(build), chip)
        raw = np.fromfile(results, np.uint32)
    n_actions = len(model.layers[-1].weight) if model.is_box else len(model.action_nvec)
    rows = raw[:-1].reshape(len(observations), len(model.layers[-1].weight) + n_actions + 1)
    actions = rows[:, -1 - n_actions : -1].copy()
    is_float = model.is_box and model.requantization == "float32"
    return Emulation(
        outputs=rows[:, : -1 - n_actions].copy().view(np.int32),
        actions=actions.view(np.float32) if is_float else actions.view(np.int32)[:, slice(None) if model.action_shape else 0],
        instructions=rows[:, -1].copy(),
        flash=flash,
        ram=ram,
        call_stack=int(raw[-1]),
    )


def _build(folder: Path, build: Path, chip: Microcontroller, cflags: Sequence[str], name: str) -> Path:
    (build / "device.c").write_text(rename(read_template("device.c"), name), encoding="utf-8")
    script = read_template("device.ld").replace("ORIGIN_ADDRESS", hex(chip.origin))
    (build / "device.ld").write_text(script, encoding="utf-8")
    compiler = [f"{chip.tools}gcc", *chip.flags.split(), "-std=c99"]
    # the harness calls no library function: those in the program are called by the policy, and counted as its flash
    harness = [*compiler, "-O1", "-fno-tree-loop-distribute-patterns", "-I", str(folder), "-c"]
    run_compiler([*harness, build / "device.c", "-o", build / "device.o"])
    run_compiler([*compiler, *cflags, "-c", folder / f"{name}.c", "-o", build / "policy.o"])
    linker = [*compiler, "-nostartfiles", "-Wl,--build-id=none", "-T", str(build / "device.ld")]
    run_compiler([*linker, build / "device.o", build / "policy.o", "-o", build / "program.elf"])
    return build / "program.elf"


def _memory(build: Path, chip: Microcontroller) -> tuple[int, int]:
    """Bytes of flash and static RAM of the policy and of what it calls: the program without the harness."""

    def sizes(name: str) -> tuple[int, ...]:
        done = subprocess.run([f"{chip.tools}size", build / name], capture_output=True, text=True, check=True)
        return tuple(map(int, done.stdout.splitlines()[1].split()[:3]))  # text, data, bss

    program, harness, policy = (sizes(name) for name in ("program.elf", "device.o", "policy.o"))
    return program[0] + program[1] - harness[0] - harness[1], policy[1] + policy[2]


def _n_frames(header: Path) -> int:
    """The number of frames in an observation that a C header was written for; 1 for vectors."""
    frames = re.search(r"_N_FRAMES (\d+)", header.read_text(encoding="utf-8"))
    return 1 if frames is None else int(frames[1])
