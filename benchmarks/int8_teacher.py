"""
The teacher itself after training in 8 bits: what its students are to be compared with where size alone counts.

    python benchmarks/int8_teacher.py TEACHER_FOLDER ... --episodes 100 --out results.jsonl

Weights of every linear and convolutional layer of its actor are int8: symmetric, with a step for each output channel. Their
inputs have 8 bits: a step and a zero point for the tensor, from the range seen in the teacher's own episodes. torch's fake
quantization computes what an int8 runtime rounds. Biases and all else stay float.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from command_line import make_parser
from tables import add_rows
from torch import nn

from sb3_qpd import Teacher, compare, evaluate, load_teacher
from sb3_qpd.evaluation.episodes import TEST_SEED, VALIDATION_SEED
from sb3_qpd.players import ObservationRecorder

N_CALIBRATION = 2_000


def layers_of(teacher: Teacher) -> list[nn.Module]:
    return [module for module in teacher.policy.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@contextmanager
def watching(layers: list[nn.Module]) -> Iterator[dict[nn.Module, tuple[float, float]]]:
    """Record the range of the inputs of each layer that runs, 0 included."""
    ranges: dict[nn.Module, tuple[float, float]] = {}

    def look(layer: nn.Module, inputs: tuple[th.Tensor, ...]) -> None:
        low, high = ranges.get(layer, (0.0, 0.0))
        ranges[layer] = (min(low, float(inputs[0].min())), max(high, float(inputs[0].max())))

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    yield ranges
    for handle in handles:
        handle.remove()


def quantize(teacher: Teacher, observations: Any) -> None:
    """
    Quantize a teacher in place: the weights now, the inputs of its layers whenever it is called.

    :param teacher: teacher that is changed
    :param observations: raw observations for the ranges, shape (n, *observation_shape)
    """
    layers: list[Any] = layers_of(teacher)
    with watching(layers) as ranges:
        for part in np.array_split(observations, max(1, len(observations) // 128)):
            teacher(part)
    for layer in layers:
        scale = layer.weight.detach().flatten(1).abs().amax(1).clamp_min(1e-12) / 127
        zeros = th.zeros(len(scale), dtype=th.int32, device=scale.device)
        layer.weight.data = th.fake_quantize_per_channel_affine(layer.weight, scale, zeros, 0, -127, 127)
    for layer, (low, high) in ranges.items():
        step = max(high - low, 1e-12) / 255
        layer.register_forward_pre_hook(_rounded(step, round(-low / step)))


def _rounded(step: float, zero_point: int) -> Any:
    def hook(layer: nn.Module, inputs: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
        return (th.fake_quantize_per_tensor_affine(inputs[0], step, zero_point, 0, 255), *inputs[1:])

    return hook


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("teachers", nargs="+")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for path in args.teachers:
        teacher, in_float = load_teacher(path, device="cpu"), load_teacher(path, device="cpu")
        deterministic = teacher.recipe.deterministic
        recorder = ObservationRecorder(in_float, N_CALIBRATION)
        evaluate(recorder, teacher.recipe, n_episodes=8, deterministic=deterministic, seed=VALIDATION_SEED)
        quantize(teacher, recorder.observations)
        players = {"int8": teacher, "float": in_float, "random": "random"}
        played = {
            name: evaluate(player, teacher.recipe, n_episodes=args.episodes, deterministic=deterministic, seed=TEST_SEED)
            for name, player in players.items()
        }
        result = compare(played["int8"], played["float"], played["random"])
        row = {"teacher": teacher.name, "episodes": args.episodes, "margin": result.margin, "verdict": result.verdict}
        row |= {name: one.returns.tolist() for name, one in played.items()}
        if args.out is not None:
            add_rows(args.out, row)
        low, high = result.difference_ci95
        print(
            f"{teacher.name}: int8 {played['int8'].return_mean:.1f}, float {played['float'].return_mean:.1f}, difference "
            f"{low:+.1f} to {high:+.1f}, margin {result.margin:.1f}: {result.verdict} ({teacher.nbytes} bytes in float32)",
            flush=True,
        )


if __name__ == "__main__":
    main()
