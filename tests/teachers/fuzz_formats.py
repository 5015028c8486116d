"""Other files than teachers for ``fuzz.py``: what a student's folder holds, and what a Hub answers."""

import contextlib
import io
import json
import os
import random
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from bounds import bounded
from fuzz import JUNK, MEMORY, SECONDS, Files, Format
from fuzz import _bytes as changed_bytes
from fuzz import _opcodes as changed_opcodes
from fuzz import mutate as mutate_run
from gymnasium import spaces
from hub_server import HubServer, etag, running_hub
from huggingface_hub import constants
from onnx import helper, numpy_helper
from random_students import draw
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC
from student_files import student_files
from students import BOX, IMAGE, VECTOR, make_student

import sb3_qpd
from sb3_qpd import IntegerModel, RecordedObservations, load_student, load_teacher
from sb3_qpd.evaluation.own_exports import own_copy
from sb3_qpd.export import export
from sb3_qpd.export.c.layout import lay_out, plan_arena
from sb3_qpd.export.c.proof import prove_sizes
from sb3_qpd.export.requirements import check_target
from sb3_qpd.publishing.push import _prepare
from sb3_qpd.teachers.hub import list_files, parse_source

PACKAGE = str(Path(sb3_qpd.__file__).parent)
NUMBERS: list[Any] = [-1, 0, 1, 2, 3, 5, 8, 9, 16, 64, 255, 2**16, 2**20, 2**31, 2**62, 10**9, 10**30, 0.5, -0.0, True]


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised by this package on purpose, and not by another one that it let through."""
    trace: Any = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return isinstance(error, ValueError) and trace.tb_frame.f_code.co_filename.startswith(PACKAGE)


def judged(open_files: Callable[[Path], object]) -> Callable[[Files, Path], str]:
    """A judge: ``student`` or ``refused``. Other outcomes are raised."""

    def judge(files: Files, folder: Path) -> str:
        shutil.rmtree(folder / "files", ignore_errors=True)
        for name, content in files.items():
            path = folder / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            with bounded(SECONDS, MEMORY, of_processor=True), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                open_files(folder / "files")
                return "student"
        except ValueError as error:
            if not is_ours(error):
                raise
            return "refused"

    return judge


# --- JSON ---
def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """A value exchanged, removed, doubled, nested or put elsewhere; now and then the text."""
    try:
        value = json.loads(content)
    except ValueError:  # an earlier mutation broke it
        return changed_bytes(content, rng) if content else content
    if rng.random() < 0.1:
        return changed_bytes(content, rng)
    places = [path for path in _places(value) if path]
    if not places:
        return json.dumps(rng.choice(JUNK)).encode()
    *way, last = rng.choice(places)
    parent = _at(value, way)
    if rng.random() < 0.2:
        if isinstance(parent, dict):
            del parent[last]
        else:
            parent.insert(last, parent[last])
    else:
        parent[last] = _another(parent[last], _at(value, rng.choice(places)), rng)
    return json.dumps(value).encode()


def _at(value: Any, path: Sequence[Any]) -> Any:
    for key in path:
        value = value[key]
    return value


def _another(value: Any, other: Any, rng: random.Random) -> Any:
    """What stands in the place of a value."""
    kind = rng.randrange(4)
    if kind == 0:
        return json.loads(json.dumps(other))
    if kind == 1:
        return rng.choice(JUNK)
    if kind == 2:
        return rng.choice(NUMBERS)
    for _ in range(rng.choice((1, 3, 30))):
        value = [value] if rng.random() < 0.5 else {"x": value}
    return value


# --- npz ---
def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def _zipped(members: Files, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    method = zipfile.ZIP_BZIP2 if rng.random() < 0.02 else rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members with one name
        for name, content in members.items():
            archive.writestr(name, content)
            if rng.random() < 0.01:
                archive.writestr(name, content)
    return buffer.getvalue()


def honest_npz() -> list[Files]:
    models = [make_student(VECTOR).to_integer(), make_student(IMAGE, BOX, (4, 4)).to_integer()]
    models += [draw(seed).model for seed in (0, 3, 11, 17, 25, 40, 51)]
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            model.save(f"{folder}/student.npz")
            files.append({"student.npz": Path(folder, "student.npz").read_bytes()})
    return files


def mutate_npz(files: Files, rng: random.Random) -> Files:
    with zipfile.ZipFile(io.BytesIO(files["student.npz"])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        name = "header.npy" if rng.random() < 0.6 else rng.choice(list(members))
        members[name] = _mutate_member(name, members.get(name, b""), rng)
        if rng.random() < 0.05:
            members.pop(name)
        if rng.random() < 0.03:
            members[rng.choice(("x.npy", "action_low.npy", "input_offset.npy", "../x.npy"))] = members.get(name, b"")
    content = _zipped(members, rng)
    return {"student.npz": changed_bytes(content, rng) if rng.random() < 0.1 else content}


def _mutate_member(name: str, content: bytes, rng: random.Random) -> bytes:
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        if name == "header.npy":
            return npy(np.frombuffer(mutate_json(array.tobytes(), rng), np.uint8))
    except Exception:  # an earlier mutation broke it
        return changed_bytes(content, rng)
    kind = rng.randrange(7)
    if kind == 0:
        return changed_bytes(content, rng)
    if kind == 1:
        return npy(array.astype(rng.choice(("f8", "f4", "i8", "i4", "u1", "i1", ">i4", "c8", "?", "U3"))))
    if kind == 2:
        return npy(array[: len(array) // 2] if rng.random() < 0.5 else np.concatenate([array, array]))
    if kind == 3:
        return npy(array.reshape(rng.choice(((1, -1), (-1, 1), (1,) * 30 + (-1,)))))
    if kind == 4 and array.size and array.dtype.kind in "fiu":
        array = array.reshape(-1).copy()
        ends = (np.nan, np.inf, -1, 3e38, 1e-45) if array.dtype.kind == "f" else (0, np.iinfo(array.dtype).max)
        array[rng.randrange(array.size)] = rng.choice(ends)
        return npy(array)
    if kind == 5:
        return content.replace(b"'shape': (", b"'shape': (" + rng.choice((b"9", b"-", b"10**9,", b"0,"))).replace(
            b"  ", b"", 1
        )
    return npy(np.zeros(rng.choice((0, 1, 10**6)), array.dtype))


def open_npz(folder: Path) -> None:
    """Load it, let it play, and lay it out for C, as the other targets it comes to the same arithmetic."""
    model = IntegerModel.load(folder / "student.npz")
    observation = {
        part.key: np.zeros((1, *part.shape), np.uint8 if part.kind == "image" else np.int64) for part in model.parts
    }
    model.predict(observation if model.is_dict else observation[None], deterministic=True)
    with contextlib.suppress(ValueError):  # which C cannot take
        check_target("c", model)
        layout = lay_out(model)
        prove_sizes(model, layout, *plan_arena(layout))


# --- a student's folder ---
def honest_folder() -> list[Files]:
    return [student_files()]


def mutate_student(files: Files, rng: random.Random) -> Files:
    """Members of its zip are mutated as those of a teacher's are, and its JSON as a report."""
    if rng.random() < 0.5:
        mutant = mutate_run({"run.zip": files["student.zip"], "run/args.yml": b"a: 1", "run/config.yml": b"a: 1"}, rng)
        return {**files, "student.zip": mutant["run.zip"]}
    with zipfile.ZipFile(io.BytesIO(files["student.zip"])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(rng.choice((1, 1, 2, 4))):
        members["data"] = mutate_json(members["data"], rng)
    return {**files, "student.zip": _zipped(members, rng)}


def open_student(folder: Path) -> None:
    student = load_student(folder / "student.zip", device="cpu")
    student.to_integer()
    student.predict(np.zeros((1, 4), np.float32), deterministic=True)


def mutate_report(files: Files, rng: random.Random) -> Files:
    content = files["report.json"]
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = mutate_json(content, rng)
    return {**files, "report.json": content}


def open_report(folder: Path) -> None:
    _prepare(folder, "me/student", replay=False)


# --- exports ---
def honest_exports() -> list[Files]:
    found = []
    for space, actions in ((VECTOR, spaces.Discrete(3)), (VECTOR, BOX)):
        model = make_student(space, actions, arch={"hidden": (4,)}).to_integer()
        with tempfile.TemporaryDirectory() as folder:
            for target in ("onnx", "tflite", "c", "numpy"):
                export(model, target, folder)
            found.append({path.name: path.read_bytes() for path in Path(folder).iterdir()})
    return found


EXPORTS = ("student.onnx", "student.tflite", "policy.c")


def mutate_exports(files: Files, rng: random.Random) -> Files:
    name = rng.choice((*EXPORTS, "policy.h"))
    kept = ("student.npz", *(("policy.c", "policy.h") if name.startswith("policy.") else ()))
    return {**{one: files[one] for one in kept}, name: changed_bytes(files[name], rng)}


def open_exports(folder: Path) -> None:
    """A mutant has to be foreign: then it is not run."""
    model = IntegerModel.load(folder / "student.npz")
    for name in EXPORTS:
        if (folder / name).exists() and own_copy(folder / name, model, folder / "copies") is None:
            raise _foreign(name)


def _foreign(name: str) -> ValueError:
    from sb3_qpd.integer import StudentError

    return StudentError(f"{name} is not run")


def judge_exports(files: Files, folder: Path) -> str:
    try:
        return judged(open_exports)(files, folder)
    except ValueError as error:
        if str(error).endswith("is not run"):
            return "refused"
        raise


# --- a Hub ---
class MutantHub:
    """A server that answers with a mutant: status, headers and body, the same to every request."""

    def __init__(self) -> None:
        self.model = b""
        self.exit_stack = contextlib.ExitStack()
        self.server: HubServer = self.exit_stack.enter_context(running_hub())
        self.files: Files = {}
        self.server.hostile = self.answer
        template = self.server.url + "/{repo_id}/resolve/{revision}/{filename}"
        time.sleep = lambda seconds: None  # of the client between two attempts
        constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE = self.server.url, template

    def honest(self) -> list[Files]:
        buffer = io.BytesIO()
        PPO("MlpPolicy", gym.make("CartPole-v1"), policy_kwargs={"net_arch": [4]}, n_steps=8, device="cpu").save(buffer)
        self.model = buffer.getvalue()
        entries = [{"type": "file", "path": "x.zip", "oid": "a" * 40, "size": len(self.model)}]
        commit = self.server.publish("me/x", {"x.zip": self.model})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(self.model)}"', "X-Linked-Size": str(len(self.model))}
        listed = {"headers": json.dumps({"Content-Type": "application/json"}).encode(), "body": json.dumps(entries).encode()}
        file = {"headers": json.dumps(headers).encode(), "body": self.model}
        return [{"kind": b"list", **listed, "status": b"200"}, {"kind": b"file", **file, "status": b"200"}]

    def answer(self, handler: Any) -> bool:
        if ("/tree/" if self.files["kind"] == b"list" else ".zip") not in handler.path:
            return False  # the server's own answer is honest
        try:
            headers = json.loads(self.files["headers"])
            pairs = [(str(name), str(value)) for name, value in headers.items()]
        except (ValueError, AttributeError):
            headers, pairs = {}, []
        with contextlib.suppress(Exception):  # what cannot be sent, or is not waited for
            handler.send_response(int(self.files["status"]))
            for name, value in pairs:
                handler.send_header(name, value)
            if "Connection" not in headers:  # or the client's next request meets the server that closes it
                handler.send_header("Connection", "close")
            if rng_of(self.files).random() < 0.8:
                handler.send_header("Content-Length", str(len(self.files["body"])))
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(self.files["body"])
        return True

    def mutate(self, files: Files, rng: random.Random) -> Files:
        mutant = dict(files)
        for _ in range(rng.choice((1, 1, 2))):
            kind = rng.randrange(4)
            if kind == 0:
                mutant["status"] = str(rng.choice((200, 204, 206, 301, 302, 401, 403, 404, 429, 500, 599))).encode()
            elif kind == 1:
                headers = {**json.loads(files["headers"]), rng.choice(HEADER_NAMES): rng.choice(HEADER_VALUES)}
                mutant["headers"] = json.dumps(headers).encode()
            elif mutant["kind"] == b"list":
                mutant["body"] = mutate_json(mutant["body"], rng)
            else:
                mutant["body"] = changed_bytes(mutant["body"], rng)
        return mutant

    def judge(self, files: Files, folder: Path) -> str:
        self.files = files
        cache = folder / "hub" / "cache"
        constants.HF_HUB_CACHE = str(cache)
        shutil.rmtree(folder / "hub", ignore_errors=True)
        cache.mkdir(parents=True)
        result = judged(self.open)({}, folder)
        outside = [name for name in os.listdir(folder / "hub") if name != "cache"]
        assert not outside, f"written outside of the cache: {outside}"
        return result

    def open(self, folder: Path) -> None:
        source = parse_source("me/x")
        assert source is not None
        if self.files["kind"] == b"list":
            list_files(source)
        else:
            load_teacher("me/x", device="cpu", needs_env=False)


