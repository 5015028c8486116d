"""
Random students on emulated microcontrollers: do they compute the integer model's outputs and actions there?

    PYTHONPATH=. python tests/boards.py --n 300 --seed 0 --microcontrollers cortex-m4f atmega328p

Students that the C export or a microcontroller refuses are drawn again. Prints the number of students on each.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
from random_students import RandomStudent, draw

from sb3_qpd.export import check_target, export_c
from sb3_qpd.export.c.emulator import MICROCONTROLLERS, MisfitError, emulate
from sb3_qpd.integer import REQUANTIZATIONS


def students_in_c(first_seed: int) -> Iterator[RandomStudent]:
    """Random students that C takes, in a random mode of requantization."""
    for seed in count(first_seed):
        student = draw(seed)
        student.model.requantization = REQUANTIZATIONS[seed % 2]
        try:
            check_target("c", student.model)
        except ValueError:
            continue
        yield student


def is_same_on(student: RandomStudent, microcontrollers: list[str], cflags: str = "-O2") -> list[str]:
    """
    Compare a student's outputs and actions on microcontrollers, with no tolerance.

    :param student: one that C takes
    :param microcontrollers: keys of ``MICROCONTROLLERS``
    :param cflags: options of the compiler
    :return: the microcontrollers that the student fits
    """
    model, compared = student.model, []
    with tempfile.TemporaryDirectory() as folder, np.errstate(over="ignore"):
        try:
            export_c(model, folder)
        except ValueError as error:  # an accumulator that C's 128 brings beyond int32
            assert "does not fit int32" in str(error)
            return []
        expected = model.accumulators(student.observations)
        actions = model.actions(expected)
        if model.is_box and model.requantization == "fixed":
            actions = np.clip(expected, *model.bounds_in_units())
        for name in microcontrollers:
            try:
                seen = emulate(Path(folder), model, student.observations, name, cflags=[cflags])
            except MisfitError:
                continue
            np.testing.assert_array_equal(seen.outputs, expected, f"{name}, {student}")
            np.testing.assert_array_equal(seen.actions.reshape(actions.shape), actions, f"{name}, {student}")
            compared.append(name)
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="students on the last microcontroller")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--microcontrollers", nargs="+", default=list(MICROCONTROLLERS), choices=MICROCONTROLLERS)
    parser.add_argument("--cflags", default="-O2")
    args = parser.parse_args()
    compared: Counter[str] = Counter()
    for student in students_in_c(args.seed):
        compared.update(is_same_on(student, args.microcontrollers, args.cflags))
        if min(compared[name] for name in args.microcontrollers) >= args.n:
            break
    print(", ".join(f"{name}: {n} students, no difference" for name, n in compared.items()))


if __name__ == "__main__":
    main()
