"""
All forms of a student are one policy: the SB3 policy, the integer model, its file, C, ONNX Runtime, TFLite, JavaScript and
MicroPython, or a refusal that says why. As a program it compares thousands of random students and counts the forms:

    python tests/all_forms.py --n 2000 --seed 0 --workers 2
"""

import argparse
import functools
import multiprocessing
import re
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from random_students import RandomStudent, draw
from students import assert_same_bits

from sb3_qpd import IntegerModel, export_c, export_js, export_micropython, export_onnx, export_tflite
from sb3_qpd.export.c.runtime import CPolicy, find_compiler, run_compiler
from sb3_qpd.export.interpreters import InterpretedPolicy, Interpreter, NoInterpreter
from sb3_qpd.export.js.runtime import JsPolicy, start_node
from sb3_qpd.export.micropython.runtime import MicroPythonPolicy, start_micropython
from sb3_qpd.export.onnx.runtime import OnnxPolicy
from sb3_qpd.export.tflite.runtime import TflitePolicy
from sb3_qpd.export.value_head import add_value_head, values_of
from sb3_qpd.integer import IntegerLayer
from sb3_qpd.observations import take_rows

FLAGS = {"-O3": ["-O3"], "-O0": ["-O0"], "native": ["-O3", "-march=native", "-ffp-contract=fast"]}
SANITIZED = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror"]
MODES = ("float32", "fixed")
N_SLOW = 12  # observations of a form that takes long


def compare(student: RandomStudent, folder: Path, share: float = 1.0) -> Counter[str]:
    """
    An ``AssertionError`` where a form of the student is another policy than its integer model.

    :param student: whose model has float32 requantization
    :param folder: for files
    :param share: of the compilations of C; each student has others
    :return: how many times each form was equal, or refused
    """
    with np.errstate(over="ignore", divide="raise", invalid="raise"):  # infinite logits are allowed, NaN never
        checks = {
            "policy": _check_policy,
            "npz": _check_npz,
            "ONNX": _check_onnx,
            "TFLite": _check_tflite,
            "JS": _check_js,
            "MicroPython": _check_micropython,
        }
        counts = Counter(f"{name}: {check(student, folder)}" for name, check in checks.items())
        for i, (mode, flags) in enumerate((mode, flags) for mode in MODES for flags in (*FLAGS, "sanitized")):
            if np.random.default_rng((student.seed, i)).random() < share:
                counts[f"C {mode} {flags}: {_check_c(student, folder, mode, flags)}"] += 1
        _check_nan(student)
    return counts


def _equal(got: np.ndarray, expected: np.ndarray, what: str) -> None:
    np.testing.assert_array_equal(got, expected, err_msg=what)


def _steps(student: RandomStudent, model: IntegerModel) -> dict[str, np.ndarray]:
    return dict(zip(model.step_names(), model.trace(student.observations), strict=True))


def _expected(student: RandomStudent, model: IntegerModel) -> tuple[np.ndarray, np.ndarray]:
    """Actions and outputs."""
    return model.predict(student.observations, deterministic=True)[0], model.logits(student.observations)


def _takes_channels_last(student: RandomStudent) -> bool:
    """Every second one that could."""
    return student.seed % 2 == 1 and any(part.kind == "image" for part in student.model.parts)


# -- each form --------------------------------------------------------------------------------------------------------


@th.no_grad()
def _check_policy(student: RandomStudent, folder: Path) -> str:
    policy = student.policy
    if policy is None:
        return "none"
    actions, outputs = _expected(student, student.model)
    got = policy.actor_and_value(policy.obs_to_tensor(student.observations)[0])[0].numpy()
    assert_same_bits(got, outputs)
    _equal(policy.predict(student.observations, deterministic=True)[0], actions, "actions of the policy")
    if student.masks is not None:
        given: Any = {"deterministic": True, "action_masks": student.masks}
        expected = student.model.predict(student.observations, **given)[0]
        _equal(policy.predict(student.observations, **given)[0], expected, "masked actions of the policy")
    return "equal"


def _check_npz(student: RandomStudent, folder: Path) -> str:
    for mode in MODES:
        model = replace(student.model, requantization=mode)
        model.save(folder / "student.npz")
        for got, expected in zip(
            _expected(student, IntegerModel.load(folder / "student.npz")), _expected(student, model), strict=True
        ):
            assert_same_bits(got, expected)
    return "equal"


