"""
The exported C on emulated microcontrollers: its outputs, flash and RAM, and the instructions that an action takes.

QEMU counts instructions, not cycles. Wait states of the flash, and loads and branches of several cycles, are not included.
simavr counts the cycles of an AVR, which has no wait states.
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
from typing import Any

import numpy as np
from numpy.lib.recfunctions import repack_fields

from sb3_qpd.export.c.layout import lay_out, plan_arena
from sb3_qpd.export.c.memory import Memory
from sb3_qpd.export.c.runtime import find_compiler, run_compiler
from sb3_qpd.export.c.text import read_template, rename
from sb3_qpd.export.c.vectors import c_observations
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import batch_size

_SEMIHOSTING = "-nographic -monitor none -serial none -semihosting-config enable=on,target=native -icount shift={} -kernel"
_CODE, _STACK = 4096, 256  # bytes of flash and of call stack on AVR, beside the student's numbers
_SHIFT = 6  # an instruction of a Cortex-M takes 2^6 ns: more than a tick of its timer


@dataclass(frozen=True)
class Microcontroller:
    """
    A processor, with the tools that build programs for it and emulate it.

    :param tools: prefix of the names of ``gcc`` and ``size``
    :param flags: options for compiler and linker
    :param emulator: command of the emulator, up to the name of the program
    :param origin: address of the memory; ``None``: the tools have a linker script of their own
    :param packages: Debian packages with these tools
    :param counts_cycles: the emulator counts cycles; ``False``: instructions
    :param memory: bytes of flash and of RAM; ``None``: enough for images
    :param ticks: ticks of the program's clock in an instruction (or cycle)
    """

    tools: str
    flags: str
    emulator: str
    origin: int | None
    packages: str
    counts_cycles: bool = False
    memory: tuple[int, int] | None = None
    ticks: float = 1.0

    @property
    def is_avr(self) -> bool:
        return self.tools == "avr-"


def _cortex_m(board: str, flags: str, mhz: int = 25, origin: int = 0) -> Microcontroller:
    """
    An ARM processor on one of the MPS2 boards that QEMU emulates.

    :param mhz: clock of the board's SysTick timer
    """
    return Microcontroller(
        tools="arm-none-eabi-",
        flags=f"-mthumb {flags}",
        emulator=f"qemu-system-arm -M {board} {_SEMIHOSTING.format(_SHIFT)}",
        origin=origin,
        packages="gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm",
        ticks=2**_SHIFT * mhz / 1000,
    )


def _riscv(architecture: str) -> Microcontroller:
    """A 32-bit RISC-V processor on QEMU's board ``virt``."""
    return Microcontroller(
        tools="riscv64-unknown-elf-",
        flags=f"-march={architecture} -mabi=ilp32 --specs=picolibc.specs",
        emulator=f"qemu-system-riscv32 -M virt -bios none {_SEMIHOSTING.format(0)}",
        origin=0x80000000,
        packages="gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf qemu-system-misc",
    )


MICROCONTROLLERS = {
    "cortex-m4f": _cortex_m("mps2-an386", "-mcpu=cortex-m4 -mfpu=fpv4-sp-d16 -mfloat-abi=hard"),
    "cortex-m33": _cortex_m("mps2-an505", "-mcpu=cortex-m33 -mfpu=fpv5-sp-d16 -mfloat-abi=hard", 20, 0x10000000),
    "cortex-m3": _cortex_m("mps2-an385", "-mcpu=cortex-m3"),
    # a Cortex-M3 executes all instructions of the M0+, and QEMU's boards with a Cortex-M0 have too little memory for images
    "cortex-m0plus": _cortex_m("mps2-an385", "-mcpu=cortex-m0plus"),
    "rv32imc": _riscv("rv32imc"),
    "rv32imac": _riscv("rv32imac"),
    "atmega328p": Microcontroller(
        tools="avr-",
        flags="-mmcu=atmega328p -DF_CPU=16000000UL",
        emulator="./simavr atmega328p 16",
        origin=None,
        packages="gcc-avr avr-libc libsimavr-dev gcc libc6-dev",
        counts_cycles=True,
        memory=(32_768, 2048),
    ),
}


class MisfitError(RuntimeError):
    """A student that a microcontroller has no room for, or whose numbers it does not have."""