HEADER_NAMES = (
    "ETag",
    "X-Linked-ETag",
    "X-Repo-Commit",
    "X-Linked-Size",
    "Location",
    "Content-Encoding",
    "Link",
    "X-Error-Code",
)
HEADER_NAMES += ("X-Error-Message", "X-Xet-Hash", "Content-Range", "Transfer-Encoding", "Content-Type", "RateLimit")
HEADER_VALUES = (
    "",
    "..",
    "../../evil",
    str(Path(tempfile.gettempdir(), "evil")),
    '"../x"',
    "a" * 40,
    "b" * 64,
    "a" * 5_000,
    "-1",
    str(10**20),
    "gzip",
    "chunked",
)
HEADER_VALUES += (
    "\x1b[31m",
    "é",
    "RepoNotFound",
    "EntryNotFound",
    "GatedRepo",
    "RevisionNotFound",
    "bytes 5-1/0",
    "http://127.0.0.1:1/",
)
HEADER_VALUES += ('<x>; rel="next"', '</api/x>; rel="next"', '<a>; rel="xet-auth"')


def rng_of(files: Files) -> random.Random:
    """The same for every request of a mutant."""
    return random.Random(files["headers"] + files["status"])


def _hub() -> Format:
    found: list[MutantHub] = []

    def hub() -> MutantHub:
        if not found:
            found.append(MutantHub())
        return found[0]

    return Format(
        lambda: hub().honest(), lambda files, rng: hub().mutate(files, rng), lambda files, folder: hub().judge(files, folder)
    )


