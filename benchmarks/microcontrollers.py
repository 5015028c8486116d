"""
What a student costs on a microcontroller, and whether it computes the same bits there: on real observations, under emulation.

    python benchmarks/microcontrollers.py STUDENT.npz [STUDENT.npz ...] --observations 100 --mhz 100

Plays each student's environment, exports its C in both requantization modes, and runs it on emulated processors: Cortex-M4 and
M33 (with FPU), M3 and M0+, two of RISC-V, and the AVR of an Arduino Uno. Prints the Markdown table of docs/boards.md: outputs
that differ from `IntegerModel`; bytes of flash, of RAM (beside the frames of an image) and of call stack; least, median and
most instructions (AVR: clock cycles) for an action; those for a multiply-accumulate; the clock; and
milliseconds at this clock, if every instruction took one cycle. The clock is `--mhz`, and 16 MHz for AVR. For Xtensa, which is
only compiled, the bytes of flash are those of the policy.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from command_line import make_parser
from tables import table_head

from sb3_qpd import IntegerModel
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.evaluation.benchmark import clock_of, counted_on
from sb3_qpd.export.c.emulator import MICROCONTROLLERS, MisfitError, emulate, missing_tools
from sb3_qpd.export.c.exporter import export_c
from sb3_qpd.integer import REQUANTIZATIONS

COLUMNS = (
    *("student", "processor", "requantization", "outputs that differ", "flash", "over its numbers", "RAM", "call stack"),
    *("counted", "least", "median", "most", "per MAC", "MHz", "ms"),
)
XTENSA = "xtensa-lx106-elf-"


def real_observations(model: IntegerModel, n: int) -> np.ndarray:
    """Let the student play 2,000 steps, and take evenly spaced observations of them."""
    env = EnvRecipe.from_json(model.metadata["env"]).make_vec_env(1, seed=3_000_000)
    observation, seen = env.reset(), []
    for _ in range(2000):
        seen.append(observation.copy())
        observation, *_ = env.step(model.predict(observation, deterministic=False)[0])
    env.close()
    return np.concatenate(seen)[np.linspace(0, len(seen) - 1, n).astype(int)]


def row(path: Path, model: IntegerModel, observations: np.ndarray, microcontroller: str, mhz: float) -> list[str]:
    frames = int(np.prod(model.observation_shape)) if model.is_image else 0
    with tempfile.TemporaryDirectory() as folder:
        export_c(model, Path(folder))
        try:
            seen = emulate(folder, model, observations, microcontroller)
        except MisfitError as error:
            return [*_start(path, model, microcontroller), str(error), *["-"] * 11]
    n, differ = seen.instructions, int((seen.outputs != model.accumulators(observations)).sum())
    numbers = (differ, seen.flash, seen.flash - model.nbytes, seen.ram - frames, seen.call_stack)
    clock = clock_of(microcontroller, mhz)
    texts = [*_start(path, model, microcontroller), *(f"{x:,}" for x in numbers), counted_on(microcontroller)]
    texts += [f"{x:,}" for x in (int(n.min()), int(np.median(n)), int(n.max()))]
    return [*texts, f"{np.median(n) / model.macs:.2f}", f"{clock:g}", f"{seen.milliseconds(clock):.3g}"]


def _start(path: Path, model: IntegerModel, processor: str) -> list[str]:
    """The first cells of a row."""
    return [path.parent.name if path.stem == "student" else path.stem, processor, model.requantization]


def row_of_xtensa(path: Path, model: IntegerModel) -> list[str]:
    """The ESP8266's processor, for which Debian has a compiler: code, constants and the layers' RAM."""
    with tempfile.TemporaryDirectory() as folder:
        export_c(model, Path(folder))
        command = [f"{XTENSA}gcc", "-std=c99", "-O2", "-mlongcalls", "-c", "policy.c", "-o", "policy.o"]
        subprocess.run(command, cwd=folder, check=True)
        done = subprocess.run([f"{XTENSA}size", "policy.o"], cwd=folder, capture_output=True, text=True, check=True)
    text, data, bss = map(int, done.stdout.splitlines()[1].split()[:3])
    frames = int(np.prod(model.observation_shape)) if model.is_image else 0
    sizes = [f"{text + data:,}", f"{text + data - model.nbytes:,}", f"{data + bss - frames:,}"]
    return [*_start(path, model, "xtensa lx106"), "compiled only", *sizes, *["-"] * 8]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("students", type=Path, nargs="+", help="files that IntegerModel.save or `sb3-qpd compress` wrote")
    parser.add_argument("--observations", type=int, default=100)
    parser.add_argument("--mhz", type=float, default=100.0)
    args = parser.parse_args()
    print(table_head(COLUMNS))
    for path in args.students:
        model = IntegerModel.load(path)
        observations = real_observations(model, args.observations)
        for microcontroller in MICROCONTROLLERS:
            if problem := missing_tools(microcontroller):
                raise SystemExit(problem)
            for model.requantization in REQUANTIZATIONS:
                print("| " + " | ".join(row(path, model, observations, microcontroller, args.mhz)) + " |", flush=True)
        if shutil.which(f"{XTENSA}gcc"):
            for model.requantization in REQUANTIZATIONS:
                print("| " + " | ".join(row_of_xtensa(path, model)) + " |", flush=True)


if __name__ == "__main__":
    main()
