"""
Is the policy in evaluation mode the integer model, bit for bit? On real observations, layer by layer.

    python benchmarks/exactness.py TEACHER_FOLDER --timesteps 5e4 --observations 100000

Distills a student at W8A8, brings it to other bits by post-training quantization, plays the environment with sampled actions
of teacher and student in turn, and counts for each width: logits (or means) that differ between policy and integer model;
actions that differ between the two requantization modes (Box: by more than 1 % of the range); activations that the training
forward, at full transition, puts on another integer than evaluation mode, and by how much. Prints a Markdown table.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch as th

from sb3_qpd import QPDDistiller, Teacher, load_teacher
from sb3_qpd.policies import QuantActorCriticPolicy

BITS = ((8, 8), (4, 8), (4, 4), (2, 8))


def observations(teacher: Teacher, student: QPDDistiller, n: int, chunk: int = 1024) -> Iterator[np.ndarray]:
    """Raw observations in chunks; teacher and student take turns of 100 steps."""
    env = teacher.recipe.make_vec_env(16, seed=3_000_000, training=False)
    observation, batch, step, done = env.reset(), [], 0, 0
    while done < n:
        batch.append(observation.copy())
        player = teacher if step // 100 % 2 == 0 else student
        observation, *_ = env.step(player.predict(observation, deterministic=False)[0])
        step += 1
        if len(batch) * 16 >= chunk:
            yield np.concatenate(batch)
            done, batch = done + len(batch) * 16, []
    env.close()


class Count:
    """What differs at one width."""

    def __init__(self, policy: QuantActorCriticPolicy) -> None:
        self.policy, self.model, self.fixed = policy, policy.to_integer(), policy.to_integer()
        self.fixed.requantization = "fixed"
        self.n = self.outputs = self.wrong = self.actions = self.activations = self.moved = self.largest = 0

    def add(self, chunk: np.ndarray) -> None:
        tensor, _ = self.policy.obs_to_tensor(chunk)
        exact, trained = (self._grids(tensor, training) for training in (False, True))
        logits = self.model.logits(chunk)
        self.n += len(chunk)
        self.outputs += logits.size
        self.wrong += int((logits != exact[-1].numpy()).sum())
        self.actions += int(self._actions_differ(chunk).sum())
        for a, b in zip(exact[:-1], trained[:-1], strict=True):
            difference = (a - b).abs()
            self.activations += difference.numel()
            self.moved += int((difference > 0.5).sum())
            self.largest = max(self.largest, int(difference.max().round()))

    def _actions_differ(self, chunk: np.ndarray) -> np.ndarray:
        a, b = (model.predict(chunk, deterministic=True)[0] for model in (self.model, self.fixed))
        if not self.model.is_box:
            return a != b
        span = self.model.action_high - self.model.action_low
        return (np.abs(a - b).reshape(len(a), -1) > 0.01 * span).any(1)

    @th.no_grad()
    def _grids(self, tensor: th.Tensor, training: bool) -> list[th.Tensor]:
        """Each layer's output in units of its grid, and the head's output as it is."""
        seen: list[th.Tensor] = []
        layers = [*self.policy.features_extractor.layers, self.policy.action_net]
        scales = [None if layer.output_grid is None else layer.output_grid.scale() for layer in layers]
        hooks = [
            layer.register_forward_hook(lambda _m, _i, out, s=s: seen.append(out if s is None else out / s))
            for layer, s in zip(layers, scales, strict=True)
        ]
        self.policy.set_training_mode(training)
        self.policy.actor_and_value(tensor)
        self.policy.set_training_mode(False)
        for hook in hooks:
            hook.remove()
        return seen

    def row(self, name: str, bits: tuple[int, int]) -> str:
        moved = f"{self.moved} of {self.activations} ({100 * self.moved / max(1, self.activations):.5f} %)"
        return (
            f"| {name} | W{bits[0]}A{bits[1]} | {self.n} | {self.wrong} of {self.outputs} | "
            f"{self.actions} ({100 * self.actions / self.n:.4f} %) | {moved}, by at most {self.largest} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="+")
    parser.add_argument("--arch", default="tiny")
    parser.add_argument("--timesteps", type=float, default=5e4)
    parser.add_argument("--observations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    columns = "teacher, bits, observations, outputs that differ, actions that differ in fixed point, "
    columns += "activations that the training forward moves"
    print("| " + " | ".join(columns.split(", ")) + " |\n" + 6 * "|---" + "|")
    for folder in args.teachers:
        teacher = load_teacher(folder)
        student = QPDDistiller(teacher, student_arch=args.arch, seed=args.seed, check_teacher=False).learn(args.timesteps)
        counts = {
            bits: Count(student.post_training_quantize(*bits).policy if bits != (8, 8) else student.policy) for bits in BITS
        }
        for chunk in observations(teacher, student, args.observations):
            for count in counts.values():
                count.add(chunk)
        for bits, count in counts.items():
            print(count.row(teacher.name, bits), flush=True)


if __name__ == "__main__":
    main()
