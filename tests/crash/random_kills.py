"""
Kills a run at random times while it learns, and lets it go on until it is finished. One line of JSON says what came of it.

    python tests/crash/random_kills.py FOLDER --kills 20 [--teacher examples/teachers/ppo/LunarLander-v3_1] [--steps 20000]
        [--no-replay]

``--no-replay`` lets the environments begin new episodes each time, as for one that cannot be brought back to its state.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

import sb3_qpd.distillation.checkpoints as checkpoints
import sb3_qpd.distillation.distiller as distilling
from sb3_qpd import Checkpoint, QPDDistiller, evaluate
from sb3_qpd.distillation.checkpoint_files import newest_steps


class Progress(BaseCallback):
    """
    Tells another process how many steps were made.

    :param memory: shared memory
    """

    def __init__(self, memory: mmap.mmap) -> None:
        super().__init__()
        self.memory = memory

    def _on_step(self) -> bool:
        self.memory[:8] = struct.pack("q", self.num_timesteps)
        return True


def start(arguments: argparse.Namespace, teacher: Any, folder: Path, memory: mmap.mmap, is_kept: bool) -> int:
    """Learn in a forked process, which saves its student at the end."""
    if (child := os.fork()) != 0:
        return child
    sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        options = {"student_arch": "tiny", "device": "cpu", "seed": 0, "check_teacher": False, "buffer_size": arguments.ring}
        student = QPDDistiller(teacher, arguments.env, **options)
        checkpoint = Checkpoint(folder / "checkpoint", every=arguments.every, resume=True) if is_kept else None
        student.learn(arguments.steps, callback=Progress(memory), checkpoint=checkpoint)
        student.save(folder / "student.zip")
        th.save(student.policy.state_dict(), folder / "state.pth")
        os._exit(0)
    finally:
        os._exit(1)


def finish(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def run_with_kills(arguments: argparse.Namespace, teacher: Any, folder: Path, seconds: float, n_kills: int) -> dict[str, int]:
    """A run that is killed so often, each time after a random part of the time that a whole run takes."""
    memory, done = mmap.mmap(-1, 8), {"kills": 0, "repeated": 0}
    while True:
        memory[:8] = struct.pack("q", 0)
        child = start(arguments, teacher, folder, memory, is_kept=True)
        if done["kills"] >= n_kills:
            assert finish(child)
            return done
        time.sleep(random.uniform(0.05, 0.9) * seconds)
        os.kill(child, signal.SIGKILL)
        if finish(child):
            return done
        done["kills"] += 1
        steps = struct.unpack("q", memory[:8])[0]
        done["repeated"] = max(done["repeated"], steps - (newest_steps(folder / "checkpoint") or 0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--per-run", type=int, default=2)
    parser.add_argument("--teacher", default=None)
    parser.add_argument("--env", default=None)
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--every", type=int, default=64)
    parser.add_argument("--ring", type=int, default=600)
    parser.add_argument("--round", type=int, default=64)
    parser.add_argument("--episodes", type=int, default=0)
    parser.add_argument("--no-replay", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    distilling.ROLLOUT_STEPS = arguments.round
    if arguments.no_replay:
        checkpoints.MAX_ACTION_BYTES = 0
    teacher: Any = arguments.teacher
    if teacher is None:
        teacher, arguments.env = (
            PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, n_steps=64, batch_size=64),
            "CartPole-v1",
        )
    whole = arguments.folder / "whole"
    whole.mkdir(parents=True)
    begin = time.perf_counter()
    assert finish(start(arguments, teacher, whole, mmap.mmap(-1, 8), is_kept=False))
    seconds, expected = time.perf_counter() - begin, th.load(whole / "state.pth")
    result: dict[str, Any] = {"runs": 0, "kills": 0, "repeated": 0, "equal": 0, "returns": []}
    while result["kills"] < arguments.kills:
        folder = arguments.folder / "killed"
        folder.mkdir()
        done = run_with_kills(arguments, teacher, folder, seconds, min(arguments.per_run, arguments.kills - result["kills"]))
        if not done["kills"]:  # it was finished before
            shutil.rmtree(folder)
            continue
        found = th.load(folder / "state.pth")
        result["runs"] += 1
        result["kills"] += done["kills"]
        result["repeated"] = max(result["repeated"], done["repeated"])
        result["equal"] += all(th.equal(expected[name], found[name]) for name in expected)
        if arguments.episodes:
            result["returns"].append(score(folder, arguments))
        shutil.rmtree(folder)
    print(
        json.dumps({**result, "whole": score(whole, arguments) if arguments.episodes else None, "seconds": round(seconds, 1)})
    )


def score(folder: Path, arguments: argparse.Namespace) -> float:
    """Mean return of the integer student."""
    student = QPDDistiller.load(folder / "student.zip", device="cpu")
    env = arguments.env or Path(arguments.teacher).name.rpartition("_")[0]
    return round(evaluate(student.to_integer(env), env, n_episodes=arguments.episodes).return_mean, 2)


if __name__ == "__main__":
    main()