def _check_onnx(student: RandomStudent, folder: Path) -> str:
    (path,) = export_onnx(student.model, folder, channels_last=_takes_channels_last(student))
    actions, outputs = _expected(student, student.model)
    steps = _steps(student, student.model)
    for optimize in (True, False):
        policy, name = OnnxPolicy(path, optimize=optimize), "ONNX Runtime, optimized" if optimize else "ONNX Runtime"
        for step, values in policy.trace(student.observations).items():
            _equal(values, steps[step], f"{step} of {name}")
        got_actions, got_outputs = policy.run(student.observations)
        _equal(got_outputs, outputs, f"outputs of {name}")
        _equal(got_actions, actions, f"actions of {name}")
        if student.masks is not None:
            expected = student.model.predict(student.observations, deterministic=True, action_masks=student.masks)[0]
            _equal(policy.run(student.observations, student.masks)[0], expected, f"masked actions of {name}")
    return "equal"


def _check_tflite(student: RandomStudent, folder: Path) -> str:
    model = student.model
    if refusals := _refused_by("tflite", model):
        _assert_refused(export_tflite, model, folder, refusals)
        return "refused"
    policy = TflitePolicy(export_tflite(model, folder, channels_last=_takes_channels_last(student))[0])
    actions, outputs = _expected(student, model)
    steps = _steps(student, model)
    for step, values in policy.trace(student.observations).items():
        _equal(values, steps[step], f"{step} of TFLite")
    got_actions, got_outputs = policy.run(student.observations)
    _equal(got_outputs, outputs, "outputs of TFLite")
    _equal(got_actions, actions, "actions of TFLite")
    if student.masks is not None:
        masked, _ = policy.run(student.observations, student.masks)
        _equal(masked, _predict(model, student.observations, student.masks), "masked actions of TFLite")
    return "equal"


@functools.cache
def _process(start: Callable[[], Interpreter]) -> Interpreter | None:
    """One process of an interpreter for all students."""
    try:
        return start()
    except NoInterpreter:
        return None


def _check_micropython(student: RandomStudent, folder: Path) -> str:
    process = _process(start_micropython)
    if process is None:
        return "no MicroPython"
    if student.seed % 3:
        return "left out"  # it takes longer than all others together
    mode = _mode(student)
    model = replace(student.model, requantization=mode)
    (path,) = export_micropython(model, folder)
    masks = None if student.masks is None else student.masks[:N_SLOW]
    student = replace(student, observations=take_rows(student.observations, slice(N_SLOW)), masks=masks)
    _check_interpreted(student, model, MicroPythonPolicy(path, model, process), f"MicroPython, {mode}")
    return "equal"


def _check_js(student: RandomStudent, folder: Path) -> str:
    node = _process(start_node)
    if node is None:
        return "no node"
    mode = _mode(student)
    model = replace(student.model, requantization=mode)
    (path,) = export_js(model, folder, channels_last=_takes_channels_last(student))
    _check_interpreted(student, model, JsPolicy(path, model, node), f"JavaScript, {mode}")
    return "equal"


