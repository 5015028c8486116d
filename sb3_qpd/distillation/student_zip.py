"""Reading a student's zip from an untrusted source: nothing in it is executed."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch as th

from sb3_qpd.checks import check_path
from sb3_qpd.devices import check_device
from sb3_qpd.distillation.base import POLICY_DEFAULTS
from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.distillation.environment import EnvSource
from sb3_qpd.distillation.schedules import CosineSchedule
from sb3_qpd.integer_file import MAX_WEIGHTS, StudentError
from sb3_qpd.student_folder import CONFIG, REPORT, REPORT_TEXT, find_zip
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.files.archive import Archive, TeacherError, read_file
from sb3_qpd.teachers.files.sb3_zip import read_json, read_spaces
from sb3_qpd.teachers.files.weights import read_weights
from sb3_qpd.teachers.hub import HubSource, download, download_student, parse_source

EXPECTED = "a student's zip, which QPDDistiller.save() writes"
MAX_ZIP_BYTES = 256 * 2**20  # the weights, and the optimizer's state of twice their size
MAX_WEIGHT_BYTES = 4 * MAX_WEIGHTS + 2**22  # of policy.pth: float32
# exceptions that settings of a file raise where they are not those of a student
_CONTRADICTIONS = (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, AssertionError, AttributeError)


class SafeCopy(NamedTuple):
    """
    A student's zip without anything that SB3's loader would unpickle.

    :param content: zip with plain values and checked weights
    :param custom_objects: values that the loader takes in place of the pickled ones
    """

    content: io.BytesIO
    custom_objects: dict[str, Any]


def load_student(path: str | Path, env: EnvSource | None = None, device: th.device | str = "auto") -> QPDDistiller:
    """
    Open a student's zip without executing anything in it.

    :meth:`sb3_qpd.QPDDistiller.load` unpickles the zip, so that a hostile file can run any code. This function takes plain
    values, spaces and weights only. It reads the two spaces as data, and the weights by ``torch.load(weights_only=True)``.
    The student has no teacher: set ``student.teacher = ...`` before ``learn()``.

    :param path: a zip that ``QPDDistiller.save()``, ``sb3-qpd compress`` or ``sb3-qpd zoo train`` wrote, its folder, or its
        repository on the Hub
    :param env: environment to go on learning in, as in the constructor; not needed to predict
    :param device: device of the student
    :return: the student as it was saved, with a new optimizer
    :raises StudentError: the file is not a student's zip, contradicts itself, or is larger than a student can be
    """
    check_path("path", path)
    check_device(device)
    path = _find_zip(path)
    copy = safe_copy(path)
    try:
        student = QPDDistiller.load(copy.content, device=device, custom_objects=copy.custom_objects)
    except _CONTRADICTIONS as error:
        raise StudentError(f"{path} has settings that no student has: {error}. Expected {EXPECTED}") from error
    if env is None:
        return student
    copy.content.seek(0)
    return QPDDistiller.load(copy.content, env=env, device=device, custom_objects=copy.custom_objects)


def safe_copy(path: str | Path) -> SafeCopy:
    """
    Read a student's zip as data, and write it anew for SB3's loader. The optimizer's state is a new one.

    :param path: see :func:`load_student`
    :raises StudentError: see :func:`load_student`
    """
    try:
        return _copy(Path(path))
    except TeacherError as error:
        raise StudentError(str(error)) from error


def _copy(path: Path) -> SafeCopy:
    archive = _open(path)
    data = read_json(archive, path)
    if not _names_student(data):
        raise StudentError(f"{path} holds no student of sb3_qpd. Expected {EXPECTED}. A teacher is opened by load_teacher")
    policy_kwargs = data.get("policy_kwargs")
    if not isinstance(policy_kwargs, dict) or ":serialized:" in policy_kwargs or "student_arch" not in policy_kwargs:
        raise StudentError(f"{path} does not describe its network in plain values. Expected {EXPECTED}")
    observation_space, action_space = read_spaces(data, path)
    settings = {**POLICY_DEFAULTS, **policy_kwargs}
    make = partial(QuantActorCriticPolicy, observation_space, action_space, lambda _: 0.0, **settings)
    weights = _read_matching_weights(archive, path, policy_kwargs, make)
    known = {
        **{"policy_class": QuantActorCriticPolicy, "learning_rate": _learning_rate(data.get("learning_rate")), "n_envs": 1},
        **{"observation_space": observation_space, "action_space": action_space},
        "student_arch": policy_kwargs["student_arch"],
    }
    return SafeCopy(_write_anew(data, known, weights, make, path), known)


def _find_zip(source: str | Path) -> Path:
    """The zip that a path or a name on the Hub means: itself, or the one in the same folder."""
    on_hub = parse_source(source) if isinstance(source, str) else None
    path = Path(source).expanduser() if on_hub is None else _download(on_hub)
    if not path.exists() and Path(f"{path}.zip").is_file():  # SB3 appends .zip too
        return Path(f"{path}.zip")
    folder = path if path.is_dir() else path.parent
    stands_for_folder = path.is_dir() or (path.is_file() and path.name in (REPORT, REPORT_TEXT, CONFIG))
    zip_path = find_zip(folder)
    if stands_for_folder and zip_path is not None:
        return zip_path
    if path.is_file() and path.suffix == ".npz":
        hint = f" Open {zip_path}, which lies beside it" if zip_path is not None else ""
        raise ValueError(f"{path} is an integer model, which IntegerModel.load opens. Expected {EXPECTED}.{hint}")
    return path


def _download(source: HubSource) -> Path:
    folder = download_student(source) if source.filename is None else None
    return download(source).path if folder is None else folder


def is_student(path: Path) -> bool:
    """
    Whether a file is a zip whose policy is a class of this package.

    :param path: any file
    """
    try:
        return _names_student(read_json(_open(path), path))
    except (TeacherError, OSError):
        return False


def _open(path: Path) -> Archive:
    return Archive(read_file(path, EXPECTED, MAX_ZIP_BYTES), str(path), f"Expected {EXPECTED}")


def _names_student(data: dict[str, Any]) -> bool:
    policy_class = data.get("policy_class")
    return isinstance(policy_class, dict) and str(policy_class.get("__module__")).partition(".")[0] == "sb3_qpd"


def _learning_rate(value: Any) -> float | CosineSchedule | None:
    """The saved rate: a number, or the usual schedule from its number. ``None``, the default, stands for other schedules."""
    is_cosine = isinstance(value, dict) and CosineSchedule.__name__ in str(value.get(":type:"))
    number = value.get("initial") if is_cosine else value
    if not isinstance(number, float) or not 0 <= number <= 1:
        return None
    return CosineSchedule(number) if is_cosine else number


def _read_matching_weights(
    archive: Archive, path: Path, policy_kwargs: dict[str, Any], make: Callable[[], QuantActorCriticPolicy]
) -> dict[str, th.Tensor]:
    """The weights. Their shapes are compared with the network that the file describes, built on the meta device."""
    if "policy.pth" not in archive.names:
        raise StudentError(f"{path} has no weights: expected a member policy.pth")
    weights = read_weights(archive.read("policy.pth", MAX_WEIGHT_BYTES), f"policy.pth of {path}")
    if len(json.dumps(policy_kwargs)) > 2_000 + 20 * len(weights):  # a million small layers take long even to lay out
        raise StudentError(f"{path} describes a network of more layers than its weights have")
    try:
        with th.device("meta"):
            policy = make()
    except _CONTRADICTIONS as error:
        raise StudentError(f"{path} describes a network that cannot be built: {error}") from error
    layout = policy.state_dict()
    for name in weights:
        if name.endswith("input_grid.origin"):  # of students that have one; as many numbers as the means
            layout[name] = layout.get(name.removesuffix("origin") + "mean", weights[name])
    for name, expected in layout.items():
        if name not in weights and name in QuantActorCriticPolicy.added_state:
            continue
        shape = tuple(weights[name].shape) if name in weights else "nothing"
        if shape != tuple(expected.shape):
            raise StudentError(
                f"{path} describes another network than its weights are: {name} has {shape}, not {expected.shape}"
            )
    return weights


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value has the type of a setting's default; numbers are alike, and ``None`` is like anything."""
    number = (int, float)
    if value is None or default is None or (type(value) in number and type(default) in number):
        return True
    return isinstance(value, type(default)) or (isinstance(value, list) and isinstance(default, tuple))


def _write_anew(
    data: dict[str, Any],
    known: dict[str, Any],
    weights: dict[str, th.Tensor],
    make: Callable[[], QuantActorCriticPolicy],
    path: Path,
) -> io.BytesIO:
    """A zip for SB3's loader that holds only plain values of the types that a student has, and the checked weights."""
    model = QPDDistiller(_init_setup_model=False)
    settings = vars(model).keys() - {*model._excluded_save_params(), *known}
    plain = {key: data[key] for key in settings & data.keys() if ":serialized:" not in json.dumps(data[key])}
    for key, value in plain.items():
        if not _is_like(value, vars(model)[key]):
            got = f"a {type(value).__name__}"
            raise StudentError(f"{path} has {got} as {key}, which no student has. Expected {EXPECTED}")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", json.dumps({**plain, **dict.fromkeys(known)}))
        for name, state in (("policy", weights), ("policy.optimizer", make().optimizer.state_dict())):
            with archive.open(f"{name}.pth", "w", force_zip64=True) as member:
                th.save(state, member)
    buffer.seek(0)
    return buffer
