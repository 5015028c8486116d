"""
Labels of an Atari teacher by several runtimes: time of a batch, and what each costs in fidelity.

    python benchmarks/teacher_labels.py TEACHER_FOLDER --rounds 15 --threads 2

The same batches of frames from the teacher's own games go through torch in float32 (in its default layout and channels last,
which is how a teacher is asked), torch in bfloat16, ONNX Runtime in float32 and ONNX Runtime in int8 (its own static
quantization, steps by channel for the weights, calibrated on other frames of the same games). Medians of rounds measured in
turns; the divergence is that of the labels from torch's in float32. A runtime would be chosen for labelling only where its
processor has the instructions, and its divergence is small beside a good student's, which is 0.02 to 0.04 nats on Pong.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch as th
from command_line import make_parser
from onnx import TensorProto, helper, numpy_helper, save
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from sb3_qpd import Teacher, load_teacher
from sb3_qpd.distillation.losses import categorical_kl

Labeller = Callable[[np.ndarray], th.Tensor]
BATCH = 16


def frames(teacher: Teacher, n_batches: int, seed: int) -> list[np.ndarray]:
    """Batches from its games, ten steps apart, each of shape (16, *observation_shape), uint8."""
    env = teacher.recipe.make_vec_env(BATCH, seed)
    observations, kept = env.reset(), []
    for step in range(10 * n_batches):
        if step % 10 == 0:
            kept.append(observations.copy())
        observations, *_ = env.step(teacher.sample(teacher(observations)))
    env.close()
    return kept


def export(teacher: Teacher, path: Path) -> None:
    """The float32 network from pixels to logits and value, as ONNX: SB3's ``NatureCNN`` and its two heads."""
    nodes, tensors = [helper.make_node("Div", ["obs", "max"], ["x"])], [numpy_helper.from_array(np.float32(255), "max")]

    def add(kind: str, layer: nn.Module, source: str, **options: object) -> str:
        name = f"{kind}{len(nodes)}"
        for part in ("weight", "bias"):
            tensors.append(numpy_helper.from_array(getattr(layer, part).detach().numpy().copy(), f"{name}.{part}"))
        nodes.append(helper.make_node(kind, [source, f"{name}.weight", f"{name}.bias"], [name], **options))
        return name

    x = "x"
    for layer in [*teacher.policy.features_extractor.cnn, *teacher.policy.features_extractor.linear]:
        if isinstance(layer, nn.Conv2d):
            x = add("Conv", layer, x, strides=list(layer.stride))
        elif isinstance(layer, nn.Linear):
            x = add("Gemm", layer, x, transB=1)
        else:
            nodes.append(helper.make_node({nn.ReLU: "Relu", nn.Flatten: "Flatten"}[type(layer)], [x], [f"x{len(nodes)}"]))
            x = nodes[-1].output[0]
    outputs = [add("Gemm", head, x, transB=1) for head in (teacher.policy.action_net, teacher.policy.value_net)]
    obs = helper.make_tensor_value_info("obs", TensorProto.FLOAT, [None, *teacher.observation_space.shape])
    said = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    save(
        helper.make_model(
            helper.make_graph(nodes, "teacher", [obs], said, tensors), opset_imports=[helper.make_opsetid("", 17)]
        ),
        path,
    )


class Frames(CalibrationDataReader):
    def __init__(self, batches: list[np.ndarray]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"obs": batch.astype(np.float32)}


def by_onnx(path: Path, threads: int) -> Labeller:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: th.as_tensor(session.run(None, {"obs": batch.astype(np.float32)})[0])


def by_torch(path: str, channels_last: bool, dtype: th.dtype = th.float32) -> Labeller:
    teacher = load_teacher(path, device="cpu")
    teacher.policy.to(memory_format=th.channels_last if channels_last else th.contiguous_format)

    def label(batch: np.ndarray) -> th.Tensor:
        with th.autocast("cpu", dtype, enabled=dtype != th.float32):
            return teacher(batch).actor

    return label


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("teacher")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    teacher = load_teacher(args.teacher, device="cpu")
    batches, others = frames(teacher, 40, seed=1), frames(teacher, 20, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        in_float, in_int8 = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        export(teacher.to("cpu"), in_float)
        types = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
        # weights of 7 bits: 8 overflow the int16 of processors without VNNI
        quantize_static(
            in_float, in_int8, Frames(others), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True, **types
        )
        labellers: dict[str, Labeller] = {
            "torch float32, channels last": by_torch(args.teacher, True),
            "torch float32, default layout": by_torch(args.teacher, False),
            "torch bfloat16, channels last": by_torch(args.teacher, True, th.bfloat16),
            "ONNX Runtime float32": by_onnx(in_float, args.threads),
            "ONNX Runtime int8": by_onnx(in_int8, args.threads),
        }
    times: dict[str, list[float]] = {name: [] for name in labellers}
    said: dict[str, list[th.Tensor]] = {name: [] for name in labellers}
    for turn in range(args.rounds + 1):
        for name, label in labellers.items():
            start = time.perf_counter()
            said[name] = [label(batch).float() for batch in batches]
            if turn:
                times[name].append((time.perf_counter() - start) / len(batches) * 1e3)
    right = th.cat(said["torch float32, channels last"])
    print(f"{th.backends.cpu.get_cpu_capability()}, {args.threads} threads, {BATCH} frames a batch, {len(right)} frames\n")
    print("| labels by | ms a batch | KL, nats | same argmax |\n|---|---|---|---|")
    for name, parts in said.items():
        labels = th.cat(parts)
        kl, same = categorical_kl(labels, right).mean().item(), (labels.argmax(1) == right.argmax(1)).float().mean().item()
        print(f"| {name} | {np.median(times[name]):.2f} | {kl:.5f} | {100 * same:.1f} % |")


if __name__ == "__main__":
    main()
