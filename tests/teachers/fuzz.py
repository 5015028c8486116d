"""
Mutants of honest files: each has to end in what the file holds or in an error of this package, within 2 s and 1 GiB.

    PYTHONPATH=tests python tests/teachers/fuzz.py --count 10000                  teachers
    PYTHONPATH=tests python tests/teachers/fuzz.py --count 10000 --format npz     and student, report, export, hub
    PYTHONPATH=tests python tests/teachers/fuzz.py --count 2000 --coverage

Members are mutated (JSON, opcodes of pickles, weights, YAML) and an honest zip is built around them: a byte changed at random
in a zip is found by its checksum and tests nothing else. ``--coverage`` counts the lines of the reader that they reach.
"""

import argparse
import base64
import io
import json
import pickletools
import random
import resource
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from bounds import bounded
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import Anything, Strict

import sb3_qpd
from sb3_qpd import TeacherError, load_teacher

READER = ("archive", "pickle_reader", "weights", "sb3_zip", "space_records", "vecnormalize", "zoo_yaml")  # in files/
BESIDE = ("run_folder", "statistics_files", "policy_builder")
SECONDS, MEMORY = 2.0, 2**30  # of processor time

Files = dict[str, bytes]  # of a folder
TAKEN = ("teacher", "student")

VECTOR = spaces.Box(-1, 1, (3,))
PARTS = spaces.Dict(
    {
        "joints": VECTOR,
        "picture": spaces.Box(0, 255, (1, 36, 36), np.uint8),
        "room": spaces.Discrete(3),
        "locks": spaces.MultiDiscrete([2, 3]),
        "doors": spaces.MultiBinary(2),
    }
)

