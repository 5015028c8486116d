"""
Do the ONNX file and the numpy runtime give the same bits on another processor? There, under emulation, without this package.

    python benchmarks/processors.py STUDENT.npz [STUDENT.npz ...] --python "qemu-x86_64 -cpu Haswell .venv/bin/python"
    python benchmarks/processors.py STUDENT.npz [STUDENT.npz ...] \\
        --python "qemu-aarch64 -cpu cortex-a72 -L ROOT ROOT/usr/bin/python3.11" --path SITE --home /usr

Each student plays its environment here; what it saw, and every value that it computed, goes to the other interpreter, which
needs numpy and, for the ONNX file, onnxruntime. Prints a Markdown table of values that differ there. An aarch64 interpreter:
Debian's arm64 packages of python3.11-minimal and the libraries it needs, unpacked into ROOT; wheels of numpy and onnxruntime
for aarch64, unpacked into SITE; and a /proc/cpuinfo of such a processor in ROOT, without which onnxruntime does not start.
"""

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from command_line import make_parser

from sb3_qpd import IntegerModel, export_numpy, export_onnx
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.evaluation.own_episodes import Jitter, replay
from sb3_qpd.integer import REQUANTIZATIONS

SEED = 3_000_000

OTHER_SIDE = """
import json, platform, sys
import numpy as np
sys.path.insert(0, ".")
from policy import IntegerModel
known = np.load("known.npz")
observations = known["observations"]
def differ(expected, got):
    return [int((expected != np.asarray(got)).sum()), expected.size]
counts = {}
for mode in ("float32", "fixed"):
    model = IntegerModel.load("student.npz")
    model.requantization = mode
    acc = model.accumulators(observations)
    counts[f"numpy, {mode}"] = differ(known[f"accumulators_{mode}"], acc)
    counts[f"numpy, {mode}, actions"] = differ(known[f"actions_{mode}"], model.actions(acc))
import onnxruntime as ort
for name in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, name)
    session = ort.InferenceSession("student.onnx", options, providers=["CPUExecutionProvider"])
    actions, outputs = session.run(None, {"observation": observations})
    counts[name] = differ(known["outputs"], outputs)
    counts[f"{name}, actions"] = differ(known["actions_float32"], actions)
print(json.dumps([platform.machine(), np.__version__, ort.__version__, counts]))
"""


def prepare(path: Path, n: int, folder: Path) -> None:
    """Write what the other interpreter needs: the student, its exports, observations and expected values."""
    model = IntegerModel.load(path)
    recipe = EnvRecipe.from_json(model.metadata["env"])
    played = [step.copy() for step in replay(model, recipe, 20 * n, SEED, Jitter())]
    observations = np.concatenate(played)[::20]
    export_onnx(model, folder)
    export_numpy(model, folder)
    known = {"observations": observations if model.is_image else observations.astype(np.float32)}
    known["outputs"] = model.logits(known["observations"])
    for model.requantization in REQUANTIZATIONS:
        acc = model.accumulators(known["observations"])
        known |= {f"accumulators_{model.requantization}": acc, f"actions_{model.requantization}": model.actions(acc)}
    np.savez(folder / "known.npz", **known)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("students", type=Path, nargs="+", help="files that IntegerModel.save or `sb3-qpd compress` wrote")
    parser.add_argument("--python", required=True, help="command of the other interpreter")
    parser.add_argument("--path", default=None, help="its packages")
    parser.add_argument("--home", default=None, help="its standard library's prefix")
    parser.add_argument("--observations", type=int, default=32)
    args = parser.parse_args()
    given = {"PYTHONPATH": args.path, "PYTHONHOME": args.home, "OMP_NUM_THREADS": "1"}
    environment = {"PATH": os.environ["PATH"], **{name: value for name, value in given.items() if value}}
    print("| student | machine | there | values | that differ |\n|---|---|---|---|---|")
    for path in args.students:
        with tempfile.TemporaryDirectory() as folder:
            prepare(path, args.observations, Path(folder))
            command = [*shlex.split(args.python), "-c", OTHER_SIDE]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        machine, numpy_version, ort_version, counts = json.loads(done.stdout.splitlines()[-1])
        values = ", ".join(f"{name} {n} of {of}" for name, (n, of) in counts.items() if n) or "0 in each"
        total = sum(of for _, of in counts.values())
        versions = f"numpy {numpy_version}, onnxruntime {ort_version}"
        print(f"| {path.stem} | {machine} | {versions} | {total} | {values} |", flush=True)


if __name__ == "__main__":
    main()
