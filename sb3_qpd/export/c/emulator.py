"""
The exported C on emulated microcontrollers: the same bits? How much flash and RAM, how many instructions for an action?

Instructions are counted, not cycles: wait states of the flash, and loads and branches that take longer, are not in them.
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

from sb3_qpd.export.c.runtime import run_compiler
from sb3_qpd.export.c.text import read_template, rename
from sb3_qpd.export.c.vectors import frames_of
from sb3_qpd.integer import IntegerModel

_SEMIHOSTING = "-nographic -monitor none -serial none -semihosting-config enable=on,target=native -icount shift=0 -kernel"


@dataclass(frozen=True)
class Microcontroller:
    """
    A processor, and the tools that build for it and emulate it.

    :param tools: prefix of the compiler and of ``size``
    :param flags: for compiler and linker
    :param emulator: command up to the program's name
    :param origin: address of its memory
    :param packages: Debian's names of all that
    """

    tools: str
    flags: str
    emulator: str
    origin: int
    packages: str


_ARM_PACKAGES = "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
MICROCONTROLLERS = {
    "cortex-m4f": Microcontroller(
        tools="arm-none-eabi-",
        flags="-mthumb -mcpu=cortex-m4 -mfpu=fpv4-sp-d16 -mfloat-abi=hard",
        emulator=f"qemu-system-arm -M mps2-an386 {_SEMIHOSTING}",
        origin=0,
        packages=_ARM_PACKAGES,
    ),
    "cortex-m3": Microcontroller(
        tools="arm-none-eabi-",
        flags="-mthumb -mcpu=cortex-m3",
        emulator=f"qemu-system-arm -M mps2-an385 {_SEMIHOSTING}",
        origin=0,
        packages=_ARM_PACKAGES,
    ),
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
    What came out.

    :param outputs: int32, shape (batch_size, n_out): the head's accumulators
    :param actions: shape (batch_size,) for discrete actions, else (batch_size, action_dim)
    :param instructions: for each action, to within 40 on Cortex-M; with images, taking in the newest frame included
    :param flash: bytes of code, constants and the library functions that they call
    :param ram: static bytes, a stack of frames included
    :param call_stack: bytes
    """

    outputs: np.ndarray
    actions: np.ndarray
    instructions: np.ndarray
    flash: int
    ram: int
    call_stack: int

    def milliseconds(self, mhz: float) -> float:
        """
        Time of the median action if every instruction took one cycle.

        :param mhz: clock of the processor
        """
        return float(np.median(self.instructions)) / (1000 * mhz)


def missing_tools(microcontroller: str) -> str:
    """What has to be installed to emulate it; nothing if all is there."""
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
    Build the C of a folder for a microcontroller and let it act.

    :param folder: that ``export_c`` wrote into
    :param model: the student: brings raw observations to the form that its C takes
    :param observations: raw, shape (batch_size, *observation_shape)
    :param microcontroller: a key of ``MICROCONTROLLERS``
    :param cflags: for the compiler
    :param name: see :func:`sb3_qpd.export.c.exporter.export_c`
    """
    if problem := missing_tools(microcontroller):
        raise RuntimeError(problem)
    chip = MICROCONTROLLERS[microcontroller]
    with tempfile.TemporaryDirectory() as build:
        program = _build(Path(folder).resolve(), Path(build), chip, cflags, name)
        _elements(model, observations, Path(folder, f"{name}.h")).tofile(Path(build, "observations.bin"))
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
    # a harness that calls no library function, so that what the program has of them is the policy's
    harness = [*compiler, "-O1", "-fno-tree-loop-distribute-patterns", "-I", str(folder), "-c"]
    run_compiler([*harness, build / "device.c", "-o", build / "device.o"])
    run_compiler([*compiler, *cflags, "-c", folder / f"{name}.c", "-o", build / "policy.o"])
    linker = [*compiler, "-nostartfiles", "-Wl,--build-id=none", "-T", str(build / "device.ld")]
    run_compiler([*linker, build / "device.o", build / "policy.o", "-o", build / "program.elf"])
    return build / "program.elf"


def _memory(build: Path, chip: Microcontroller) -> tuple[int, int]:
    """Flash and static RAM of the policy and what it calls: the program without the harness."""

    def sizes(name: str) -> tuple[int, ...]:
        done = subprocess.run([f"{chip.tools}size", build / name], capture_output=True, text=True, check=True)
        return tuple(map(int, done.stdout.splitlines()[1].split()[:3]))  # text, data, bss

    program, harness, policy = (sizes(name) for name in ("program.elf", "device.o", "policy.o"))
    return program[0] + program[1] - harness[0] - harness[1], policy[1] + policy[2]


def _elements(model: IntegerModel, observations: np.ndarray, header: Path) -> np.ndarray:
    """Observations as the C takes them."""
    if model.is_image:
        frames = re.search(r"_N_FRAMES (\d+)", header.read_text(encoding="utf-8"))
        assert frames is not None
        return np.ascontiguousarray(frames_of(observations, int(frames[1])))
    if model.parts[0].kind == "one_hot":
        return observations.reshape(len(observations), -1).astype(np.int32)
    if model.requantization == "fixed":
        return model.quantize_input(observations).astype(np.int8)
    return observations.reshape(len(observations), -1).astype(np.float32)
