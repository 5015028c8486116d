"""
Every target by every kind of student: the same bits, equality that is not promised, or a refusal with its reason.

    python benchmarks/targets.py --write docs/targets.md

Each student is a small random policy. It is exported for each target, and acts on random observations in the target's runtime
on this computer. Its actions, also those under masks, are compared with the integer model's. A student with a memory plays
episodes, in which each runtime carries its own state.
"""

import argparse
import functools
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from target_students import KINDS, Kind, N, make_student, some_observations

from sb3_qpd import IntegerModel
from sb3_qpd.export import EXPORTERS, export
from sb3_qpd.export.c.emulator import MisfitError, emulate
from sb3_qpd.export.c.runtime import CPolicy
from sb3_qpd.export.c.vectors import some_masks
from sb3_qpd.export.interpreters import InterpretedPolicy, Interpreter
from sb3_qpd.export.js.runtime import JsPolicy, start_node
from sb3_qpd.export.micropython.runtime import MicroPythonPolicy, start_micropython
from sb3_qpd.export.onnx.runtime import OnnxPolicy
from sb3_qpd.export.tflite.runtime import TflitePolicy
from sb3_qpd.observations import take_rows

N_ENVS, N_SLOW = 8, 10  # environments of a student with a memory; images for MicroPython's file
MICROPYTHON = shutil.which("micropython") or sys.executable  # Python runs the same file


# -- runtimes: actions and the next state, for observations, masks and the state of a student with a memory ------------

State = np.ndarray | None
Act = Callable[[Any, np.ndarray | None, State], tuple[np.ndarray, State]]


@dataclass(frozen=True)
class Form:
    """
    A column of a table.

    :param name: its heading
    :param target: what is exported
    :param options: options of the export
    :param open: makes the function that acts, from the folder and the integer model
    :param is_promised: whether equality is promised
    :param n_images: number of observations of a student with images
    :param is_emulated: the program on an emulated board reads all observations at once: a student with a memory plays one
        episode, and no masks are given
    """

    name: str
    target: str
    options: dict[str, Any]
    open: Callable[[Path, IntegerModel], Act]
    is_promised: bool = True
    n_images: int = N
    is_emulated: bool = False