# --- a policy by itself ---
LSTM = {"lstm_hidden_size": 4, "net_arch": [4]}


def honest_policies() -> list[Files]:
    """Files of ``policy.save()`` of four families."""
    models = [
        PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, policy_kwargs={"net_arch": [4]}, device="cpu", seed=0),
        PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, use_sde=True, device="cpu", seed=0),
        SAC("MlpPolicy", "Pendulum-v1", buffer_size=9, policy_kwargs={"net_arch": [4]}, device="cpu", seed=0),
        RecurrentPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs=LSTM, device="cpu", seed=0),
    ]
    return [{"policy.pth": _saved(model)} for model in models]


def _saved(model: Any) -> bytes:
    buffer = io.BytesIO()
    model.policy.save(buffer)
    return buffer.getvalue()


def mutate_policy(files: Files, rng: random.Random) -> Files:
    with zipfile.ZipFile(io.BytesIO(files["policy.pth"])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = next((one for one in members if one.endswith("data.pkl")), "")
        if name and rng.random() < 0.7:
            members[name] = changed_opcodes(members[name], rng)
            continue
        name = rng.choice(list(members))
        if rng.random() < 0.2:
            del members[name]
        else:
            members[name] = changed_bytes(members[name], rng) if rng.random() < 0.5 else members[rng.choice(list(members))]
    return {"policy.pth": _zipped(members, rng)}


def open_policy(folder: Path) -> None:
    teacher = load_teacher(folder / "policy.pth", device="cpu")
    space = teacher.observation_space
    space.seed(0)
    teacher(space.sample()[None])


# --- ONNX ---
def honest_onnx() -> list[Files]:
    """A small network with the operators of several exporters."""
    weights = {"w": np.ones((4, 2), np.float32), "b": np.zeros(2, np.float32), "shape": np.array([-1, 2], np.int64)}
    nodes = [
        helper.make_node("Gemm", ["obs", "w", "b"], ["h"], alpha=1.0),
        helper.make_node("Tanh", ["h"], ["t"], name="tanh"),
        helper.make_node("Reshape", ["t", "shape"], ["logits"]),
    ]
    return [{"policy.onnx": onnx_bytes(nodes, weights, ["n", 4], ["n", 2])}]


def onnx_bytes(nodes: Sequence[Any], weights: dict[str, np.ndarray], taken: list[Any], given: list[Any]) -> bytes:
    """A file with one input ``obs`` and one output ``logits``."""
    ends = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("obs", taken), ("logits", given))]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "policy", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def mutate_onnx(files: Files, rng: random.Random) -> Files:
    content = files["policy.onnx"]
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = changed_bytes(content, rng) if content else content
    return {"policy.onnx": content}


