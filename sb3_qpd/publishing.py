"""
Publish a student on the Hugging Face Hub: its files, how it was made, and a model card with what was measured.

Everything is prepared in memory and searched for paths of this machine before anything is sent; one commit holds all of it.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import io
import json
import pickletools
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import yaml
from sb3_contrib.common.maskable.utils import get_action_masks

from sb3_qpd.acting import act, gives_masks, takes_masks
from sb3_qpd.envs import ATARI_WRAPPER, EnvRecipe, make_recipe
from sb3_qpd.evaluation import VALIDATION_SEED
from sb3_qpd.hub import HubSource, find_source, make_card, upload
from sb3_qpd.integer import IntegerModel
from sb3_qpd.report import to_markdown
from sb3_qpd.run_folder import check_foreign
from sb3_qpd.schedules import USUAL_LEARNING_RATES, CosineSchedule

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
# what QPDDistiller was told, as far as it is plain values; the seed is RL Zoo's, of its command line
SETTINGS = (
    *("n_envs", "batch_size", "buffer_size", "gradient_steps", "learning_starts"),
    *("temperature", "critic_coef", "entropy_coef", "box_loss", "beta", "roll_in"),
    *("transition", "transition_start", "transition_end", "max_grad_norm"),
)
# schedules that an entry can name: the end of the type's name -> its attribute, and how RL Zoo writes it
SCHEDULES = {"ConstantSchedule": ("val", ""), "SimpleLinearSchedule": ("initial_value", "lin_")}
N_FRAMES = 400
_HOMES = rb"(?:/home/|/Users/|/root/|[A-Za-z]:(?:\\\\?|/)Users(?:\\\\?|/))[\w.@\x80-\xff-]+"
# What a path of this machine does not follow: archive/data/0 is not /data/0. In a binary file the length of a text, and what
# kind of text it is, stand right before it, and these two bytes may look like letters
_TEXT, _BINARY = rb"(?<![\w.-])", rb"(?<![\w.-]{3})"


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    message: str = "A student distilled by sb3_qpd",
    replay: bool = True,
) -> tuple[str, list[str]]:
    """
    Publish what ``sb3-qpd compress`` and ``export`` wrote.

    :param folder: with ``student.npz`` and ``report.json``, and what else of ``FILES`` there is
    :param repo_id: ``owner/name``; the repository is created where there is none
    :param private: of a new repository; ``None`` is the account's default
    :param branch: to commit to; ``None`` is ``main``
    :param message: of the commit
    :param replay: film a few episodes
    :return: address of the commit, and remarks
    """
    folder = Path(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id):
        raise ValueError(f"repo_id must be owner/name, got {repo_id!r}")
    files, remarks = _prepare(folder, repo_id, replay)
    check_no_paths(files, folder)
    return upload(repo_id, files, private=private, branch=branch, message=message), remarks


def _prepare(folder: Path, repo_id: str, replay: bool) -> tuple[dict[str, bytes], list[str]]:
    missing = [name for name in ("student.npz", "report.json") if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {' and no '.join(missing)}: expected a folder that sb3-qpd compress wrote. "
            "A student is published with what was measured"
        )
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    report = _read_report(files["report.json"], folder)
    model = IntegerModel.load(folder / "student.npz")
    if model.nbytes != report["integer"]["bytes"]:
        raise ValueError(f"report.json and student.npz in {folder} are not of the same student. Run sb3-qpd compress again")
    files["config.yml"] = _config(report, model, files.get("student.zip"))
    film, remark = _film(model, report["env"]) if replay else ({}, "no replay, as you asked")
    files |= film
    left = sorted(path.name for path in folder.iterdir() if path.name not in files)
    remarks = [remark, f"not published: {', '.join(left)}" if left else ""]
    files["README.md"] = card(report, repo_id, list(files)).encode()
    return files, [one for one in remarks if one]


def _read_report(content: bytes, folder: Path) -> dict[str, Any]:
    try:
        report = json.loads(content)
        to_markdown(report)
        return report
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"report.json in {folder} is not what this version writes ({reason}). Run sb3-qpd compress again"
        ) from error


# --- config.yml ---
def _config(report: Mapping[str, Any], model: IntegerModel, student: bytes | None) -> bytes:
    """An entry of ``hyperparams/qpd.yml``, and in comments what it cannot hold."""
    told: dict[str, Any] = {}
    if student is not None:
        with zipfile.ZipFile(io.BytesIO(student)) as archive:
            told = json.loads(archive.read("data"))
    env, teacher, comments = report["env"], report["teacher_name"], [f"seed: {report['seed']} (--seed)"]
    entry: dict[str, Any] = {
        "policy": "MultiInputPolicy" if model.is_dict else "CnnPolicy" if model.is_image else "MlpPolicy",
        "n_timesteps": report["timesteps"],
    }
    if teacher_on_hub(teacher) is not None:
        entry["teacher"] = teacher
    else:
        comments.append(f"teacher: {teacher or 'without a name'}, which is not on the Hub: pass -params teacher:\"'PATH'\"")
    entry |= _environment(env)
    if "frame_stack" not in env:
        comments.append("env_wrapper, frame_stack: not known, the environment was not built from public parts alone")
    entry |= {"transition": report["transition"], **{k: told[k] for k in SETTINGS if k in told and not _is_pickled(told[k])}}
    entry |= {"student_arch": report["student"]}  # with its bits
    usual = USUAL_LEARNING_RATES[any(part.is_image for part in model.parts)]
    rate, remarks = _learning_rate(told.get("learning_rate"), usual)
    entry |= rate
    comments += remarks
    if student is None:
        comments.append("all else: the settings were in student.zip, which is not here")
    text = yaml.safe_dump({env["env_id"]: entry}, sort_keys=False)
    return (text + "".join(f"  # {' '.join(comment.split())}\n" for comment in comments)).encode()


def _environment(env: Mapping[str, Any]) -> dict[str, Any]:
    """As RL Zoo builds it, which puts no wrapper around a game of its own accord."""
    recipe = EnvRecipe.restore(env)
    wrappers = recipe.env_wrappers
    if recipe.is_atari and recipe.env_kwargs.get("obs_type", "rgb") != "ram" and not wrappers:
        wrappers = ((ATARI_WRAPPER, {}),)
    written = {
        "env_wrapper": [{name: kwargs} if kwargs else name for name, kwargs in wrappers],
        "frame_stack": recipe.frame_stack if recipe.frame_stack > 1 else None,
        "env_kwargs": recipe.env_kwargs,
    }
    return {key: value for key, value in written.items() if value}


def _learning_rate(value: Any, usual: float) -> tuple[dict[str, Any], list[str]]:
    """What an entry can say of it, or a comment; of the usual one it says nothing."""
    if not _is_pickled(value):
        return ({} if value is None else {"learning_rate": value}), []
    kind = str(value.get(":type:")).rstrip("'>").rpartition(".")[2]
    if kind == CosineSchedule.__name__:
        if value.get("initial") == usual:
            return {}, []
    elif kind in SCHEDULES and isinstance(number := value.get(SCHEDULES[kind][0]), float):
        prefix = SCHEDULES[kind][1]
        return {"learning_rate": f"{prefix}{number}" if prefix else number}, []
    return {}, [f"learning_rate: a {kind} of its own, which an entry cannot name"]


def _is_pickled(value: Any) -> bool:
    return isinstance(value, dict) and ":serialized:" in value


# --- the card ---
def card(report: Mapping[str, Any], repo_id: str, names: list[str]) -> str:
    """
    The model card: metadata for the Hub, with the measured return, and the report for people.

    :param report: what ``report.json`` holds
    :param repo_id: where it will lie
    :param names: of the files beside it
    """
    integer, env_id = report["integer"], report["env"]["env_id"]
    teacher = teacher_on_hub(report["teacher_name"])
    metadata = {
        "env_id": env_id,
        "name": f"{report['student_arch']} student, {report['weight_bits']}-bit",
        "mean_reward": f"{integer['return_mean']:.2f} +/- {integer['return_std']:.2f}",
        "base_model": None if teacher is None else teacher.repo_id,
    }
    return make_card(metadata, _card_text(report, repo_id, names, teacher))


def teacher_on_hub(name: str) -> HubSource | None:
    """The teacher's repository, where its name says that it came from one: at a commit. ``ppo/CartPole-v1`` lay here."""
    return find_source(name) if re.search(r"@[0-9a-f]{40}$", name) else None


