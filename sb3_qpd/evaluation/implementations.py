"""The forms of a student that can be run here, and the values that each of them computes step by step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_qpd.evaluation.limited import LimitedPolicy
from sb3_qpd.evaluation.own_exports import own_copy
from sb3_qpd.export.interpreters import NoInterpreter
from sb3_qpd.integer import IntegerModel
from sb3_qpd.student_folder import (
    C_FILE,
    JS_FILE,
    MICROPYTHON_FILE,
    ONNX_FILE,
    STUDENT_ZIP,
    TFLITE_FILE,
    c_files,
)
from sb3_qpd.students.layers import PixelGrid
from sb3_qpd.students.policies import QuantActorCriticPolicy

# the values that a policy computes, in order: input_grid, layer0, ..., accumulators, logits or mean, action
Steps = dict[str, np.ndarray]
Starter = Callable[[Callable[[], Any]], Any]  # makes a policy in this process or in one of its own
NEXT_STATE = "next_state"  # one more of them, where the student has a memory
MASKED_ACTION = "masked_action"  # one more of them, where the environment says which actions are allowed


class Implementation(NamedTuple):
    """
    One form of the student.

    :param name: name for the table
    :param file: file that it was made from
    :param steps: function from raw observations, action masks (or ``None``) and the state of a student with a memory (else
        ``None``) to the values that can be seen from outside. ``MASKED_ACTION`` is among them where there are masks and the
        form takes them
    :param is_exact: equality is promised
    """

    name: str
    file: str
    steps: Callable[[Any, np.ndarray | None, np.ndarray | None], Steps]
    is_exact: bool = True


class Folder(NamedTuple):
    """
    A student's folder, and what of it may run.

    :param path: the folder, which may come from elsewhere
    :param model: its integer model
    :param scratch: folder for copies of its exports
    :param trust_code: run exports that this version would not write so
    :param left_out: gets a line for each file that cannot be run here
    :param foreign: gets the name of each file that this version would not write so, and that is not run
    """

    path: Path
    model: IntegerModel
    scratch: Path
    trust_code: bool
    left_out: list[str]
    foreign: list[str]

    def file_to_run(self, name: str) -> tuple[Path, bool] | None:
        """
        The file that is run for an export of the folder, and whether it is a copy that this version wrote.

        :param name: name of the export
        :return: ``None`` where none is run
        """
        copy = own_copy(self.path / name, self.model, self.scratch / name.partition(".")[2])
        if copy is None and not self.trust_code:
            self.foreign.append(name)
            return None
        return (self.path / name, False) if copy is None else (copy, True)


def find_implementations(folder: Folder, policy: QuantActorCriticPolicy | None) -> Iterator[Implementation]:
    """
    The forms of the student that can be run. Requantization without float is exact in programs only, not in ONNX and TFLite.

    :param folder: folder of the student
    :param policy: the student as an SB3 policy
    """
    model = folder.model
    is_float = model.requantization == "float32"
    if policy is not None:
        yield Implementation("policy in eval mode", STUDENT_ZIP, partial(policy_steps, policy), is_float)
    files = [*_FINDERS.items(), *((file, _find_c) for file in c_files(folder.path))]
    for file, find in files:
        if not os.path.lexists(folder.path / file):
            continue
        try:
            if (found := folder.file_to_run(file)) is not None:
                path, is_own = found
                start = _in_this_process if is_own else partial(LimitedPolicy, file)
                yield from find(path, start, model, is_float)
        except (ImportError, NoCompiler, NoInterpreter) as error:
            folder.left_out.append(f"{file}: {' '.join(str(error).split())}")


def _in_this_process(make: Callable[[], Any]) -> Any:
    return make()


def _find_onnx(path: Path, start: Starter, model: IntegerModel, is_float: bool) -> Iterator[Implementation]:
    from sb3_qpd.export.onnx.runtime import OnnxPolicy

    content = path.read_bytes()
    is_qdq, is_plain = b"DequantizeLinear" in content, b"QuantizeLinear" not in content and b"MatMulInteger" not in content
    for optimize in (True, False):
        onnx_policy = start(partial(OnnxPolicy, path, optimize=optimize))
        name = "ONNX Runtime" if optimize else "ONNX, not optimized"
        is_exact = is_float and not is_plain and (optimize or not is_qdq)
        yield Implementation(name, path.name, _file_steps(onnx_policy, model, takes_masks=True), is_exact)


def _find_tflite(path: Path, start: Starter, model: IntegerModel, is_float: bool) -> Iterator[Implementation]:
    from sb3_qpd.export.tflite.runtime import TflitePolicy

    for name, xnnpack in (("TFLite, XNNPACK", True), ("TFLite, own kernels", False)):
        policy = start(partial(TflitePolicy, path, xnnpack=xnnpack))
        yield Implementation(name, path.name, _file_steps(policy, model, model.uses_masks), is_float and xnnpack)


def _find_c(path: Path, start: Starter, model: IntegerModel, is_float: bool) -> Iterator[Implementation]:
    find_c_compiler()
    c_policy = start(partial(compile_c, path, model=model))
    prefix = "" if path.name == C_FILE else f", {path.stem}"
    yield Implementation(f"C on this computer{prefix}", path.name, _c_steps(c_policy, model))


def _find_js(path: Path, start: Starter, model: IntegerModel, is_float: bool) -> Iterator[Implementation]:
    from sb3_qpd.export.js.runtime import JsPolicy

    yield Implementation(
        "JavaScript, node", path.name, _file_steps(start(partial(JsPolicy, path, model)), model, takes_masks=True)
    )


def _find_micropython(path: Path, start: Starter, model: IntegerModel, is_float: bool) -> Iterator[Implementation]:
    from sb3_qpd.export.micropython.runtime import MicroPythonPolicy

    policy = start(partial(MicroPythonPolicy, path, model))
    yield Implementation("MicroPython", path.name, _file_steps(policy, model, takes_masks=True))


_FINDERS = {
    ONNX_FILE: _find_onnx,
    TFLITE_FILE: _find_tflite,
    JS_FILE: _find_js,
    MICROPYTHON_FILE: _find_micropython,
}


class NoCompiler(RuntimeError):
    """No C compiler is installed."""


def find_c_compiler() -> list[str]:
    """
    The command of the C compiler.

    :raises NoCompiler: there is none
    """
    from sb3_qpd.export.c.runtime import find_compiler

    try:
        return find_compiler()
    except RuntimeError as error:
        raise NoCompiler(str(error)) from error


def compile_c(path: Path, cflags: Sequence[str] = ("-O3",), model: IntegerModel | None = None) -> Any:
    """
    C code that was exported, compiled for this computer.

    :param path: the C file
    :param cflags: options of the compiler
    :param model: the student that it was exported from
    :raises NoCompiler: there is no compiler
    :raises ValueError: the compiler refuses the code
    """
    from sb3_qpd.export.c.runtime import CPolicy

    compiler = find_c_compiler()
    try:
        return CPolicy(path.parent, cflags, path.stem, compiler, model)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def integer_steps(
    model: IntegerModel, observations: Any, masks: np.ndarray | None = None, state: np.ndarray | None = None
) -> Steps:
    """
    Every step of the integer model.

    :param model: the integer model
    :param observations: batch of raw observations
    :param masks: action masks, or ``None``
    :param state: see :meth:`~sb3_qpd.IntegerModel.trace`
    """
    *grids, acc = model.trace(observations, state)
    grids = [grid.astype(np.int16) for grid in grids]  # 0 to 255, or int8
    steps = dict(zip(model.step_names(), [*grids, acc], strict=True))
    steps |= {_output_name(model): acc.astype(np.float32) * model.layers[-1].multiplier, "action": model.actions(acc)}
    if state is not None:
        steps[NEXT_STATE] = model.remember(observations, (state,), actions=steps["action"])[1]
    return steps if masks is None else {**steps, MASKED_ACTION: model.actions(acc, action_masks=masks)}


@th.no_grad()
def policy_steps(
    policy: QuantActorCriticPolicy, observations: Any, masks: np.ndarray | None = None, state: np.ndarray | None = None
) -> Steps:
    """
    Every step of the SB3 policy in evaluation mode, recorded while it computes in torch.

    :param policy: the policy, which is put in eval mode
    :param observations: batch of raw observations
    :param masks: action masks, or ``None``
    :param state: see :meth:`~sb3_qpd.IntegerModel.trace`
    """
    policy.set_training_mode(False)
    with recorded_intermediates(policy) as steps:
        policy.extract_features(policy.window_of(observations, state))
    features, head = steps.pop("features"), policy.action_net
    if policy.arch.history_actions:  # no action has followed the newest observation
        steps["input_grid"] = steps["input_grid"].reshape(len(features), -1)[:, : -policy.head.n_outputs]
    name = "mean" if isinstance(policy.action_space, spaces.Box) else "logits"
    outputs = {"accumulators": head.accumulators(features), name: head(features)}
    steps |= {**{name: values.cpu().numpy() for name, values in outputs.items()}}
    before = None if state is None else (state,)
    steps["action"], after = policy.predict(observations, before, deterministic=True)
    if after is not None:
        steps[NEXT_STATE] = after[0]
    if masks is not None:
        steps[MASKED_ACTION] = policy.predict(observations, before, deterministic=True, action_masks=masks)[0]
    return steps


@contextmanager
def recorded_intermediates(policy: QuantActorCriticPolicy) -> Iterator[dict[str, Any]]:
    """
    The trunk's values in units of each step's grid, and its ``features`` as they are; filled when the policy is called.

    :param policy: the policy, in either mode
    """
    extractor, steps = policy.features_extractor, dict[str, Any]()

    def keep(name: str, grid_step: Any) -> Callable[..., None]:
        def hook(module: th.nn.Module, inputs: tuple[th.Tensor, ...], output: th.Tensor) -> None:
            steps[name] = output.detach() if grid_step is None else (output.detach() / grid_step).round().cpu().numpy()

        return hook

    watched: list[tuple[str, Any, Any]] = [("features", extractor, None)]
    for number, trunk in enumerate(extractor.trunks):
        grid, first = trunk.input_grid, len(watched) - number - 1
        watched.append((f"input_grid{number or ''}", grid, 1 if isinstance(grid, PixelGrid) else grid.scale()))
        watched += [(f"layer{i}", layer, layer.output_grid.scale()) for i, layer in enumerate(trunk.layers, first)]
    handles = [module.register_forward_hook(keep(name, step)) for name, module, step in watched]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def _output_name(model: IntegerModel) -> str:
    return "mean" if model.is_box else "logits"


def _file_steps(policy: Any, model: IntegerModel, takes_masks: bool = False) -> Callable[..., Steps]:
    def steps(observations: Any, masks: np.ndarray | None, state: np.ndarray | None) -> Steps:
        before = () if state is None else (state,)
        actions, outputs, *after = policy.run(observations, *([None, *before] if before else []))
        values = {**policy.trace(observations, *before), _output_name(model): outputs, "action": actions}
        values |= dict(zip([NEXT_STATE], after, strict=False))
        if takes_masks and masks is not None:
            values[MASKED_ACTION] = policy.run(observations, masks, *before)[0]
        return values

    return steps


def _c_steps(policy: Any, model: IntegerModel) -> Callable[..., Steps]:
    names = [*model.step_names(), *([NEXT_STATE] if model.history > 1 else [])]

    def steps(observations: Any, masks: np.ndarray | None, state: np.ndarray | None) -> Steps:
        values, actions = policy.trace(observations, model, *([] if state is None else [state]))
        found = {**dict(zip(names, values, strict=True)), "action": actions}
        if masks is not None and model.uses_masks:
            found[MASKED_ACTION] = policy.run(observations, masks, *([] if state is None else [state]))[0]
        return found

    return steps