def open_onnx(folder: Path) -> None:
    teacher = load_teacher(folder / "policy.onnx", env="CartPole-v1", kind="logits", device="cpu")
    teacher(np.zeros((2, 4), np.float32))


# --- recorded observations ---
def honest_recordings() -> list[Files]:
    rows = np.arange(80, dtype=np.float32).reshape(20, 4)
    buffers = [io.BytesIO() for _ in range(2)]
    np.savez(buffers[0], observations=rows, dones=np.arange(20) % 5 == 4)
    np.savez_compressed(buffers[1], a=rows, b=np.arange(20), episode_starts=np.arange(20) % 5 == 0)
    return [{"rows.npz": buffer.getvalue()} for buffer in buffers]


def mutate_recording(files: Files, rng: random.Random) -> Files:
    with zipfile.ZipFile(io.BytesIO(files["rows.npz"])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(list(members))
        members[name] = changed_bytes(members[name], rng) if members[name] else b""
    packed = _zipped(members, rng)
    return {"rows.npz": changed_bytes(packed, rng) if rng.random() < 0.2 else packed}


def open_recording(folder: Path) -> None:
    recording = RecordedObservations(folder / "rows.npz")
    recording.take(np.concatenate(list(recording.side_by_side(recording.held_out or recording.learned))))


FORMATS = {
    "onnx": Format(honest_onnx, mutate_onnx, judged(open_onnx)),
    "recording": Format(honest_recordings, mutate_recording, judged(open_recording)),
    "policy": Format(honest_policies, mutate_policy, judged(open_policy)),
    "npz": Format(honest_npz, mutate_npz, judged(open_npz)),
    "student": Format(honest_folder, mutate_student, judged(open_student)),
    "report": Format(honest_folder, mutate_report, judged(open_report)),
    "export": Format(honest_exports, mutate_exports, judge_exports),
    "hub": _hub(),
}
