"""
That the files of a student are the same policy: real observations go through each of them, and every value that differs from
:class:`~sb3_qpd.integer.IntegerModel` is counted, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_qpd import integer
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.evaluation.own_episodes import Jitter, check_shape, replay, replay_masked
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import batch_size, pieces
from sb3_qpd.players import Player
from sb3_qpd.students.layers import PixelGrid
from sb3_qpd.students.policies import QuantActorCriticPolicy

# what a policy computes, in order: input_grid, layer0, ..., accumulators, logits or mean, action
Steps = dict[str, np.ndarray]
MASKED_ACTION = "masked_action"  # and this, where the environment says what is allowed


class Implementation(NamedTuple):
    """
    One form of the student.

    :param name: for the table
    :param steps: raw observations, and action masks or ``None``, to those of its values that can be seen from outside;
        ``MASKED_ACTION`` is among them where there are masks and it takes them
    :param is_exact: equality is promised
    """

    name: str
    steps: Callable[[Any, np.ndarray | None], Steps]
    is_exact: bool = True


@dataclass
class Difference:
    """
    How one implementation differs from the integer model in one step.

    :param implementation: its name
    :param step: of the computation
    :param is_exact: equality is promised
    """

    implementation: str
    step: str
    is_exact: bool
    n_values: int = 0
    n_differing: int = 0
    largest: float = 0.0
    n_rows: int = 0
    n_equal_rows: int = 0

    def add(self, expected: np.ndarray, got: np.ndarray) -> None:
        """Count a batch."""
        a, b = (np.reshape(values, (len(expected), -1)) for values in (expected, got))
        differs = a != b
        self.n_values += a.size
        self.n_rows += len(a)
        self.n_equal_rows += len(a)
        if differs.any():
            self.n_differing += int(differs.sum())
            self.n_equal_rows -= int(differs.any(1).sum())
            distance = np.abs(a.astype(np.float64) - b).max()  # NaN if any is
            self.largest = max(self.largest, np.inf if np.isnan(distance) else float(distance))

    @property
    def agreement(self) -> float:
        """Share of the observations that give the same in this step."""
        return self.n_equal_rows / max(self.n_rows, 1)


@dataclass
class Verification:
    """
    What was counted.

    :param n_observations: that went through every implementation
    :param n_masked: how many of them came with action masks; ``None``: the student was taught without
    :param rows: by implementation and step
    :param jitter: mean change of a Box action from step to step, by who plays
    :param has_other_copy: ``policy.py`` is another file than the integer model's own, which it should be a copy of
    """

    n_observations: int = 0
    n_masked: int | None = None
    rows: dict[tuple[str, str], Difference] = field(default_factory=dict)
    jitter: dict[str, float] = field(default_factory=dict)
    has_other_copy: bool = False

    @property
    def differences(self) -> list[Difference]:
        return list(self.rows.values())

    def add(
        self,
        model: IntegerModel,
        implementations: Iterable[Implementation],
        observations: Any,
        masks: np.ndarray | None = None,
    ) -> Steps:
        """
        Send a batch through everybody.

        :param model: what the others are compared with
        :param implementations: the others
        :param observations: raw
        :param masks: the actions that the environment allowed then
        :return: every step of the model
        """
        check_shape(model, observations)
        expected = integer_steps(model, observations, masks)
        self.n_observations += batch_size(observations)
        if model.uses_masks:
            self.n_masked = (self.n_masked or 0) + (0 if masks is None else len(masks))
        for implementation in implementations:
            got = implementation.steps(observations, masks)
            for step in (name for name in expected if name in got):
                row = self.rows.setdefault(
                    (implementation.name, step), Difference(implementation.name, step, implementation.is_exact)
                )
                row.add(expected[step], got[step])
        return expected

    @property
    def holds(self) -> bool:
        """Something was compared, and nothing differs where equality is promised."""
        differs = self.has_other_copy or any(row.n_differing for row in self.differences if row.is_exact)
        return self.n_observations > 0 and not differs

    def table(self) -> str:
        """As text, for people."""
        lines = [f"{self.n_observations} observations, compared with the integer model"]
        lines.append(f"{'':24} {'step':13} {'values':>12} {'differing':>10} {'largest':>10}  same action")
        for row in self.differences:
            agreement = f"  {row.agreement:.4%}" if row.step in ("action", MASKED_ACTION) else ""
            note = "" if row.is_exact else "  (not promised)"
            counts = f"{row.n_values:12} {row.n_differing:10} {row.largest:10.3g}"
            lines.append(f"{row.implementation:24} {row.step:13} {counts}{agreement}{note}")
        if self.has_other_copy:
            lines.append("policy.py is not this version's integer.py, of which it should be a copy: export it again")
        lines.append("all equal where equality is promised" if self.holds else "DIFFERENT where equality is promised")
        if self.n_masked is not None:
            lines.append(f"{self.n_masked} of the observations came with action masks")
            without = dict.fromkeys(name for name, _ in self.rows if (name, MASKED_ACTION) not in self.rows)
            lines += [f"{name}: masks were not compared" for name in without]
        lines += [f"mean |a_t - a_(t-1)| of {who}: {value:.4g}" for who, value in self.jitter.items()]
        return "\n".join(lines)


def verify(
    folder: Path,
    source: EnvRecipe | np.ndarray,
    n_observations: int = 1_000,
    *,
    policy: QuantActorCriticPolicy | None = None,
    teacher: Player | None = None,
    seed: int = VALIDATION_SEED,
) -> Verification:
    """
    Compare every form of a student with its integer model.

    :param folder: with ``student.npz`` and what was exported from it
    :param source: the environment that the student plays in, or observations, shape (n, *observation_shape)
    :param n_observations: how many
    :param policy: the SB3 policy
    :param teacher: its jitter is shown beside the student's
    :param seed: of the environment
    """
    model = load_model(folder)
    implementations = list(find_implementations(folder, model, policy))
    copy = folder / "policy.py"  # is compared as a file, and never run
    has_other_copy = copy.is_file() and copy.read_bytes() != Path(integer.__file__).read_bytes()
    if not implementations:
        raise ValueError(f"{folder} holds nothing to compare with student.npz: expected student.zip, or what was exported")
    result, jitter = Verification(has_other_copy=has_other_copy), Jitter()
    if isinstance(source, np.ndarray):
        for observations in pieces([source[:n_observations]]):
            result.add(model, implementations, observations)
        return result
    for observations, masks in pieces(replay_masked(model, source, n_observations, seed, jitter)):
        result.add(model, implementations, observations, masks)
    if model.is_box:
        result.jitter["the student"] = jitter.mean
        if teacher is not None:
            jitter = Jitter()
            for _ in replay(teacher, source, n_observations, seed, jitter):
                pass
            result.jitter["the teacher"] = jitter.mean
    return result


def load_model(folder: Path) -> IntegerModel:
    """The integer model of a folder: what the others are compared with."""
    path = folder / "student.npz"
    if not path.is_file():
        raise ValueError(f"{folder} holds no student.npz, which the others are compared with: sb3-qpd export writes one")
    return IntegerModel.load(path)


def find_implementations(folder: Path, model: IntegerModel, policy: QuantActorCriticPolicy | None) -> Iterator[Implementation]:
    """What in the folder can be run. Only C and numpy know the requantization without float; C and TFLite take no masks."""
    is_float = model.requantization == "float32"
    if policy is not None:
        yield Implementation("policy in eval mode", partial(policy_steps, policy), is_float)
    if (path := folder / "student.onnx").is_file():
        from sb3_qpd.export.onnx.runtime import OnnxPolicy

        for optimize in (True, False):
            onnx_policy = OnnxPolicy(path, optimize=optimize)
            is_exact = is_float and (onnx_policy.form == "operators" or optimize)
            name = "ONNX Runtime" if optimize else "ONNX, not optimized"
            yield Implementation(name, _file_steps(onnx_policy, model, takes_masks=True), is_exact)
    if (path := folder / "student.tflite").is_file():
        from sb3_qpd.export.tflite.runtime import TflitePolicy

        yield Implementation("TFLite, XNNPACK", _file_steps(TflitePolicy(path), model), is_float)
        yield Implementation("TFLite, own kernels", _file_steps(TflitePolicy(path, xnnpack=False), model), is_exact=False)
    if (c_policy := compile_c(folder)) is not None:
        yield Implementation("C on this computer", _c_steps(c_policy, model))


def compile_c(folder: Path, cflags: Sequence[str] = ("-O3",)) -> Any | None:
    """The C code of a folder, compiled for this computer; None: there is none."""
    if not (folder / "policy.c").is_file():
        return None
    try:
        return import_module("sb3_qpd.export.c.runtime").CPolicy(folder, cflags)
    except RuntimeError as error:  # no compiler, or it refuses
        raise ValueError(str(error)) from error


def integer_steps(model: IntegerModel, observations: Any, masks: np.ndarray | None = None) -> Steps:
    """Every step of the integer model."""
    *grids, acc = model.trace(observations)
    grids = [grid.astype(np.int16) for grid in grids]  # 0 to 255, or int8
    steps = dict(zip(model.step_names(), [*grids, acc], strict=True))
    steps |= {_output_name(model): acc.astype(np.float32) * model.layers[-1].multiplier, "action": model.actions(acc)}
    return steps if masks is None else {**steps, MASKED_ACTION: model.actions(acc, action_masks=masks)}


@th.no_grad()
def policy_steps(policy: QuantActorCriticPolicy, observations: Any, masks: np.ndarray | None = None) -> Steps:
    """Every step of the SB3 policy in evaluation mode, looked at while it predicts."""
    policy.set_training_mode(False)
    with recorded_intermediates(policy) as steps:
        actions, _ = policy.predict(observations, deterministic=True)
    features, head = steps.pop("features"), policy.action_net
    name = "mean" if isinstance(policy.action_space, spaces.Box) else "logits"
    outputs = {"accumulators": head.accumulators(features), name: head(features)}
    steps |= {**{name: values.cpu().numpy() for name, values in outputs.items()}, "action": actions}
    if masks is not None:
        steps[MASKED_ACTION] = policy.predict(observations, deterministic=True, action_masks=masks)[0]
    return steps


@contextmanager
def recorded_intermediates(policy: QuantActorCriticPolicy) -> Iterator[dict[str, Any]]:
    """
    What the trunk computes, in units of each step's grid, and its ``features`` as they are; filled when the policy is called.

    :param policy: in either mode
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


def _file_steps(policy: Any, model: IntegerModel, takes_masks: bool = False) -> Callable[[Any, np.ndarray | None], Steps]:
    def steps(observations: Any, masks: np.ndarray | None = None) -> Steps:
        actions, outputs = policy.run(observations)
        values = {**policy.trace(observations), _output_name(model): outputs, "action": actions}
        return {**values, MASKED_ACTION: policy.run(observations, masks)[0]} if takes_masks and masks is not None else values

    return steps


def _c_steps(policy: Any, model: IntegerModel) -> Callable[[Any, np.ndarray | None], Steps]:
    def steps(observations: Any, masks: np.ndarray | None = None) -> Steps:
        values, actions = policy.trace(observations, model)
        return {**dict(zip(model.step_names(), values, strict=True)), "action": actions}

    return steps