def _card_text(report: Mapping[str, Any], repo_id: str, names: list[str], teacher: HubSource | None) -> str:
    lines = [to_markdown(report).rstrip(), ""]
    if teacher is not None:
        lines += [f"The teacher: [{teacher.repo_id}](https://huggingface.co/{teacher.repo_id}/tree/{teacher.revision}).", ""]
    else:
        lines += [
            "The teacher is not on the Hub: its checksum above tells whether yours is the same. `config.yml` leaves it "
            "out, so that `sb3-qpd zoo train` has to be told where it is (`-params teacher:\"'PATH'\"`).",
            "",
        ]
    if "replay.gif" in names:
        lines += ["![The student plays](replay.gif)", ""]
    return "\n".join(
        [
            *lines,
            "## Use",
            "",
            "```python",
            "from huggingface_hub import hf_hub_download",
            "from sb3_qpd import IntegerModel",
            "",
            f'model = IntegerModel.load(hf_hub_download("{repo_id}", "student.npz"))',
            "action, _ = model.predict(observation, deterministic=True)  # raw observation, action in environment units",
            "```",
            "",
            "```bash",
            f"sb3-qpd evaluate hub:{repo_id}/student.npz --episodes 100",
            "```",
            "",
            "| file | what it is |",
            "|---|---|",
            *[f"| `{name}` | {what} |" for name, what in FILES.items() if name in names],
            "",
            "Made with sb3_qpd, quantization-aware policy distillation for Stable-Baselines3.",
            "",
        ]
    )


