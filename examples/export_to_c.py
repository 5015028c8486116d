"""
A student as C99, compiled for this machine and compared with the integer model, bit for bit.

    python examples/export_to_c.py student.npz --out firmware
"""

import argparse
from pathlib import Path

import numpy as np

from sb3_qpd import IntegerModel, export_c
from sb3_qpd.export.c.runtime import CPolicy

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("student", help="student.npz of sb3-qpd compress or sb3-qpd zoo train")
parser.add_argument("--out", type=Path, default=Path("firmware"))
args = parser.parse_args()

student = IntegerModel.load(args.student)
args.out.mkdir(parents=True, exist_ok=True)
for file in export_c(student, args.out):
    print(file)
policy = CPolicy(args.out)  # needs gcc or clang
for observation in np.random.default_rng(0).normal(size=(100, *student.observation_shape)).astype(np.float32):
    expected, _ = student.predict(observation, deterministic=True)
    np.testing.assert_array_equal(policy.act(observation), expected)
print(f"{student.nbytes} bytes of weights; the C chose the same 100 actions")
