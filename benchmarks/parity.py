"""
Are the policy, the integer model, the ONNX file and the C code one and the same? On real observations, value by value.

    python benchmarks/parity.py run TEACHER[=STUDENT.zip] ... --observations 1e5 --out results.jsonl
    python benchmarks/parity.py table results.jsonl

Takes a W8A8 student (without a zip: distills one for `--timesteps`) and brings it to the other widths by post-training
quantization. The W8A8 student plays (Atari: sampled actions), and what it sees goes through every width. Counted for each:
values (input grid, every layer, accumulators, logits or mean, action) in which the SB3 policy in evaluation mode, ONNX Runtime
with and without its graph optimizations, and compiled C differ from the integer model; C in fixed point from the integer model
in fixed point; actions that differ between fixed point and float32 (Box: by more than 1 % of the range); activations that the
training forward at full precision puts on another integer. `run` adds a line of JSON for each width and part of the
observations, and passes over those that are in the file already.
"""

import argparse
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch as th
from command_line import Commands
from tables import add_rows, read_rows, table_head

from sb3_qpd import QPDDistiller, Teacher, export_c, export_onnx, load_teacher
from sb3_qpd.evaluation.implementations import Folder, find_implementations, recorded_intermediates
from sb3_qpd.evaluation.own_episodes import Jitter, replay
from sb3_qpd.evaluation.verify import Difference, Verification
from sb3_qpd.observations import pieces
from sb3_qpd.students.policies import QuantActorCriticPolicy

BITS = ((8, 8), (4, 8), (4, 4), (2, 8))
SEED = 3_000_000  # of the environments; part k takes SEED + 1000 k
CALIBRATION_SEED, N_CALIBRATION = 2_900_000, 2_048


class Width:
    """
    A student at given bits in all its forms, with counts of the values that differ between them.

    :param policy: the student
    :param env: the environment, as metadata describe it
    :param folder: folder for the exported files
    """

    def __init__(self, policy: QuantActorCriticPolicy, env: dict[str, Any], folder: Path) -> None:
        self.policy, self.models, self.implementations = policy, {}, {}
        for mode in ("float32", "fixed"):
            model = self.models[mode] = policy.to_integer(env=env)
            model.requantization = mode
            (out := folder / mode).mkdir(parents=True)
            export_c(model, out)
            if mode == "float32":
                export_onnx(model, out)
            given = Folder(out, model, out / "copies", trust_code=False, left_out=[], foreign=[])
            self.implementations[mode] = [c for c in find_implementations(given, policy) if c.is_exact]
            if given.left_out or given.foreign:
                raise SystemExit(f"not compared: {', '.join(given.left_out + given.foreign)}")
        self.start()

    def start(self) -> None:
        """Set all counts to zero."""
        self.results = {mode: Verification() for mode in self.models}
        self.n_actions, self.training = 0, Difference("training forward", "layers", is_exact=False)

    def add(self, observations: np.ndarray) -> None:
        seen = {
            mode: self.results[mode].add(self.models[mode], self.implementations[mode], observations) for mode in self.models
        }
        a, b = (seen[mode]["action"].reshape(len(observations), -1) for mode in ("float32", "fixed"))
        model = self.models["float32"]
        allowed = 0.01 * (model.action_high - model.action_low) if model.is_box else 0
        self.n_actions += int((np.abs(a - b) > allowed).any(1).sum())
        trained = self._training_forward(observations)
        for name in (name for name in trained if name.startswith("layer")):
            self.training.add(seen["float32"][name], trained[name])

    @th.no_grad()
    def _training_forward(self, observations: np.ndarray) -> dict[str, np.ndarray]:
        self.policy.set_training_mode(True)
        with recorded_intermediates(self.policy) as steps:
            for trunk in self.policy.features_extractor.trunks:  # layer by layer, not as one function
                x = trunk.input_grid(trunk.input(th.as_tensor(observations).float()))
                for layer in trunk.layers:
                    x = layer(layer.shaped(x))
        self.policy.set_training_mode(False)
        return steps

    def row(self) -> dict[str, Any]:
        values: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for mode, result in self.results.items():
            for difference in result.differences:
                name = difference.implementation if mode == "float32" else f"{difference.implementation}, fixed"
                values[name][0] += difference.n_differing
                values[name][1] += difference.n_values
        return {
            "differing": values,
            "fixed_actions": self.n_actions,
            "moved": [self.training.n_differing, self.training.n_values, self.training.largest],
        }


def at_bits(policy: QuantActorCriticPolicy, bits: tuple[int, int], observations: np.ndarray) -> QuantActorCriticPolicy:
    """Quantize after training: the weights stay, the steps are calibrated anew."""
    arch = policy.arch.with_bits(*bits)
    if arch == policy.arch:
        return policy
    other = type(policy)(policy.observation_space, policy.action_space, lambda _: 0.0, arch)
    other.load_state_dict(policy.state_dict())
    other.calibrate(policy.obs_to_tensor(observations)[0])
    other.set_training_mode(False)
    return other


