"""A film of a student that plays."""

from __future__ import annotations

import importlib
import io
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.envs.limits import check_untrusted_recipe
from sb3_qpd.envs.recipe import EnvRecipe, make_recipe
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.integer import IntegerModel
from sb3_qpd.players import actor

N_FRAMES = 400


# --- the film ---
def film(model: IntegerModel, env: Mapping[str, Any]) -> tuple[dict[str, bytes], str]:
    """``replay.mp4``, or ``replay.gif`` where there is no ffmpeg, or nothing, and why: no film keeps a student at home."""
    try:
        recipe = EnvRecipe.from_json(env)
        check_untrusted_recipe(recipe)  # the folder may be a stranger's
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
        act = actor(model, env, recipe.deterministic)
        for _ in range(N_FRAMES):
            observation, *_ = env.step(act(observation))
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
