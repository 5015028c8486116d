"""The files of a student: their names, what each is, and which of them are published."""

from __future__ import annotations

# name -> what it is, for the card; what else lies in the folder stays at home
FILES = {
    "student.npz": "the integer model: what a device runs, with numpy alone",
    "student.zip": "the student as an SB3 model; in evaluation mode it computes the same bits",
    "student.onnx": "for ONNX Runtime, the same bits",
    "student.tflite": "for TFLite",
    "policy.c": "the student in C99",
    "policy.h": "its interface",
    "policy_README.md": "how to use it",
    "main.c": "checks it against test_vectors.h",
    "test_vectors.h": "observations and what the student says of them",
    "policy.py": "runs student.npz with numpy alone",
    "report.json": "everything that was measured",
    "config.yml": "how it was distilled: for `sb3-qpd zoo train --algo qpd --conf-file config.yml`",
}
