"""A film of a student at play."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_qpd.envs.limits import check_untrusted_recipe
from sb3_qpd.envs.recipe import EnvRecipe, make_recipe
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.integer import IntegerModel
from sb3_qpd.players import actor

N_FRAMES = 400


def film(model: IntegerModel, env: Mapping[str, Any]) -> tuple[dict[str, bytes], str]:
    """
    Film a student. A film that fails does not stop the publication.

    :param model: the student
    :param env: environment as its report describes it, see :meth:`EnvRecipe.to_json`
    :return: ``replay.mp4``, or ``replay.gif`` without imageio's ffmpeg, or no file; and a remark, which says why
    """
    try:
        recipe = EnvRecipe.from_json(env)
        check_untrusted_recipe(recipe)  # the folder may come from elsewhere
        frames, fps = film_frames(model, make_recipe(recipe))
        return _encode(frames, fps)
    except Exception as error:  # of any kind: renderers, drivers, encoders and missing packages raise their own
        return {}, f"no replay: {str(error).strip() or type(error).__name__}"


def film_frames(model: IntegerModel, recipe: EnvRecipe) -> tuple[np.ndarray, float]:
    """
    Pictures of the student at play.

    :param model: the student
    :param recipe: its environment
    :return: RGB pictures, uint8, shape (n_frames, height, width, 3), and the number of pictures per second
    """
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


def _encode(frames: np.ndarray, fps: float) -> tuple[dict[str, bytes], str]:
    try:
        import imageio_ffmpeg  # noqa: F401  # imageio finds its ffmpeg by it
        from imageio import v3 as imageio
    except ImportError:
        why = "a GIF instead of a video: imageio's ffmpeg is not installed (pip install sb3_qpd[film])"
        return {"replay.gif": _to_gif(frames, fps)}, why
    # H.264 in yuv420p, which every browser shows, takes even sizes; the index first, so that a browser need not load it all
    even = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)))
    options: dict[str, Any] = {"fps": fps, "macro_block_size": 1, "output_params": ["-movflags", "+faststart"]}
    return {"replay.mp4": imageio.imwrite("<bytes>", even, extension=".mp4", plugin="FFMPEG", **options)}, ""


def _to_gif(frames: np.ndarray, fps: float) -> bytes:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames[::3]]
    buffer = io.BytesIO()
    options: dict[str, Any] = {"duration": max(20, round(3_000 / fps)), "loop": 0}
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], **options)
    return buffer.getvalue()