# --- the film ---
def _film(model: IntegerModel, env: Mapping[str, Any]) -> tuple[dict[str, bytes], str]:
    """``replay.mp4``, or ``replay.gif`` where there is no ffmpeg, or nothing, and why: no film keeps a student at home."""
    try:
        recipe = EnvRecipe.restore(env)
        check_foreign(recipe)  # the folder may be a stranger's
        frames, fps = _frames(model, make_recipe(recipe))
        return _encode(frames, fps)
    except Exception as error:  # whatever a renderer, a driver, an encoder or a package that is not here raises
        return {}, f"no replay: {str(error).strip() or type(error).__name__}"


def _encode(frames: np.ndarray, fps: float) -> tuple[dict[str, bytes], str]:
    if (ffmpeg := _find_ffmpeg()) is not None:
        return {"replay.mp4": _to_mp4(frames, fps, ffmpeg)}, ""
    try:
        return {"replay.gif": _to_gif(frames, fps)}, "a GIF instead of a video: ffmpeg is not installed"
    except ImportError:
        return {}, "no replay: neither ffmpeg nor pillow is installed"


def _frames(model: IntegerModel, recipe: EnvRecipe) -> tuple[np.ndarray, float]:
    """Pictures of the student, shape (n_frames, height, width, 3), and how many make a second."""
    shown = recipe if recipe.is_native else make_recipe(recipe, {"render_mode": "rgb_array"})
    env = shown.make_vec_env(1, seed=VALIDATION_SEED, training=False)
    try:
        observation: Any = env.reset()
        pictures: list[Any] = []
        masking = takes_masks(model) and gives_masks(env)
        for _ in range(N_FRAMES):
            action = act(model, observation, not recipe.is_atari, get_action_masks(env) if masking else None)
            observation, *_ = env.step(action)
            if (picture := env.get_images()[0]) is None:
                raise ValueError(f"{recipe.env_id} renders nothing")
            pictures.append(picture)
        fps: Any = env.metadata.get("render_fps", 30)
        return np.stack(pictures), 15.0 if recipe.is_atari else float(fps)
    finally:
        env.close()


