"""
A page in which a student balances CartPole while the visitor pushes the cart: one file, which opens without a server.

    python examples/browser/build.py                        # the student beside this script
    python examples/browser/build.py --student student.npz --teacher-bytes 18440 --out page.html
"""

import argparse
import re
import tempfile
from html import escape
from pathlib import Path

import numpy as np

from sb3_qpd import IntegerModel, export_js
from sb3_qpd.integer import pack

HERE = Path(__file__).resolve().parent
PUSH = 8  # newtons of the visitor's push
KINDS = {"weights": "weights, 4 and 8 bits each", "biases": "biases", "multipliers": "multipliers", "input": "input grid"}


def build(student: IntegerModel, teacher_bytes: int) -> str:
    """
    The page as HTML.

    :param student: a student of CartPole-v1
    :param teacher_bytes: bytes of its teacher's actor
    """
    with tempfile.TemporaryDirectory() as folder:
        policy = export_js(student, folder)[0].read_text(encoding="utf-8")
    values = {
        "BYTES": str(student.nbytes),
        "PARAMETERS": str(student.n_parameters),
        "TEACHER_BYTES": f"{teacher_bytes:,}",
        "PUSH": str(PUSH),
        "DUMP": dump(student),
        "KEY": "".join(f'<li class="{kind}">{escape(text)}</li>' for kind, text in KINDS.items()),
        "POLICY": as_object(policy),
        "PHYSICS": as_object((HERE / "cartpole.mjs").read_text(encoding="utf-8")),
        "SCRIPT": (HERE / "page.js").read_text(encoding="utf-8").strip(),
    }
    page = (HERE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], page)


def as_object(module: str) -> str:
    """
    A module as an expression, whose value is an object of its exports: a page that is opened as a file cannot import modules.

    :param module: text of an ES module without imports
    """
    names = re.findall(r"^export (?:const|function|class) (\w+)", module, re.MULTILINE)
    body = re.sub(r"^export ", "", module, flags=re.MULTILINE)
    return f"(() => {{\n{body}\nreturn {{ {', '.join(names)} }};\n}})()"


def dump(student: IntegerModel) -> str:
    """
    All bytes that a device holds, in hexadecimal, 16 in a line; each kind of number has its color.

    :param student: the student
    """
    numbers = [
        *(("weights", pack(layer.weight, layer.weight_bits)) for layer in student.layers),
        *(("biases", layer.bias) for layer in student.layers),
        *(("multipliers", layer.multiplier) for layer in student.layers),
        *(("input", values) for values in (student.input_multiplier, student.input_offset)),
    ]
    marked = [(kind, f"{byte:02x}") for kind, values in numbers for byte in np.asarray(values).tobytes()]
    assert len(marked) == student.nbytes
    lines = [marked[i : i + 16] for i in range(0, len(marked), 16)]
    return "\n".join(" ".join(f'<span class="{kind}">{text}</span>' for kind, text in line) for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, default=HERE / "student.npz", help="student.npz of a student of CartPole-v1")
    parser.add_argument("--teacher-bytes", type=int, default=18_440, help="bytes of the teacher's actor, for the text")
    parser.add_argument("--out", type=Path, default=HERE / "cartpole.html")
    args = parser.parse_args()
    args.out.write_text(build(IntegerModel.load(args.student), args.teacher_bytes), encoding="utf-8")
    print(args.out)
