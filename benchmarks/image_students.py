"""
What makes a small CNN learn a teacher of images quickly: learning rate, the pixel that counts as zero, widths, bits.

    python benchmarks/image_students.py TEACHER_FOLDER --updates 1500 \\
        --students "8-16-16/32 0.003 0" "8-16-16/32 0.003 87" "8-16-16/32 0.01 87" "16-32-24s2/32 0.003 87" \\
        "8-16-16/64 0.01 87 W4A8"

Labels frames once (a quarter of the games played by the teacher, the others by a student that learns a little), then trains
each student on the same frames: widths of the convolutions (s2: the third has a stride of 2) and of the dense layer, learning
rate, centre, and bits (float without; else the blend from float in the middle of the training). Prints the KL divergence to
the teacher and the share of equal argmax on frames held out.
"""

import time
from typing import Any

import numpy as np
import torch as th
from command_line import make_parser
from tables import table_head
from torch.nn import functional as F

from sb3_qpd import QPDDistiller, QuantActorCriticCnnPolicy, load_teacher
from sb3_qpd.distillation.buffers import DistillationSamples
from sb3_qpd.distillation.distiller import descend
from sb3_qpd.distillation.objective import distillation_loss
from sb3_qpd.distillation.schedules import CosineSchedule, stage_progress
from sb3_qpd.students.architectures import FLOAT_BITS, make_arch
from sb3_qpd.students.transitions import get_transition
from sb3_qpd.teachers.teacher import TeacherOutput

WARM_UP = 100
BATCH_SIZE = 128
BLEND = (0.3, 0.7)


def arch_of(text: str) -> dict[str, Any]:
    """Read ``8-16-16/32`` or ``16-32-24s2/32`` as the fields of a ``StudentArch``."""
    conv, units = text.split("/")
    channels, _, stride = conv.partition("s")
    c1, c2, c3 = (int(n) for n in channels.split("-"))
    return {"conv": ((c1, 8, 4), (c2, 4, 2), (c3, 3, int(stride or 1))), "conv_hidden": (int(units),)}


def labelled_frames(folder: str, n: int, seed: int) -> tuple[QPDDistiller, DistillationSamples]:
    """Collect labelled frames in a short run."""
    distiller = QPDDistiller(
        load_teacher(folder), buffer_size=n, gradient_steps=3 / BATCH_SIZE, check_teacher=False, seed=seed, transition="none"
    ).learn(n)
    assert distiller._buffer is not None
    return distiller, distiller._buffer.newest(n)


def rows_of(samples: DistillationSamples, rows: np.ndarray) -> DistillationSamples:
    """The samples of these rows, with pixels as floats."""
    targets = (None if t is None else t[rows] for t in samples.targets)
    return DistillationSamples(samples.observations[rows].float(), TeacherOutput(*targets))


def train(text: str, distiller: QPDDistiller, samples: DistillationSamples, updates: int, seed: int) -> str:
    """Train one student, and return its row of the table."""
    arch, rate, centre, *width = text.split()
    weights, activations = (int(bits) for bits in width[0][1:].split("A")) if width else (FLOAT_BITS, FLOAT_BITS)
    th.manual_seed(seed)
    rng = np.random.default_rng(seed)
    n = len(samples.observations)
    held_out = np.concatenate([np.arange(i, i + 400) for i in range(2000, n - 400, 4000)])
    kept = np.setdiff1d(np.arange(n), held_out)
    schedule = CosineSchedule(float(rate))
    policy = QuantActorCriticCnnPolicy(
        distiller.observation_space, distiller.action_space, schedule, make_arch(arch_of(arch), weights, activations)
    )
    policy.set_normalization(float(centre), 1.0)
    policy.set_value_scale(float(samples.targets.value.mean()), float(samples.targets.value.std()))
    policy.set_training_mode(True)
    start = time.process_time()
    for i in range(updates):
        policy.optimizer.param_groups[0]["lr"] = schedule(1 - i / updates) * min((i + 1) / WARM_UP, 1)
        batch = rows_of(samples, kept[rng.integers(0, len(kept), BATCH_SIZE)])
        if width and i == int(BLEND[0] * updates):
            policy.calibrate(rows_of(samples, kept[rng.integers(0, len(kept), 1024)]).observations)
            policy.set_training_mode(True)
        progress = stage_progress(i / updates, *BLEND) if width else 0.0
        policy.set_precision(get_transition("blend"), progress)
        loss, _ = distillation_loss(policy, batch, critic_coef=0.5)
        descend(policy.optimizer, loss, max_grad_norm=10.0)
    milliseconds = 1000 * (time.process_time() - start) / updates
    with th.no_grad():
        pieces = [policy.actor_and_value(rows_of(samples, rows).observations)[0] for rows in np.array_split(held_out, 20)]
    student, teacher = F.log_softmax(th.cat(pieces), 1), F.log_softmax(samples.targets.actor[held_out], 1)
    kl = (teacher.exp() * (teacher - student)).sum(1).mean()
    agreement = (student.argmax(1) == teacher.argmax(1)).float().mean()
    layers = [*policy.features_extractor.parameters(), *policy.action_net.parameters()]
    size = policy.to_integer().nbytes if width else 4 * sum(p.numel() for p in layers)
    bits = width[0] if width else "float"
    return f"| {arch} | {bits} | {size} | {rate} | {centre} | {kl:.4f} | {100 * agreement:.1f} % | {milliseconds:.0f} |"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("teacher")
    parser.add_argument("--students", nargs="+", default=["8-16-16/32 0.003 0", "8-16-16/32 0.003 87", "8-16-16/32 0.01 87"])
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--updates", type=int, default=1_500)
    parser.add_argument("--seed", type=int, default=100)
    args = parser.parse_args()
    th.set_num_threads(1)
    distiller, samples = labelled_frames(args.teacher, args.frames, args.seed)
    columns = ("student", "bits", "bytes", "learning rate", "centre", "KL, nats", "same argmax", "processor ms per update")
    print(table_head(columns), flush=True)
    for text in args.students:
        print(train(text, distiller, samples, args.updates, args.seed), flush=True)


if __name__ == "__main__":
    main()
