"""
Every target by every kind of student: the same bits, equality that is not promised, or a refusal with its reason.

    python benchmarks/targets.py --write docs/targets.md

Each student is a small random policy. It is exported for each target, and acts on random observations in the target's runtime
on this computer. Everything that the runtime shows is compared with the integer model: outputs, actions, and actions under
masks.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_qpd import IntegerModel, QuantActorCriticPolicy
from sb3_qpd.export import EXPORTERS, export
from sb3_qpd.export.c.runtime import CPolicy
from sb3_qpd.export.c.vectors import some_masks
from sb3_qpd.export.onnx.runtime import OnnxPolicy
from sb3_qpd.export.tflite.runtime import TflitePolicy

N = 200  # observations
VECTOR, IMAGE, FLOATS = spaces.Box(-1, 1, (4,)), spaces.Box(0, 255, (4, 36, 36), np.uint8), spaces.Box(0, 1, (2, 36, 36))
JOINTS = spaces.Dict(gear=spaces.Discrete(4), joints=VECTOR)
CAMERAS = spaces.Dict(camera=IMAGE, depth=FLOATS, gear=spaces.Discrete(4), joints=VECTOR)
BOX, DISCRETE, SEVERAL = spaces.Box(-1, 1, (3,)), spaces.Discrete(3), spaces.MultiDiscrete([3, 2, 4])
UTM = np.array([5_400_000.25, 0, 0, -1.7e9])  # offsets that float32 cannot carry


@dataclass(frozen=True)
class Kind:
    """
    A kind of student.

    :param name: for the table
    :param observations: their space
    :param actions: their space
    :param bits: bits of weights and activations
    :param uses_masks: whether it takes action masks
    :param origin: offsets of the observations, taken off in float64
    :param requantization: see :class:`~sb3_qpd.integer.IntegerModel`
    """

    name: str
    observations: spaces.Space
    actions: spaces.Space
    bits: int = 8
    uses_masks: bool = False
    origin: np.ndarray | None = None
    requantization: str = "float32"


KINDS = [
    Kind("vector to Discrete", VECTOR, DISCRETE),
    Kind("vector to Box", VECTOR, BOX),
    Kind("vector to MultiDiscrete", VECTOR, SEVERAL),
    Kind("vector to MultiBinary", VECTOR, spaces.MultiBinary(3)),
    Kind("vector, action masks", VECTOR, DISCRETE, uses_masks=True),
    Kind("vector, action masks, MultiDiscrete", VECTOR, SEVERAL, uses_masks=True),
    Kind("vector with large offsets (float64)", VECTOR, DISCRETE, origin=UTM),
    Kind("vector, W4A8", VECTOR, DISCRETE, bits=4),
    Kind("vector, W3A3", VECTOR, DISCRETE, bits=3),
    Kind("vector, `fixed`", VECTOR, DISCRETE, requantization="fixed"),
    Kind("Discrete observations", spaces.Discrete(5), DISCRETE),
    Kind("MultiDiscrete observations", spaces.MultiDiscrete([3, 2, 4]), DISCRETE),
    Kind("MultiBinary observations", spaces.MultiBinary((2, 2)), DISCRETE),
    Kind("image of bytes", IMAGE, DISCRETE),
    Kind("image of bytes to Box, W4A8", IMAGE, BOX, bits=4),
    Kind("image of bytes, `fixed`", IMAGE, DISCRETE, requantization="fixed"),
    Kind("image of floats", FLOATS, DISCRETE),
    Kind("Dict of vector and index", JOINTS, DISCRETE),
    Kind("Dict, action masks", JOINTS, SEVERAL, uses_masks=True),
    Kind("Dict, `fixed`", JOINTS, BOX, requantization="fixed"),
    Kind("Dict with images of both kinds", CAMERAS, DISCRETE),
    Kind("Dict with images, `fixed`", CAMERAS, SEVERAL, requantization="fixed"),
]


def make_student(kind: Kind) -> IntegerModel:
    """A calibrated policy with random weights, in integers."""
    th.manual_seed(0)
    activation_bits = 8 if kind.bits == 4 else kind.bits
    options: Any = {"weight_bits": kind.bits, "activation_bits": activation_bits, "uses_masks": kind.uses_masks}
    policy = QuantActorCriticPolicy(kind.observations, kind.actions, lambda _: 0.0, "nano", normalized_image=True, **options)
    if kind.origin is not None:
        policy.features_extractor.set_origin(kind.origin)
    with th.no_grad():
        policy.action_net.weight.mul_(100)  # new policies have nearly uniform actions
    policy.calibrate(policy.obs_to_tensor(some_observations(kind, 64))[0])
    return replace(policy.to_integer(), requantization=kind.requantization)


def some_observations(kind: Kind, n: int = N) -> Any:
    """Random observations of the space."""
    space: Any = kind.observations
    space.seed(0)
    drawn = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([one[key] for one in drawn]) for key in space}
    return np.stack(drawn) if kind.origin is None else np.stack(drawn) + kind.origin


# -- runtimes: actions for observations, and actions under masks ------------------------------------------------------

Act = Callable[[Any, np.ndarray | None], np.ndarray]


@dataclass(frozen=True)
class Form:
    """
    A column of the table.

    :param name: its heading
    :param target: what is exported
    :param options: options of the export
    :param open: makes the function that acts, from the folder and the integer model
    :param is_promised: whether equality is promised
    """

    name: str
    target: str
    options: dict[str, Any]
    open: Callable[[Path, IntegerModel], Act]
    is_promised: bool = True


def in_numpy(folder: Path, model: IntegerModel) -> Act:
    """``policy.py``, imported as a device does."""
    spec = importlib.util.spec_from_file_location("policy", folder / "policy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["policy"] = module  # its dataclasses look for it
    spec.loader.exec_module(module)
    player = module.IntegerModel.load(folder / "student.npz")
    return lambda observations, masks: player.predict(observations, deterministic=True, action_masks=masks)[0]


def in_onnx_runtime(folder: Path, model: IntegerModel) -> Act:
    """``student.onnx`` in ONNX Runtime."""
    player = OnnxPolicy(folder / "student.onnx")
    return lambda observations, masks: player.run(observations, *([] if masks is None else [masks]))[0]


def in_tflite(folder: Path, model: IntegerModel, xnnpack: bool = True) -> Act:
    """``student.tflite`` in LiteRT."""
    player = TflitePolicy(folder / "student.tflite", xnnpack=xnnpack)
    return lambda observations, _: player.run(observations)[0]


def in_c(folder: Path, model: IntegerModel) -> Act:
    """The C, compiled for this computer."""
    player = CPolicy(folder, model=model)

    def act(observations: Any, masks: np.ndarray | None) -> np.ndarray:
        return player.actions(observations, None, masks).reshape(-1, *model.action_shape)

    return act


FORMS = [
    Form("numpy", "numpy", {}, in_numpy),
    Form("ONNX Runtime", "onnx", {}, in_onnx_runtime),
    Form("ONNX Runtime, `--qdq`", "onnx", {"form": "qdq"}, in_onnx_runtime),
    Form("C", "c", {}, in_c),
    Form("C, `--reentrant`", "c", {"reentrant": True}, in_c),
    Form("TFLite, XNNPACK", "tflite", {}, in_tflite),
    Form("TFLite, its own kernels", "tflite", {}, lambda *args: in_tflite(*args, xnnpack=False), is_promised=False),
]


def compare(kind: Kind, model: IntegerModel, form: Form, reasons: dict[str, int]) -> str:
    """A cell of the table."""
    observations, masks = some_observations(kind), some_masks(model, N).astype(bool) if model.uses_masks else None
    with tempfile.TemporaryDirectory() as folder:
        try:
            export(model, form.target, folder, **form.options)
        except ValueError as error:
            reason = str(error).partition(". Take the target")[0].replace("|", "/")
            return f"refused ({reasons.setdefault(reason, len(reasons) + 1)})"
        act = form.open(Path(folder), model)
        n_differing = 0
        for given in (None,) if masks is None else (None, masks):
            expected = model.predict(observations, deterministic=True, action_masks=given)[0]
            differs = act(observations, given).reshape(N, -1) != expected.reshape(N, -1)
            n_differing += int(differs.any(1).sum())
    if not form.is_promised:
        return f"not promised ({n_differing} differ)"
    return "equal" if not n_differing else f"**{n_differing} DIFFER**"


def table() -> str:
    """The page."""
    rows, reasons = [], dict[str, int]()
    for kind in KINDS:
        model = make_student(kind)
        rows.append([kind.name, *(compare(kind, model, form, reasons) for form in FORMS)])
    unknown = set(EXPORTERS) - {form.target for form in FORMS}
    assert not unknown, f"Targets without a column: {unknown}"
    lines = ["| student | " + " | ".join(form.name for form in FORMS) + " |", "|" + "---|" * (1 + len(FORMS))]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"{n}. {reason}." for reason, n in reasons.items())])


HEAD = f"""# Every target by every kind of student

Written by `python benchmarks/targets.py --write docs/targets.md`. Each student is a small random policy (`nano`). Its actions
on {N} random observations, and those under random masks where it takes masks, are compared with the integer model's.

- *equal*: not one of the actions differs, to the last bit.
- *not promised*: the runtime rounds in its own way; in brackets, how many actions differ.
- *refused*: the export says why, before a student is trained. The reasons are below the table.

All values on the way to an action are compared by `sb3-qpd verify` and by `tests/all_forms.py`.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", type=Path, default=None, metavar="PATH", help="file for the page (default: print the table)"
    )
    args = parser.parse_args()
    th.set_num_threads(1)
    text = table()
    if args.write is None:
        print(text)
    else:
        args.write.write_text(f"{HEAD}{text}\n", encoding="utf-8")
    raise SystemExit("DIFFER" in text)


if __name__ == "__main__":
    main()