@dataclass
class Emulation:
    """
    Results of an emulation.

    :param outputs: the head's accumulators, int32, shape (batch_size, n_out)
    :param actions: shape (batch_size,) for Discrete actions, else (batch_size, action_dim)
    :param instructions: instructions of each action (on AVR: cycles); pushing the newest frame is included
    :param flash: bytes of code, of constants and of the library functions that are called; on AVR also the 300 bytes with
        which every program starts
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
    tools = [f"{chip.tools}gcc", f"{chip.tools}size", *([] if chip.is_avr else chip.emulator.split()[:1])]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if chip.is_avr and not _has_simavr():
        missing.append("libsimavr")
    return f"{', '.join(missing)} not found: apt-get install --no-install-recommends {chip.packages}" if missing else ""


def _has_simavr() -> bool:
    """Whether the library of simavr and a compiler of this computer are installed."""
    try:
        command = [*find_compiler(), "-E", "-xc", "-", "-o", os.devnull]
    except RuntimeError:
        return False
    return subprocess.run(command, input=b"#include <simavr/sim_avr.h>\n", capture_output=True).returncode == 0


def emulate(
    folder: str | os.PathLike[str],
    model: IntegerModel,
    observations: Any,
    microcontroller: str = "cortex-m4f",
    *,
    cflags: Sequence[str] = ("-O2",),
    name: str = "policy",
) -> Emulation:
    """
    Build exported C for a microcontroller and run it on observations.

    :param folder: folder that ``export_c`` wrote into
    :param model: the student, which brings raw observations to the form that its C takes
    :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays. For a student with
        a memory they are one episode
    :param microcontroller: a key of ``MICROCONTROLLERS``
    :param cflags: options for the compiler of the policy
    :param name: name that was given to ``export_c``
    :raises MisfitError: if the student does not fit the microcontroller
    :raises RuntimeError: if tools are missing, or the build or the emulator fails
    """
    if problem := missing_tools(microcontroller):
        raise RuntimeError(problem)
    chip = MICROCONTROLLERS[microcontroller]
    if chip.memory is not None:
        _check_fit(microcontroller, chip.memory, model)
    with tempfile.TemporaryDirectory() as build:
        program = _build(Path(folder).resolve(), Path(build), chip, cflags, name)
        n_frames = _n_frames(Path(folder, f"{name}.h"))
        given = c_observations(model, n_frames, observations)
        given = repack_fields(given) if chip.is_avr else given  # without padding: an AVR aligns to bytes
        given.tofile(Path(build, "observations.bin"))
        done = subprocess.run([*shlex.split(chip.emulator), program], cwd=build, capture_output=True, text=True)
        results = Path(build, "results.bin")
        if done.returncode or not results.exists():
            raise RuntimeError(f"{chip.emulator} failed: {done.stderr or done.stdout}")
        flash, ram = _memory(Path(build), chip)
        raw = np.fromfile(results, np.uint32)
    n_actions = len(model.layers[-1].weight) if model.is_box else len(model.action_nvec)
    rows = raw[:-1].reshape(batch_size(observations), len(model.layers[-1].weight) + n_actions + 1)
    actions = rows[:, -1 - n_actions : -1].copy()
    is_float = model.is_box and model.requantization == "float32"
    return Emulation(
        outputs=rows[:, : -1 - n_actions].copy().view(np.int32),
        actions=actions.view(np.float32) if is_float else actions.view(np.int32)[:, slice(None) if model.action_shape else 0],
        instructions=np.rint(rows[:, -1] / chip.ticks).astype(np.int64),
        flash=flash,
        ram=ram,
        call_stack=int(raw[-1]),
    )


def _check_fit(microcontroller: str, memory: tuple[int, int], model: IntegerModel) -> None:
    """Refuse a student that is too large for a microcontroller of little memory, or for its numbers."""
    flash, ram = memory
    if any(layer.is_conv for layer in model.layers) or model.is_image:
        raise MisfitError(f"{microcontroller}: C has no convolutions for AVR. Take a student of vectors")
    if model.input_origin is not None and model.requantization == "float32":
        raise MisfitError(
            f"{microcontroller}: it has no double of 64 bits for the origin of the observations. Export with "
            "requantization='fixed'"
        )
    needed = plan_arena(lay_out(model))[1] + _STACK + 8 * sum(len(layer.weight) for layer in model.layers)
    needed += Memory(model).window_bytes if model.history > 1 else 0
    if model.nbytes + _CODE > flash or needed > ram:
        raise MisfitError(
            f"{microcontroller}: it has {flash} bytes of flash and {ram} of RAM. The student needs about "
            f"{model.nbytes + _CODE} and {needed}"
        )


def _build(folder: Path, build: Path, chip: Microcontroller, cflags: Sequence[str], name: str) -> Path:
    (build / "device.c").write_text(rename(read_template("device.c"), name), encoding="utf-8")
    compiler = [f"{chip.tools}gcc", *chip.flags.split(), "-std=c99"]
    # the harness calls no library function: those in the program are called by the policy, and counted as its flash
    harness = [*compiler, "-O1", "-fno-tree-loop-distribute-patterns", "-I", str(folder), "-c"]
    run_compiler([*harness, build / "device.c", "-o", build / "device.o"])
    run_compiler([*compiler, *cflags, "-c", folder / f"{name}.c", "-o", build / "policy.o"])
    linker = [*compiler]
    if chip.origin is not None:
        script = read_template("device.ld").replace("ORIGIN_ADDRESS", hex(chip.origin))
        (build / "device.ld").write_text(script, encoding="utf-8")
        linker += ["-nostartfiles", "-Wl,--build-id=none", "-T", str(build / "device.ld")]
    if chip.is_avr:
        (build / "simavr.c").write_text(read_template("simavr.c"), encoding="utf-8")
        run_compiler([*find_compiler(), "-O2", build / "simavr.c", "-o", build / "simavr", "-lsimavr"])
    try:
        run_compiler([*linker, build / "device.o", build / "policy.o", "-o", build / "program.elf"])
    except RuntimeError as error:
        if "is not within region" not in str(error):
            raise
        raise MisfitError("The linker finds no room for the student, its observation and the harness") from error
    return build / "program.elf"


def _memory(build: Path, chip: Microcontroller) -> tuple[int, int]:
    """Bytes of flash and static RAM of the policy and of what it calls: the program without the harness."""

    def sizes(name: str) -> tuple[int, ...]:
        done = subprocess.run([f"{chip.tools}size", build / name], capture_output=True, text=True, check=True)
        return tuple(map(int, done.stdout.splitlines()[1].split()[:3]))  # text, data, bss

    program, harness = sizes("program.elf"), sizes("device.o")
    flash, ram = (sum(program[i : i + 2]) - sum(harness[i : i + 2]) for i in (0, 1))
    return flash, ram


def _n_frames(header: Path) -> int:
    """The number of frames in an observation that a C header was written for; 1 for vectors."""
    frames = re.search(r"_N_FRAMES (\d+)", header.read_text(encoding="utf-8"))
    return 1 if frames is None else int(frames[1])