def _mode(student: RandomStudent) -> str:
    """One of both: in turn with the order of channels."""
    return MODES[student.seed // 2 % 2]


def _check_interpreted(student: RandomStudent, model: IntegerModel, policy: InterpretedPolicy, name: str) -> None:
    """Every step, actions and outputs to the sign of a zero, masked and drawn actions."""
    observations, masks = student.observations, student.masks
    steps = policy.trace(observations)
    for step, expected in _steps(student, model).items():
        _equal(steps[step], expected, f"{step} of {name}")
    for got, expected in zip(policy.run(observations), _expected(student, model), strict=True):
        assert_same_bits(got, expected)
    for given in (None, masks) if masks is not None else (None,):
        _equal(policy.run(observations, given)[0], _predict(model, observations, given), f"masked actions of {name}")
        if model.is_box and model.action_std is None:
            continue
        random = _random_numbers(model, len(steps["accumulators"]), student.seed)
        model.set_random_seed(student.seed)
        drawn = model.predict(observations, action_masks=given)[0]
        assert_same_bits(policy.sample(observations, random, given), drawn)
    if not model.is_box:
        acc, ends = model.accumulators(observations), np.full((2, len(model.action_nvec)), [[0], [2**32 - 1]], np.uint64)
        bits = np.resize(ends, (len(acc), len(model.action_nvec)))
        _equal(policy.sample(observations, bits), model.sample(acc, bits), f"samples of {name}")


def _predict(model: IntegerModel, observations: Any, masks: np.ndarray | None) -> np.ndarray:
    return model.predict(observations, deterministic=True, action_masks=masks)[0]


def _random_numbers(model: IntegerModel, n: int, seed: int) -> np.ndarray:
    """What the seeded model draws its actions with."""
    rng = np.random.default_rng(seed)
    if model.is_box:
        return rng.standard_normal((n, len(model.layers[-1].bias)), np.float32)
    return rng.integers(0, 2**32, (n, len(model.action_nvec)), np.uint64)


def _check_c(student: RandomStudent, folder: Path, mode: str, flags: str) -> str:
    model = replace(student.model, requantization=mode, metadata={})
    if refusals := _refused_by("c", model):
        _assert_refused(export_c, model, folder, refusals)
        return "refused"
    channels = model.observation_shape[0] if model.is_image else 0
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    n_frames = divisors[student.seed % len(divisors)] if model.is_image else None
    if student.seed % 3 == 2 and student.policy is not None:
        add_value_head(model, student.policy)
    options = {"reentrant": student.seed % 3 != 1, "probabilities": student.seed % 3 == 0 and not model.is_box}
    export_c(model, folder, n_frames=n_frames, **options, with_value="value_head" in model.metadata)
    name = f"C, {mode}, {flags}"
    if flags == "sanitized":
        if not _has_sanitizers():
            return "no sanitizers"
        run_compiler([*find_compiler(), *SANITIZED, folder / "main.c", folder / "policy.c", "-o", folder / "main"])
        done = subprocess.run([folder / "main"], capture_output=True, text=True)
        assert not done.returncode and not done.stderr and done.stdout.startswith("0 of "), f"{name}: {done}"
        return "equal"
    _compare_c(student, model, CPolicy(folder, FLAGS[flags], model=model), name)
    return "equal"


def _compare_c(student: RandomStudent, model: IntegerModel, policy: CPolicy, name: str) -> None:
    observations = student.observations
    values, got_actions = policy.trace(observations, model)
    for got, (step, expected) in zip(values, _steps(student, model).items(), strict=True):
        _equal(got, expected, f"{step} of {name}")
    acc = model.accumulators(observations)
    _equal(policy.outputs(observations), acc, f"outputs of {name}")
    assert_same_bits(got_actions.reshape(len(acc), *model.action_shape), model.actions(acc))
    assert_same_bits(policy.predict(observations, deterministic=True)[0], model.actions(acc))
    if "value_head" in model.metadata:
        _equal(policy.values(observations), values_of(model, observations), f"values of {name}")
    if not model.is_box:
        _compare_choices(student, model, policy, name)
    for wrong in _not_finite(student):
        _assert_raises(functools.partial(policy.outputs, wrong), "the observation holds NaN or infinity")


def _compare_choices(student: RandomStudent, model: IntegerModel, policy: CPolicy, name: str) -> None:
    """Discrete actions that are drawn, and with masks; and the weights that they are drawn with."""
    acc = model.accumulators(student.observations)
    bits = np.random.default_rng(student.seed).integers(0, 2**32, (len(acc), len(model.action_nvec)), np.uint64)
    bits[:2] = [[0], [2**32 - 1]]
    for masks in [None] if student.masks is None else [None, student.masks]:
        drawn = policy.actions(student.observations, bits, masks).reshape(len(acc), *model.action_shape)
        _equal(drawn, model.sample(acc, bits, masks), f"samples of {name}")
        best = policy.actions(student.observations, None, masks).reshape(len(acc), *model.action_shape)
        _equal(best, model.actions(acc, action_masks=masks), f"masked actions of {name}")
        if hasattr(policy.library, "harness_weights"):
            _equal(policy.weights(student.observations, masks), model.weights(acc, masks), f"weights of {name}")


@functools.cache
def _has_sanitizers() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "main.c").write_text("int main(void) { return 0; }\n")
        try:
            run_compiler([*find_compiler(), *SANITIZED, f"{folder}/main.c", "-o", f"{folder}/main"])
        except RuntimeError:
            return False
    return True


def _check_nan(student: RandomStudent) -> None:
    """The integer model refuses what is no number, wherever an observation holds floats."""
    for wrong in _not_finite(student):
        _assert_raises(functools.partial(student.model.predict, wrong), "The observation holds (nan|-?inf) in feature")


def _not_finite(student: RandomStudent) -> Iterator[Any]:
    """Observations with NaN or infinity in each part that holds floats."""
    for part in student.model.parts:
        if part.kind not in ("vector", "float_image"):
            continue
        for number in (np.nan, -np.inf):
            wrong: Any = student.observations if part.key is None else student.observations[part.key]
            wrong = wrong.astype(np.float32)
            wrong.reshape(-1)[-1] = number
            yield wrong if part.key is None else {**student.observations, part.key: wrong}


