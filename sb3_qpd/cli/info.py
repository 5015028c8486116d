"""``sb3-qpd info``: what a student or a teacher is."""

import argparse
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sb3_qpd.cli.arguments import STUDENT_SOURCE, TEACHER_SOURCE
from sb3_qpd.cli.errors import user_errors
from sb3_qpd.cli.sources import find_student, find_teacher
from sb3_qpd.student_folder import INTEGER_MODEL, OUTPUTS, STUDENT_ZIP, read_own_file
from sb3_qpd.text import every_text, plain

if TYPE_CHECKING:
    from sb3_qpd.integer import IntegerModel, ObservationPart
    from sb3_qpd.teachers.teacher import Teacher

MOST_FEATURES = 40  # rows of the table of ranges
LAYER_COLUMNS = ("layer", "kind", "weights", "bits", "output bits", "bytes", "MACs")

Line = tuple[str, str]


def add_info(commands: Any) -> None:
    """
    Add the command.

    :param commands: the subparsers of the program
    """
    parser = commands.add_parser(
        "info",
        help="what a student or a teacher is: layers, bits, ranges, bytes, environment, checksums",
        description="Print what a file or folder holds. Nothing is trained or played, and nothing in the file is executed.",
        examples=("info lunar", "info my_agent.zip"),
    )
    parser.set_defaults(run=info)
    parser.add_argument("model", metavar="FILE|DIR", help=f"a student: {STUDENT_SOURCE}; or a teacher: {TEACHER_SOURCE}")


def info(args: argparse.Namespace) -> int:
    """
    Print the description.

    :param args: arguments of the command
    :return: exit code
    """
    with user_errors("info"):
        path = _find_student(args.model)
        lines = _teacher_lines(args.model) if path is None else _student_lines(path)
    print(lines)
    return 0


def _find_student(text: str) -> Path | None:
    """The student's file. Any other file in a student's folder stands for ``student.npz``."""
    path = Path(text).expanduser()
    beside = path.parent / INTEGER_MODEL
    if path.is_file() and path.suffix not in (".zip", ".npz") and beside.is_file():
        return beside
    return find_student(text)


def _student_lines(path: Path) -> str:
    model = _load(path)
    rows = [("student", _name(path)), *_origin(model), *_interface(model), *_size(model)]
    parts = [_aligned(rows), _table(LAYER_COLUMNS, _layer_rows(model), n_texts=3)]
    if ranges := list(_range_rows(model)):
        parts.append(_table(("feature", "lowest", "highest", "step"), ranges))
    if path.name == INTEGER_MODEL:
        parts.append(_table(("file", "bytes", "SHA-256"), _file_rows(path.parent)))
    return "\n\n".join(parts)


def _load(path: Path) -> "IntegerModel":
    from sb3_qpd.integer import IntegerModel

    if path.suffix == ".npz":
        return IntegerModel.load(path)
    from sb3_qpd.distillation.student_zip import load_student
    from sb3_qpd.students.architectures import FLOAT_BITS

    student = load_student(path, device="cpu")
    if student.policy.arch.activation_bits == FLOAT_BITS:
        raise ValueError(f"{path} is a float student, which has no integers. Give {STUDENT_ZIP} or {INTEGER_MODEL} beside it")
    return student.to_integer()


def _name(path: Path) -> str:
    return f"{path}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _origin(model: "IntegerModel") -> list[Line]:
    """Teacher, environment and wrappers, as the file names them."""
    metadata = every_text(model.metadata, plain)
    env = metadata.get("env")
    settings = env if isinstance(env, dict) else {}
    more = ", ".join(
        f"{key} {value}" for key, value in settings.items() if key != "env_id" and value not in (None, {}, [], ())
    )
    wrappers = metadata.get("pipeline")
    names = [str(name) for name in wrappers] if isinstance(wrappers, list) else []
    return [
        ("teacher", f"{metadata.get('teacher') or 'not named'}, SHA-256 {metadata.get('teacher_checksum') or 'not named'}"),
        ("environment", f"{settings.get('env_id', 'not named')}{f' ({more})' if more else ''}"),
        ("wrappers", ", ".join(names) or "none that change observations"),
    ]


def _interface(model: "IntegerModel") -> list[Line]:
    masks = ", with action masks" if model.uses_masks else ""
    return [
        ("observation", "; ".join(map(_describe_part, model.parts))),
        ("action", f"{_describe_action(model)}{masks}"),
    ]


def _describe_part(part: "ObservationPart") -> str:
    shape = " x ".join(map(str, part.shape)) or "1"
    name = "" if part.key is None else f"{plain(part.key)}: "
    if part.kind == "one_hot":
        return f"{name}indices of {', '.join(map(str, part.nvec))} categories"
    return f"{name}{part.kind.replace('_', ' ')} of {shape}"


def _describe_action(model: "IntegerModel") -> str:
    if not model.is_box:
        return f"one of {' x '.join(map(str, model.action_nvec))}"
    assert model.action_low is not None and model.action_high is not None
    pairs = zip(model.action_low.ravel(), model.action_high.ravel(), strict=True)
    return "numbers in " + ", ".join(f"[{low:g}, {high:g}]" for low, high in pairs)