def make_student(teacher: Teacher, given: str, args: argparse.Namespace) -> tuple[str, QuantActorCriticPolicy]:
    """Load the student that was named, or distill one shortly and keep it for the next time."""
    path = Path(given or args.students / f"{teacher.name.replace('/', '-')}-{args.arch}.zip")
    if not path.is_file():
        student = QPDDistiller(teacher, student_arch=args.arch, seed=0, check_teacher=False).learn(args.timesteps)
        path.parent.mkdir(parents=True, exist_ok=True)
        student.save(path)
    return path.stem, QPDDistiller.load(path, device="cpu").policy


def run(args: argparse.Namespace) -> None:
    th.set_num_threads(1)
    done = {(row["student"], row["part"]) for row in read_rows(args.out, missing_ok=True)}
    for spec in args.teachers:
        teacher = load_teacher(spec.partition("=")[0])
        name, policy = make_student(teacher, spec.partition("=")[2], args)
        if parts := [part for part in split(args) if (name, part[0]) not in done]:
            with tempfile.TemporaryDirectory() as folder:
                measure(name, teacher, policy, parts, args.out, Path(folder))


def split(args: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """The numbers of the parts, each with its number of observations."""
    n, size = int(args.observations), int(args.part)
    return ((i, min(size, n - i * size)) for i in range(-(-n // size)))


def measure(
    name: str, teacher: Teacher, policy: QuantActorCriticPolicy, parts: list[tuple[int, int]], out: Path, folder: Path
) -> None:
    player, recipe = policy.to_integer(), teacher.recipe
    calibration = np.concatenate([x.copy() for x in replay(player, recipe, N_CALIBRATION, CALIBRATION_SEED, Jitter())])
    env = recipe.to_json()
    widths = {bits: Width(at_bits(policy, bits, calibration), env, folder / f"W{bits[0]}A{bits[1]}") for bits in BITS}
    versions = {"numpy": np.__version__, "torch": th.__version__, "onnxruntime": onnxruntime.__version__}
    versions |= {"cpu": f"{platform.machine()} {th.backends.cpu.get_cpu_capability()}"}
    for part, n in parts:
        start, seen = time.process_time(), 0
        for observations in pieces(replay(player, recipe, n, SEED + 1000 * part, Jitter())):
            for width in widths.values():
                width.add(observations)
            if (seen := seen + len(observations)) % 5120 < len(observations):
                print(f"{name} part {part}: {seen} of {n}, {time.process_time() - start:.0f} processor s", flush=True)
        of = {"student": name, "teacher": teacher.name, "part": part, "observations": seen, "versions": versions}
        add_rows(out, *({**of, "bits": bits, **width.row()} for bits, width in widths.items()))
        for width in widths.values():
            width.start()


def table(args: argparse.Namespace) -> None:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows(*args.results):
        groups[row["student"], "W{}A{}".format(*row["bits"])].append(row)
    columns = "student, bits, observations, values of each form, that differ, actions that differ in fixed point, "
    columns += "activations that the training forward moves"
    print(table_head(columns.split(", ")))
    for (student, bits), rows in groups.items():
        n = sum(row["observations"] for row in rows)
        forms = {form: np.sum([row["differing"][form] for row in rows], 0) for form in rows[0]["differing"]}
        worst = ", ".join(f"{form} {count:,}" for form, (count, _) in forms.items() if count) or "0 in each"
        values = " to ".join(f"{of:,}" for of in sorted({pick(of for _, of in forms.values()) for pick in (min, max)}))
        actions = sum(row["fixed_actions"] for row in rows)
        moved, of, _ = np.sum([row["moved"] for row in rows], 0)
        largest = max(row["moved"][2] for row in rows)
        print(
            f"| {student} | {bits} | {n:,} | {values} | {worst} | {actions} ({100 * actions / n:.4f} %) | "
            f"{int(moved):,} of {int(of):,} ({100 * moved / of:.5f} %), by at most {largest:.0f} |"
        )


def main() -> None:
    commands = Commands(__doc__, run, table)
    one = commands["run"]
    one.add_argument("teachers", nargs="+", metavar="TEACHER[=STUDENT.zip]")
    one.add_argument("--observations", type=float, default=1e5)
    one.add_argument("--part", type=float, default=25_000, help="observations that are measured in one go")
    one.add_argument("--arch", default="tiny", help="of a student that is distilled")
    one.add_argument("--timesteps", type=float, default=2e4)
    one.add_argument("--students", type=Path, default=Path("out/parity"), help="keeps the distilled students")
    commands.start()


if __name__ == "__main__":
    main()