JUNK: list[Any] = [None, True, 0, -1, 2**31, 2**63, 10**400, 1e308, float("nan"), "", "x", "\0", "Box", "relu", "é" * 99]
JUNK += [[], {}, [[]], [1, [2]], [0], [-1], [2**40], {"pi": [8]}, [8, {"vf": [8]}]]
JUNK += [{":serialized:": "gASVAAAu"}, {":serialized:": 3}]
TOKENS = ["!!python/name:os.system", "!!python/tuple", "&a", "*a", "<<", "{", "[", "- ", ": ", "1e400", "0x", "1:1:1", "~"]
TOKENS += ["\t", "'", "\x00", "\ud7ff", "9" * 50, "env: Ant-v9", "frame_stack: -1", "env_wrapper: os.system"]
TOKENS += ["normalize: 'dict(norm_obs=False)'"]
OPCODES = [bytes([code]) for code in b"012(.RbaesutdlN)]}Q\x81\x85\x86\x87\x88\x8f\x90\x91\x93\x94"]
OPCODES += [b"K\xff", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\x7f" * 9, b"G\x7f\xf0" + bytes(6), b"h\x00", b"h\xfe", b"q\x07"]
OPCODES += [b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n"]
OPCODES += [b"X\x01\x00\x00\x00n", b"U\x02O8", b"C\x02ab", b"I1\n", b"F1.5\n", b"L99L\n"]


def honest_runs() -> list[Files]:
    """Run folders for each family of algorithms and each kind of space, with and without normalization."""
    norm = VecNormalize(make_vec_env("Pendulum-v1"))
    norm.reset()
    relu = {"activation_fn": th.nn.ReLU}  # a class, so that policy_kwargs are pickled
    lstm = {"net_arch": [4], "lstm_hidden_size": 4, "enable_critic_lstm": False, "lstm_kwargs": {"bias": False}}
    models = [
        (_small(PPO, "CartPole-v1", n_steps=8, batch_size=8), None),
        (
            _small(PPO, norm, n_steps=8, batch_size=8, use_sde=True, policy_kwargs={"net_arch": dict(pi=[4], vf=[3]), **relu}),
            norm,
        ),
        (_small(SAC, "Pendulum-v1", buffer_size=9, policy_kwargs={"net_arch": [4], **relu}), None),
        (_small(DQN, "CartPole-v1", buffer_size=9), None),
        (_small(QRDQN, "CartPole-v1", buffer_size=9), None),
        (_small(ARS, "Pendulum-v1"), None),
        (_small(RecurrentPPO, "CartPole-v1", "MlpLstmPolicy", n_steps=8, batch_size=8, policy_kwargs=lstm), None),
        (_small(MaskablePPO, Strict(VECTOR, spaces.MultiDiscrete([2, 3])), n_steps=8, batch_size=8), None),
    ]
    parts = VecNormalize(DummyVecEnv([lambda: Anything(PARTS, spaces.MultiBinary(2))]), norm_obs_keys=["joints"])
    parts.reset()
    extractor = {"net_arch": [4], "features_extractor_kwargs": {"cnn_output_dim": 4}}
    models.append((_small(PPO, parts, "MultiInputPolicy", n_steps=8, batch_size=8, policy_kwargs=extractor), parts))
    return [_run(model, norm) for model, norm in models]


def _small(algo: type[Any], env: Any, policy: str = "MlpPolicy", **options: Any) -> Any:
    if algo is ARS:
        return algo(policy, env, device="cpu", seed=0, policy_kwargs={"net_arch": [4]})
    return algo(policy, env, **{"device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [4]}, **options})


def _run(model: Any, norm: VecNormalize | None) -> Files:
    zipped = io.BytesIO()
    model.save(zipped)
    env_id = "Pendulum-v1" if model.observation_space.shape == (3,) else "CartPole-v1"
    files = {
        "run.zip": zipped.getvalue(),
        "run/args.yml": f"!!python/object/apply:collections.OrderedDict\n- - - env\n    - {env_id}\n".encode(),
        "run/config.yml": f"normalize: {norm is not None}\nn_timesteps: 1000.0\nframe_stack: 1\npolicy: MlpPolicy\n".encode(),
    }
    if norm is not None:
        with tempfile.TemporaryDirectory() as folder:
            norm.save(f"{folder}/v.pkl")
            files["run/vecnormalize.pkl"] = Path(folder, "v.pkl").read_bytes()
    return files


def mutate(files: Files, rng: random.Random) -> Files:
    """One to three mutations of one run."""
    files = dict(files)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choices(list(MUTATIONS), list(MUTATIONS.values()))[0](files, rng)
    return files


def _unzipped(content: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(members: Files, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _edit_member(files: Files, name: str, edit: Callable[[bytes], bytes]) -> None:
    try:
        members = _unzipped(files["run.zip"])
    except Exception:  # an earlier mutation broke the zip
        return
    if name in members:
        files["run.zip"] = _zipped({**members, name: edit(members[name])})


def _edit_json(files: Files, edit: Callable[[dict[str, Any]], None]) -> None:
    def changed(content: bytes) -> bytes:
        try:
            data = json.loads(content)
            edit(data)
            return json.dumps(data).encode()
        except (ValueError, AttributeError, TypeError, KeyError):
            return content  # an earlier mutation broke it

    _edit_member(files, "data", changed)


READ_KEYS = ("observation_space", "action_space", "policy_kwargs", "policy_class")


def json_value(files: Files, rng: random.Random) -> None:
    def edit(data: dict[str, Any]) -> None:
        key = rng.choice((*READ_KEYS, "use_sde", "clip_range", rng.choice(list(data))))
        choice = rng.random()
        if choice < 0.15:
            data.pop(key, None)
        elif choice < 0.4:
            data[key] = data[rng.choice(list(data))]
        elif choice < 0.7 and isinstance(data.get("policy_kwargs"), dict):
            names = ("net_arch", "activation_fn", "log_std_init", "n_critics", "features_dim", "use_expln", "n_quantiles", "x")
            data["policy_kwargs"] = {**data["policy_kwargs"], rng.choice(names): rng.choice(JUNK)}
            data["policy_kwargs"].pop(":serialized:", None) if rng.random() < 0.7 else None
        else:
            data[key] = rng.choice(JUNK)

    _edit_json(files, edit)


def json_text(files: Files, rng: random.Random) -> None:
    _edit_member(files, "data", lambda content: _bytes(content, rng))


def json_pickle(files: Files, rng: random.Random) -> None:
    def edit(data: dict[str, Any]) -> None:
        value = data[rng.choice(READ_KEYS)]
        value[":serialized:"] = base64.b64encode(_opcodes(base64.b64decode(value[":serialized:"]), rng)).decode()

    _edit_json(files, edit)


def statistics(files: Files, rng: random.Random) -> None:
    if "run/vecnormalize.pkl" in files:
        files["run/vecnormalize.pkl"] = _opcodes(files["run/vecnormalize.pkl"], rng)
    else:
        json_pickle(files, rng)


def weights_pickle(files: Files, rng: random.Random) -> None:
    def edit(content: bytes) -> bytes:
        try:
            members = _unzipped(content)
        except Exception:
            return content
        name = next((one for one in members if one.endswith("data.pkl")), None)
        return content if name is None else _zipped({**members, name: _opcodes(members[name], rng)})

    _edit_member(files, "policy.pth", edit)


def weights_records(files: Files, rng: random.Random) -> None:
    def edit(content: bytes) -> bytes:
        try:
            members = _unzipped(content)
        except Exception:
            return content
        name = rng.choice(list(members))
        kind = rng.randrange(4)
        if kind == 0:
            del members[name]
        elif kind == 1:
            members[name] = _bytes(members[name], rng)
        elif kind == 2:
            members[name] = members[rng.choice(list(members))]
        else:
            members[rng.choice(("archive/constants.pkl", "archive/code/a.py", "x/data/0", "../x"))] = b""
        return _zipped(members)

    _edit_member(files, "policy.pth", edit)


def weights_values(files: Files, rng: random.Random) -> None:
    def edit(content: bytes) -> bytes:
        try:
            weights = dict(th.load(io.BytesIO(content), weights_only=True))
        except Exception:
            return content
        if not weights:
            return content
        key, other = rng.choice(list(weights)), rng.choice(list(weights))
        value = weights[key]
        changes: list[Callable[[], Any]] = [
            lambda: weights.pop(key),
            lambda: weights.update({key: weights[other]}),
            lambda: weights.update({key: value.double()}),
            lambda: weights.update({key: value.half()}),
            lambda: weights.update({key: value.int()}),
            lambda: weights.update({key: value * float("nan")}),
            lambda: weights.update({key: value.T if value.ndim == 2 else value.reshape(-1)[:0]}),
            lambda: weights.update({key: value.reshape(-1)}),
            lambda: weights.update({key: value.unsqueeze(0).expand(rng.choice((1, 1000)), *value.shape)}),
            lambda: weights.update(
                {rng.choice(("extra", "log_std", "actor.mu.weight", "0", "q_net.features_extractor")): value}
            ),
            lambda: weights.update({key + rng.choice((".x", "\0", "é")): weights.pop(key)}),
            lambda: weights.update({key: th.nn.Parameter(value.float())}),
        ]
        rng.choice(changes)()
        buffer = io.BytesIO()
        try:
            th.save(weights, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
        except TypeError:  # hooks that an earlier mutation put in
            return content
        return buffer.getvalue()

    _edit_member(files, "policy.pth", edit)


def yaml_text(files: Files, rng: random.Random) -> None:
    name = rng.choice(("run/args.yml", "run/config.yml"))
    lines = files[name].decode("utf-8", "surrogateescape").split("\n")
    kind = rng.randrange(5)
    at = rng.randrange(len(lines))
    if kind == 0:
        lines.insert(at, rng.choice(TOKENS))
    elif kind == 1:
        cut = rng.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:cut] + rng.choice(TOKENS) + lines[at][cut:]
    elif kind == 2:
        lines[at : at + 1] = lines[at : at + 1] * rng.choice((0, 2))
    elif kind == 3:
        key = rng.choice(("env", "env_kwargs", "env_wrapper", "frame_stack", "normalize", "vec_env_wrapper"))
        junk = rng.choice([one for one in JUNK if one == one and not isinstance(one, bytes)])
        lines = [json.dumps({key: junk})]
    else:
        files[name] = _bytes(files[name], rng)
        return
    files[name] = "\n".join(lines).encode("utf-8", "surrogateescape")


def zip_members(files: Files, rng: random.Random) -> None:
    try:
        members = _unzipped(files["run.zip"])
    except Exception:
        return
    if not members:
        return
    name, other = rng.choice(list(members)), rng.choice(list(members))
    kind = rng.randrange(4)
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[name] = members[other]
    elif kind == 2:
        members[rng.choice(("policy.pth", "tensors.pth", "data", "x", "a/b"))] = members.pop(name)
    files["run.zip"] = _zipped(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))


def zip_bytes(files: Files, rng: random.Random) -> None:
    files["run.zip"] = _bytes(files["run.zip"], rng)


# kinds of mutations -> the share of each
MUTATIONS: dict[Callable[[Files, random.Random], None], float] = {
    json_value: 18,
    json_text: 4,
    json_pickle: 24,
    statistics: 14,
    weights_pickle: 14,
    weights_records: 4,
    weights_values: 10,
    yaml_text: 10,
    zip_members: 3,
    zip_bytes: 3,
}


def _bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, taken out, doubled or put in."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 10))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif kind == 1:
            del changed[at : at + rng.choice((1, 4, 100))]
        elif kind == 2:
            changed[at:at] = changed[at : at + rng.choice((1, 4, 100))]
        else:
            changed[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4))))
    return bytes(changed)


def _opcodes(content: bytes, rng: random.Random) -> bytes:
    """Whole opcodes changed, taken out, doubled, exchanged or put in; now and then a byte of an argument."""
    try:
        starts = [at for _, _, at in pickletools.genops(content) if at is not None]
    except Exception:  # an earlier mutation broke it
        return _bytes(content, rng) if content else content
    parts = [content[start:end] for start, end in zip(starts, [*starts[1:], len(content)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        kind = rng.randrange(7)
        if kind == 0 and len(parts) > 1:
            del parts[at]
        elif kind == 1:
            parts.insert(at, parts[other])
        elif kind == 2:
            parts[at], parts[other % len(parts)] = parts[other % len(parts)], parts[at]
        elif kind in (3, 4):
            parts.insert(at, rng.choice(OPCODES))
        elif kind == 5:
            parts[at] = rng.choice(OPCODES)
        elif len(parts[at]) > 1:
            part = bytearray(parts[at])
            part[rng.randrange(1, len(part))] = rng.randrange(256)
            parts[at] = bytes(part)
    return b"".join(parts)


class Outcomes(Counter[str]):
    """``teacher``, ``zip`` (a TeacherError of the zip layer), ``refused`` (of what is inside)."""

    bad: list[str]
    slowest = 0.0  # seconds of processor time for one mutant


def judge(files: Files, folder: Path) -> str:
    """
    The outcome of loading a run. Other outcomes than these are raised.

    :return: ``teacher``, ``zip`` or ``refused``
    """
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    try:
        with bounded(SECONDS, MEMORY, of_processor=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            teacher = load_teacher(folder / "run.zip", device="cpu")
            teacher.predict(_nothing(teacher.observation_space), deterministic=True)
            return "teacher"
    except TeacherError as error:
        trace: Any = error.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        where = trace.tb_frame.f_code.co_filename
        return "zip" if where.endswith("archive.py") else "refused"
    finally:
        (folder / "run" / "vecnormalize.pkl").unlink(missing_ok=True)


def _nothing(space: spaces.Space[Any]) -> Any:
    """One observation, all zeros."""
    if isinstance(space, spaces.Dict):
        return {key: _nothing(one) for key, one in space.items()}
    return np.zeros(space.shape or (), space.dtype)


class Format(NamedTuple):
    """
    A kind of file.

    :param honest: makes honest ones
    :param mutate: makes a mutant of one
    :param judge: opens one in a folder; ``teacher`` and ``student`` mean that it was taken
    """

    honest: Callable[[], list[Files]]
    mutate: Callable[[Files, random.Random], Files]
    judge: Callable[[Files, Path], str]


def run_mutants(
    count: int,
    seed: int = 0,
    first: int = 0,
    report: Callable[[str], None] = lambda line: None,
    file_format: Format | None = None,
) -> Outcomes:
    """
    Make mutants and load each of them.

    :param count: number of mutants
    :param seed: seed; a mutant depends on it and on its own number alone
    :param first: number of the first mutant
    :param report: is called with lines about the progress
    :param file_format: of the files, by default teachers
    """
    file_format = file_format or Format(honest_runs, mutate, judge)
    runs, outcomes = file_format.honest(), Outcomes()
    outcomes.bad = []
    with tempfile.TemporaryDirectory() as folder:
        for files in runs:
            assert file_format.judge(files, Path(folder)) in TAKEN
        for index in range(first, first + count):
            rng = random.Random(f"{seed} {index}")
            files, start = file_format.mutate(rng.choice(runs), rng), time.process_time()
            try:
                outcomes[file_format.judge(files, Path(folder))] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcomes.bad.append(f"mutant {index}: {type(error).__name__}: {error}"[:300])
                report(outcomes.bad[-1])
            outcomes.slowest = max(outcomes.slowest, time.process_time() - start)
            if index % 1_000 == 999:
                report(f"{index + 1}: {dict(outcomes)}, {len(outcomes.bad)} bad")
    return outcomes


class Coverage:
    """The lines of the reader that run."""

    def __init__(self) -> None:
        package = Path(sb3_qpd.__file__).parent / "teachers"
        self.files = {
            *(str(package / "files" / f"{name}.py") for name in READER),
            *(str(package / f"{name}.py") for name in BESIDE),
        }
        self.seen: set[tuple[str, int]] = set()

    def __enter__(self) -> "Coverage":
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename in self.files else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def table(self) -> str:
        rows = []
        for file in sorted(self.files):
            source = Path(file).read_text()
            lines = {line for line in _lines(compile(source, file, "exec")) if (file, line)}
            reached = {line for name, line in self.seen if name == file} & lines
            missed = ", ".join(map(str, sorted(lines - reached)))
            rows.append(f"{Path(file).name:14} {len(reached):4} of {len(lines):4} lines of functions; not: {missed}")
        return "\n".join(rows)


def _lines(code: CodeType) -> set[int]:
    """Lines in bodies of functions: those that a module runs at import are no reaction to a file."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    own = {line for _, _, line in code.co_lines() if line} - {code.co_firstlineno}
    is_function = code.co_flags & 0x2  # CO_NEWLOCALS: neither module nor class
    return set().union(own if is_function else set(), *map(_lines, inner))


def main() -> int:
    from fuzz_formats import FORMATS  # which needs this module

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant, to go on with")
    parser.add_argument("--format", choices=("zip", *FORMATS), default="zip", help="of the files (default: zip, teachers)")
    parser.add_argument("--coverage", action="store_true", help="count lines; several times slower")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # torch's, of what the mutations do
    start, processor = time.perf_counter(), time.process_time()
    given = args.count, args.seed, args.first, print, FORMATS.get(args.format)
    if args.coverage:
        with Coverage() as coverage:
            outcomes = run_mutants(*given)
        print(coverage.table())
    else:
        outcomes = run_mutants(*given)
    print(f"{args.count} mutants of {args.format}, seed {args.seed}: {dict(outcomes)}, {len(outcomes.bad)} ended otherwise")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"slowest {outcomes.slowest:.2f} s of processor time, peak {peak} MiB of the whole process")
    print(f"{time.perf_counter() - start:.0f} s, {time.process_time() - processor:.0f} s of processor time")
    return 1 if outcomes.bad else 0


if __name__ == "__main__":
    sys.exit(main())