def _size(model: "IntegerModel") -> list[Line]:
    return [
        ("size", f"{model.nbytes:,} bytes, {model.n_parameters:,} parameters, {model.macs:,} multiply-accumulates an action"),
        ("memory in C", _memory(model)),
        ("arithmetic", "integers and fixed point" if model.requantization == "fixed" else "integers, rescaled in float32"),
    ]


def _memory(model: "IntegerModel") -> str:
    """The static memory that the C export plans, as its header names it."""
    from sb3_qpd.export import export_c

    with TemporaryDirectory() as folder:
        try:
            header = export_c(model, folder)[0].read_text()
        except ValueError as error:
            return f"no C: {error}"
    arena = int(re.findall(r"_ARENA_BYTES (\d+)", header)[0])
    frames = f", and {math.prod(model.observation_shape):,} bytes of frames" if model.is_image else ""
    return f"{arena:,} bytes of static RAM{frames}"


def _layer_rows(model: "IntegerModel") -> Iterator[Sequence[str]]:
    from sb3_qpd.integer_file import OPTIONAL_FIELDS

    grids = [getattr(model, name) for name in OPTIONAL_FIELDS]
    shapes = [part.shape for parts in model.trunks for part in parts[:1]]
    start = 0
    for shape, n_layers in zip(shapes, model.branches, strict=True):
        for number, layer in enumerate(model.layers[start : start + n_layers], start):
            shape = layer.output_shape(shape)
            kind = "convolution" if layer.is_conv else "fully connected"
            positions = math.prod(shape[1:]) if layer.is_conv else 1
            yield _row(str(number + 1), kind, layer, str(layer.activation_bits), positions)
        start += n_layers
    yield _row(str(len(model.layers)), "head", model.layers[-1], "32", 1)
    yield ("", "grids and bounds", "", "", "", f"{sum(grid.nbytes for grid in grids if grid is not None):,}", "")


def _row(number: str, kind: str, layer: Any, output_bits: str, positions: int) -> Sequence[str]:
    weights = " x ".join(map(str, layer.weight.shape))
    return (
        number,
        kind,
        weights,
        str(layer.weight_bits),
        output_bits,
        f"{layer.nbytes:,}",
        f"{layer.weight.size * positions:,}",
    )


def _range_rows(model: "IntegerModel") -> Iterator[Sequence[str]]:
    """The range of each feature that the input grid covers, and the step between two of its values."""
    from sb3_qpd.export.ranges import feature_ranges

    ranges = feature_ranges(model)
    for number, (low, high) in enumerate(ranges[:MOST_FEATURES]):
        yield str(number), f"{low:.6g}", f"{high:.6g}", f"{(high - low) / 255:.3g}"
    if len(ranges) > MOST_FEATURES:
        yield f"... {len(ranges) - MOST_FEATURES} more", "", "", ""


def _file_rows(folder: Path) -> Iterator[Sequence[str]]:
    for name in OUTPUTS:
        if (folder / name).is_file():
            content = read_own_file(folder / name)
            yield name, f"{len(content):,}", hashlib.sha256(content).hexdigest()


def _teacher_lines(text: str) -> str:
    from sb3_qpd.teachers.loading import load_teacher

    teacher = load_teacher(find_teacher(text), device="cpu", needs_env=False)
    rows = [
        ("teacher", f"{text}, SHA-256 {teacher.checksum or 'none'}"),
        ("algorithm", f"{teacher.algo}, {type(teacher.policy).__name__}"),
        ("environment", _env_of(teacher)),
        ("observation", plain(str(teacher.observation_space))),
        ("action", plain(str(teacher.action_space))),
        ("normalization", "VecNormalize statistics" if teacher.normalization is not None else "none"),
        (
            "actor",
            f"{teacher.nbytes:,} bytes in float32, {teacher.n_parameters:,} parameters, {teacher.macs:,} MACs an action",
        ),
    ]
    weights = [(plain(name), " x ".join(map(str, value.shape))) for name, value in _parameters(teacher)]
    return f"{_aligned(rows)}\n\n{_table(('weights', 'shape'), weights, n_texts=2)}"


def _env_of(teacher: "Teacher") -> str:
    recipe = teacher.recipe
    return "not named: give --env to compress and evaluate" if recipe is None else plain(recipe.env_id)


def _parameters(teacher: "Teacher") -> Iterator[tuple[str, Any]]:
    for name, value in teacher.policy.named_parameters():
        if name.endswith("weight"):
            yield name, value


def _aligned(rows: Sequence[Line]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], n_texts: int = 1) -> str:
    """Columns as wide as their longest cell. The first columns hold texts, flush left; the others numbers, flush right."""
    cells = [head, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    sides = ["<"] * n_texts + [">"] * (len(head) - n_texts)
    lines = ["  ".join(f"{cell:{side}{w}}" for cell, side, w in zip(row, sides, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)