def in_numpy(folder: Path, model: IntegerModel) -> Act:
    """``policy.py``, imported as a device does."""
    spec = importlib.util.spec_from_file_location("policy", folder / "policy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["policy"] = module  # its dataclasses look for it
    spec.loader.exec_module(module)
    player = module.IntegerModel.load(folder / "student.npz")

    def act(observations: Any, masks: np.ndarray | None, state: State) -> tuple[np.ndarray, State]:
        before = None if state is None else (state,)
        actions, after = player.predict(observations, before, deterministic=True, action_masks=masks)
        return actions, None if after is None else after[0]

    return act


def run(player: Any, observations: Any, masks: np.ndarray | None, state: State) -> tuple[np.ndarray, State]:
    """The ``run`` of a policy in a runtime, which may know neither masks nor a state."""
    actions, _, *after = player.run(observations, *(() if masks is None and state is None else (masks, state)))
    return actions, after[0] if after else None


def in_onnx_runtime(folder: Path, model: IntegerModel) -> Act:
    """``student.onnx`` in ONNX Runtime."""
    return functools.partial(run, OnnxPolicy(folder / "student.onnx"))


def in_tflite(folder: Path, model: IntegerModel, xnnpack: bool = True) -> Act:
    """``student.tflite`` in LiteRT."""
    return functools.partial(run, TflitePolicy(folder / "student.tflite", xnnpack=xnnpack))


def in_c(folder: Path, model: IntegerModel, name: str = "policy") -> Act:
    """The C, compiled for this computer."""
    player = CPolicy(folder, name=name, model=model)

    def act(observations: Any, masks: np.ndarray | None, state: State) -> tuple[np.ndarray, State]:
        actions = player.actions(observations, None, masks, state).reshape(-1, *model.action_shape)
        return actions, None if state is None else player.trace(observations, model, state)[0][-1]

    return act


def library_of(folder: Path) -> tuple[Path, str]:
    """The sources of an Arduino library, and the name of its C."""
    (source,) = folder.glob("*/src/*.c")
    return source.parent, source.stem


def in_arduino(folder: Path, model: IntegerModel) -> Act:
    """The library's C, compiled for this computer."""
    return in_c(*library_of(folder)[:1], model, library_of(folder)[1])


def on_uno(folder: Path, model: IntegerModel) -> Act:
    """
    The C of the library, compiled for an Arduino Uno with the optimization of Arduino, under simavr. All observations are one
    episode.
    """
    sources, name = library_of(folder)

    def act(observations: Any, masks: np.ndarray | None, state: State) -> tuple[np.ndarray, State]:
        seen = emulate(sources, model, observations, "atmega328p", cflags=["-Os"], name=name)
        if model.is_box and model.requantization == "fixed":  # in units of the head
            return model.actions(seen.actions.astype(np.int64)), None
        return seen.actions.reshape(-1, *model.action_shape), None

    return act


@functools.cache
def interpreter_of(program: type[InterpretedPolicy]) -> Interpreter:
    """One process for all students."""
    return start_node() if program is JsPolicy else start_micropython(MICROPYTHON)


def interpreted(file: str, program: Callable[..., InterpretedPolicy], folder: Path, model: IntegerModel) -> Act:
    """A program of node or MicroPython."""
    return functools.partial(run, program(folder / file, model, interpreter_of(program)))  # type: ignore[arg-type]


in_node = functools.partial(interpreted, "policy.mjs", JsPolicy)
in_micropython = functools.partial(interpreted, "policy_micropython.py", MicroPythonPolicy)
TABLES = {
    "Computers and microcontrollers": [
        Form("numpy", "numpy", {}, in_numpy),
        Form("ONNX Runtime", "onnx", {}, in_onnx_runtime),
        Form("ONNX Runtime, `--qdq`", "onnx", {"form": "qdq"}, in_onnx_runtime),
        Form("C", "c", {}, in_c),
        Form("C, `--reentrant`", "c", {"reentrant": True}, in_c),
        Form("TFLite, XNNPACK", "tflite", {}, in_tflite),
        Form("TFLite, its own kernels", "tflite", {}, lambda *args: in_tflite(*args, xnnpack=False), is_promised=False),
    ],
    "Boards, browsers and engines": [
        Form("JavaScript", "js", {}, in_node),
        Form("MicroPython", "micropython", {}, in_micropython, n_images=N_SLOW),
        Form("Arduino library", "arduino", {}, in_arduino),
        Form("Arduino Uno", "arduino", {}, on_uno, is_emulated=True),
        Form("ONNX, `--names godot`", "onnx", {"names": "godot"}, in_onnx_runtime),
        Form("ONNX, `--float`", "onnx", {"form": "float"}, in_onnx_runtime, is_promised=False),
        Form(
            "ONNX, `--float --names godot`",
            "onnx",
            {"form": "float", "names": "godot"},
            in_onnx_runtime,
            is_promised=False,
        ),
    ],
}


# -- comparison -------------------------------------------------------------------------------------------------------


def count_differences(kind: Kind, model: IntegerModel, act: Act, n: int, with_masks: bool) -> int:
    """How many observations have another action than the integer model's, without masks and with masks."""
    observations = some_observations(kind, n)
    total = 0
    for given in (None, some_masks(model, n).astype(bool)) if with_masks else (None,):
        expected = model.predict(observations, deterministic=True, action_masks=given)[0]
        total += count_rows(act(observations, given, None)[0], expected)
    return total


def count_in_episodes(kind: Kind, model: IntegerModel, act: Act) -> int:
    """The same count over episodes: runtime and model carry states of their own, and zeros begin an episode."""
    drawn = some_observations(kind)
    steps = [take_rows(drawn, slice(row, row + N_ENVS)) for row in range(0, N, N_ENVS)]
    starts = np.random.default_rng(2).random((len(steps), N_ENVS)) < 0.2
    state, mine, total = model.remember(steps[0])[0], None, 0
    for observations, is_start in zip(steps, starts, strict=True):
        expected, mine = model.predict(observations, mine, is_start, deterministic=True)
        actions, after = act(observations, None, np.where(is_start[:, None, None], np.int8(0), state))
        assert after is not None
        state, total = after, total + count_rows(actions, expected)
    return total


def count_in_one_episode(kind: Kind, model: IntegerModel, act: Act) -> int:
    """The same count for a runtime that takes all observations of an episode at once."""
    observations, state, expected = some_observations(kind), None, []
    for row in range(N):
        action, state = model.predict(take_rows(observations, slice(row, row + 1)), state, deterministic=True)
        expected.append(action)
    return count_rows(act(observations, None, None)[0], np.concatenate(expected))


def count_rows(actions: np.ndarray, expected: np.ndarray) -> int:
    return int((actions.reshape(len(expected), -1) != expected.reshape(len(expected), -1)).any(1).sum())


def compare(kind: Kind, model: IntegerModel, form: Form, reasons: dict[str, int]) -> str:
    """A cell of a table."""
    n = form.n_images if model.has_images else N
    with tempfile.TemporaryDirectory() as folder:
        try:
            export(model, form.target, folder, **form.options)
        except ValueError as error:
            return f"refused ({numbers_of(split(str(error)), reasons)})"
        act = form.open(Path(folder), model)
        try:
            if model.history == 1:
                found = count_differences(kind, model, act, n, with_masks=model.uses_masks and not form.is_emulated)
            else:
                count = count_in_one_episode if form.is_emulated else count_in_episodes
                found = count(kind, model, act)
        except MisfitError as error:
            return f"does not fit ({numbers_of([str(error).replace('atmega328p: ', 'Arduino Uno: ')], reasons)})"
    if not form.is_promised:
        return f"not promised ({found})"
    return "equal" if not found else f"**{found} DIFFER**"


def split(reason: str) -> list[str]:
    """A sentence for each thing that a target lacks."""
    subject, verb, lacks = reason.partition(". Take the target")[0].partition(" does not support ")
    return [f"{subject}{verb}{lack}" for lack in lacks.split("; ")] if verb else [reason]


def numbers_of(sentences: Iterable[str], reasons: dict[str, int]) -> str:
    """Numbers of reasons in the list below the tables."""
    return ", ".join(map(str, sorted(reasons.setdefault(one.replace("|", "/"), len(reasons) + 1) for one in sentences)))


def tables() -> str:
    """Everything below the head of the page."""
    unknown = set(EXPORTERS) - {form.target for forms in TABLES.values() for form in forms}
    assert not unknown, f"Targets without a column: {unknown}"
    students, reasons, lines = [(kind, make_student(kind)) for kind in KINDS], dict[str, int](), list[str]()
    for title, forms in TABLES.items():
        lines += [f"## {title}", "", "| student | " + " | ".join(form.name for form in forms) + " |"]
        lines.append("|" + "---|" * (1 + len(forms)))
        for kind, model in students:
            cells = [compare(kind, model, form, reasons) for form in forms]
            lines.append("| " + " | ".join([kind.name, *cells]) + " |")
        lines.append("")
    return "\n".join([*lines, "## Reasons", "", *(f"{n}. {reason.rstrip('.')}." for reason, n in reasons.items())])


def head() -> str:
    runs_python = MICROPYTHON == sys.executable
    micropython = "Python, since MicroPython is not installed here" if runs_python else "MicroPython"
    return f"""# Every target by every kind of student

Written by `python benchmarks/targets.py --write docs/targets.md`. Each student is a small random policy. Its actions on {N}
random observations, and those under random masks where it takes masks, are compared with the integer model's.

- *equal*: not one of the actions differs, to the last bit.
- *not promised*: the runtime rounds in its own way; in brackets, how many actions differ.
- *refused*: the export says why, before a student is trained. The reasons are below the tables.
- *memory*: the student sees 4 observations. The {N} observations are steps of episodes in {N_ENVS} environments. An episode
  lasts 5 steps on average. Each form carries its own state.

All values on the way to an action are compared by `sb3-qpd verify` and by `tests/all_forms.py`.

What ran the files of the second table:

- JavaScript: node {subprocess.check_output(["node", "--version"], text=True).strip().lstrip("v")}.
- MicroPython: {micropython}, on {N_SLOW} observations of images.
- Arduino library: its C, compiled for this computer.
- Arduino Uno: the same C, compiled with `avr-gcc -Os` for an ATmega328P, under simavr. It is
  given no masks, and a student with a memory plays one episode of {N} steps.
- ONNX: ONNX Runtime. The largest logit is the action, as in the engine.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", type=Path, default=None, metavar="PATH", help="file for the page (default: print the tables)"
    )
    args = parser.parse_args()
    th.set_num_threads(1)
    text = tables()
    if args.write is None:
        print(text)
    else:
        args.write.write_text(f"{head()}{text}\n", encoding="utf-8")
    raise SystemExit("DIFFER" in text)


if __name__ == "__main__":
    main()