# -- refusals ---------------------------------------------------------------------------------------------------------


def _refused_by(target: str, model: IntegerModel) -> list[str]:
    """Why a target refuses a model, as patterns of its message; none: it has to take it."""
    hidden, head = model.layers[:-1], model.layers[-1]
    reasons = {"does not support .*in float64 with an offset": target == "tflite" and model.input_origin is not None}
    if target == "c":
        reasons["A sum in layer .* could reach .*, which does not fit int32"] = _largest_sum_in_c(model) >= 2**31
    else:
        limits = [layer.multiplier for layer in hidden]
        numbers = [
            head.multiplier,
            *(x for x in (model.input_multiplier, model.action_low, model.action_high) if x is not None),
        ]
        reasons |= {
            "does not support .*weights of . bits": any(layer.weight_bits not in (4, 8) for layer in model.layers),
            "does not support .*activations of . bits": any(layer.activation_bits != 8 for layer in hidden),
            "XNNPACK takes multipliers": any((m < 2.0**-32).any() or (m >= 256).any() for m in limits),
            "XNNPACK takes products": any((_sums(one) * one.multiplier.astype(float)).max() >= 2**31 for one in hidden),
            "TFLite takes denormal numbers for zero": any(((x != 0) & (np.abs(x) < 2.0**-126)).any() for x in numbers),
            "TFLite takes input multipliers up to": any(
                (np.abs(x) > 2.0**96).any() for x in numbers[1:2] if not model.is_image
            ),
            "head's accumulators could reach": _sums(head).max() > 2**24,
        }
    return [pattern for pattern, is_true in reasons.items() if is_true]


def _sums(layer: IntegerLayer, shift: int = 0) -> np.ndarray:
    """The largest of each channel."""
    weight = layer.weight.reshape(len(layer.weight), -1).astype(np.int64)
    return 255 * np.abs(weight).sum(1) + np.abs(layer.bias - shift * weight.sum(1))


def _largest_sum_in_c(model: IntegerModel) -> int:
    """C takes grids of vectors and of images of floats 128 higher, and that off the biases of a trunk's first layer."""
    starts = np.cumsum((0, *model.branches[:-1]))
    firsts = [(model.layers[start], parts[0].kind) for start, parts in zip(starts, model.trunks, strict=True)]
    return max(int(_sums(layer, 0 if kind == "image" else 128).max()) for layer, kind in firsts)


def _assert_refused(export: Any, model: IntegerModel, folder: Path, patterns: list[str]) -> None:
    _assert_raises(lambda: export(model, folder), "|".join(patterns))


def _assert_raises(call: Any, pattern: str) -> None:
    try:
        call()
    except ValueError as error:
        assert re.search(pattern, str(error)), f"Expected a ValueError of '{pattern}', got '{error}'"
    else:
        raise AssertionError(f"Expected a ValueError of '{pattern}'")


# -- as a program -----------------------------------------------------------------------------------------------------


def compare_seed(seed: int, share: float = 1.0) -> tuple[Counter[str], str]:
    """What was counted, and what went wrong."""
    text = f"seed {seed}"
    try:
        student = draw(seed)
        text = str(student)
        with tempfile.TemporaryDirectory() as folder:
            return compare(student, Path(folder), share), ""
    except Exception:
        return Counter(), f"{text}\n{traceback.format_exc()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000, help="students")
    parser.add_argument("--seed", type=int, default=0, help="of the first one; the others follow")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--share", type=float, default=1.0, help="of the compilations of C")
    args = parser.parse_args()
    th.set_num_threads(1)
    counts, n_wrong, start = Counter[str](), 0, time.monotonic()
    with multiprocessing.Pool(args.workers, maxtasksperchild=50) as pool:  # compiled libraries stay mapped
        seeds = range(args.seed, args.seed + args.n)
        for i, (counted, wrong) in enumerate(pool.imap_unordered(functools.partial(compare_seed, share=args.share), seeds), 1):
            counts += counted
            if wrong:
                n_wrong += 1
                print(wrong, flush=True)
            if i % 100 == 0 or i == args.n:
                print(f"{i} students in {time.monotonic() - start:.0f} s, {n_wrong} differ", flush=True)
    print("\n".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    print(f"seeds {args.seed} to {args.seed + args.n - 1}: {n_wrong} of {args.n} students differ")
    raise SystemExit(n_wrong > 0)


if __name__ == "__main__":
    main()