def _find_ffmpeg() -> str | None:
    if (found := shutil.which("ffmpeg")) is not None:
        return found
    try:
        return importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()  # comes with moviepy, which RL Zoo brings
    except (ImportError, RuntimeError):
        return None


def _to_mp4(frames: np.ndarray, fps: float, ffmpeg: str) -> bytes:
    height, width = frames.shape[1:3]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    even = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "replay.mp4"  # a film needs a file: its index is written last
        command = [ffmpeg, "-loglevel", "error", "-y", *raw, *even, str(path)]
        done = subprocess.run(command, input=frames.tobytes(), capture_output=True)
        if done.returncode != 0:
            raise ValueError(f"{ffmpeg} cannot write a video: {done.stderr.decode(errors='replace').strip()[:300]}")
        return path.read_bytes()


def _to_gif(frames: np.ndarray, fps: float) -> bytes:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames[::3]]
    buffer = io.BytesIO()
    options: dict[str, Any] = {"duration": max(20, round(3_000 / fps)), "loop": 0}
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], **options)
    return buffer.getvalue()


# --- paths of this machine ---
def check_no_paths(files: Mapping[str, bytes], folder: Path) -> None:
    """
    Refuse to publish what names a path of this machine or anybody's home, or where a value of JSON, YAML or a pickle is an
    absolute path: in a zip's members too.

    :param files: what would be published
    :param folder: where it was read from
    """
    own = {folder.resolve(), Path.cwd(), Path.home(), Path(tempfile.gettempdir()).resolve(), Path(__file__).parents[1]}
    known = b"|".join(re.escape(str(path).encode()) for path in own if len(path.parts) > 1) or rb"(?!)"
    text, binary = (re.compile(rb"%s|%s(?:%s)(?![\w.-])" % (_HOMES, before, known)) for before in (_TEXT, _BINARY))
    for name, content in files.items():
        for where, part in _parts(name, content):
            path = next((one for one in _texts(where, part) if _is_absolute(one) or text.search(one.encode())), None)
            if path is None and (found := (binary if b"\0" in part else text).search(part)) is not None:
                path = re.split(rb"[^\x21-\x7e]|[\"'<>]", part[found.start() : found.start() + 120])[0].decode()
            if path is not None:
                raise ValueError(
                    f"{where} names a path of this machine: {path[:120]}. Nothing was published. Save the student again "
                    f"without it, or leave {name} out of {folder}"
                )


def _is_absolute(text: str) -> bool:
    return (text.startswith("/") and len(PurePosixPath(text).parts) > 1) or PureWindowsPath(text).is_absolute()


def _texts(where: str, content: bytes) -> Iterator[str]:
    """Every text in a JSON or YAML document, or in a pickle, which is not run."""
    try:
        if content.startswith(b"\x80"):
            yield from (arg for _, arg, _ in pickletools.genops(content) if isinstance(arg, str))
        elif content.startswith(b"{"):
            yield from _walk(json.loads(content))
        elif where.endswith(".yml"):
            yield from _walk(yaml.safe_load(content))
    except (ValueError, IndexError, RecursionError, yaml.YAMLError):
        return


def _walk(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in chain(value, value.values()) if isinstance(value, dict) else value:
            yield from _walk(one)


def _parts(where: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """A file, the members of zips, the header of an integer model, and what is pickled in the JSON of an SB3 model."""
    yield where, content
    if content.startswith(b"PK") and zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield from _parts(f"{name} in {where}", archive.read(name))
    elif where.startswith("header.npy in "):
        yield where, np.load(io.BytesIO(content), allow_pickle=False).tobytes()
    elif content.startswith(b"{"):
        try:
            values = json.loads(content)
        except ValueError:
            return
        for key, value in values.items():
            if _is_pickled(value):
                try:
                    yield f"{key} in {where}", base64.b64decode(value[":serialized:"])
                except (binascii.Error, ValueError, TypeError):
                    continue
