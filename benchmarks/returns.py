"""
Do the exported files play as the integer model does, step for step? In the real environment, whole episodes.

    python benchmarks/returns.py TEACHER=STUDENT.zip ... --episodes 100 --out results.jsonl

The integer model, ONNX Runtime and compiled C each play the same episodes by themselves: deterministic in float32
requantization, deterministic in fixed point, and, where actions are discrete, sampled, C with the random numbers that the
integer model gets. Prints a Markdown table: returns that differ, and whether every observation and every action of every step
was the same (a checksum of all of them).
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from command_line import make_parser
from tables import add_rows, table_head

from sb3_qpd import IntegerModel, QPDDistiller, evaluate, export_c, export_onnx, load_teacher
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.export.c.runtime import CPolicy
from sb3_qpd.export.onnx.runtime import OnnxPolicy

# observations, and 32 random bits for each or nothing, to actions
Act = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
COLUMNS = "student, actions, player, episodes, steps, mean return, returns that differ, every step the same"


class Recorded:
    """
    Plays as ``act``, and keeps a checksum of all observations and actions.

    :param act: function from observations and random bits to actions
    :param seed: seed of the random bits
    """

    def __init__(self, act: Act, seed: int = 0) -> None:
        self._act, self._rng = act, np.random.default_rng(seed)
        self.n_steps, self.checksum = 0, hashlib.sha256()

    def predict(self, observations: np.ndarray, *, deterministic: bool = True) -> tuple[np.ndarray, None]:
        bits = None if deterministic else self._rng.integers(0, 2**32, len(observations), np.uint64)
        actions = self._act(observations, bits)
        self.n_steps += len(observations)
        self.checksum.update(np.ascontiguousarray(observations).tobytes())
        self.checksum.update(np.ascontiguousarray(actions).tobytes())
        return actions, None


def contests(model: IntegerModel, folder: Path) -> Iterator[tuple[str, bool, dict[str, Act]]]:
    """The kinds of play: a name, whether actions are deterministic, and the players, the integer model first."""
    float32, fixed = (_exported(model, mode, folder / mode) for mode in ("float32", "fixed"))
    onnx = OnnxPolicy(folder / "float32" / "student.onnx")
    yield "deterministic", True, {**float32, "ONNX Runtime": lambda observations, _: onnx.run(observations)[0]}
    yield "deterministic, fixed point", True, fixed
    if not model.is_box:
        yield "sampled", False, float32


def _exported(model: IntegerModel, requantization: str, folder: Path) -> dict[str, Act]:
    model.save(folder.with_suffix(".npz"))
    own = IntegerModel.load(folder.with_suffix(".npz"))
    own.requantization = requantization
    folder.mkdir()
    export_c(own, folder)
    if requantization == "float32":
        export_onnx(own, folder)
    c = CPolicy(folder)

    def integer_act(observations: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
        acc = own.accumulators(observations)
        return own.actions(acc) if bits is None else own.sample(acc, bits)

    return {
        "integer model": integer_act,
        "C": lambda observations, bits: c.actions(observations, bits).reshape(-1, *own.action_shape),
    }


def play(name: str, model: IntegerModel, recipe: Any, n_episodes: int, out: Path, folder: Path) -> None:
    for mode, deterministic, players in contests(model, folder):
        reference: list[Any] = []
        for player_name, act in players.items():
            player = Recorded(act)
            options = {"n_episodes": n_episodes, "seed": VALIDATION_SEED, "n_envs": 10 if recipe.is_atari else 32}
            returns = evaluate(player, recipe, deterministic=deterministic, **options).returns
            reference = reference or [returns, player.checksum.digest()]
            differ, same = int((returns != reference[0]).sum()), player.checksum.digest() == reference[1]
            verdict = ["", ""] if returns is reference[0] else [differ, "yes" if same else "NO"]
            cells = [name, mode, player_name, n_episodes, player.n_steps, f"{returns.mean():.2f}", *verdict]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
            row = {"student": name, "mode": mode, "player": player_name, "steps": player.n_steps, "returns": returns.tolist()}
            add_rows(out, {**row, "differ": differ, "every_step_same": same})


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("students", nargs="+", metavar="TEACHER=STUDENT.zip", help="the teacher says where it plays")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(table_head(COLUMNS.split(", ")))
    for spec in args.students:
        teacher, path = spec.split("=")
        recipe = load_teacher(teacher).recipe
        model = QPDDistiller.load(path, device="cpu").policy.to_integer()
        with tempfile.TemporaryDirectory() as folder:
            play(Path(path).stem, model, recipe, args.episodes, args.out, Path(folder))


if __name__ == "__main__":
    main()
