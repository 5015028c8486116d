"""Films of players: of a student for the Hub, and of teacher and student side by side for the page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_qpd.envs.limits import check_untrusted_recipe
from sb3_qpd.envs.recipe import EnvRecipe, make_recipe
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.integer import IntegerModel
from sb3_qpd.players import Actor, Player

N_FRAMES = 400
MAX_GIF_BYTES = 3_000_000
HEIGHT, CAPTION = 260, 22  # of a picture side by side, in pixels


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


def side_by_side(players: Mapping[str, Player], recipe: EnvRecipe) -> bytes:
    """
    A GIF of several players at play from the same first state, with their names above.

    :param players: the players by their names
    :param recipe: their environment
    :return: the GIF, of at most 3 MB
    """
    filmed = [film_frames(player, recipe) for player in players.values()]
    fps = filmed[0][1]
    for step in (3, 6, 12, 24):  # fewer pictures a second, until it is small enough
        pictures = [
            _titled(together, list(players)) for together in zip(*(frames[::step] for frames, _ in filmed), strict=True)
        ]
        gif = _pictures_to_gif(pictures, fps / step)
        if len(gif) <= MAX_GIF_BYTES:
            return gif
    raise ValueError(f"the film has {len(gif):,} bytes, expected at most {MAX_GIF_BYTES:,}")


def _titled(frames: tuple[np.ndarray, ...], names: list[str]) -> Any:
    """One picture of several frames beside each other, each below its name."""
    from PIL import Image, ImageDraw, ImageFont

    parts = [Image.fromarray(frame) for frame in frames]
    width, height = HEIGHT * parts[0].width // parts[0].height, HEIGHT
    canvas, font = Image.new("RGB", (width * len(parts), height + CAPTION)), ImageFont.load_default(14)
    for i, (part, name) in enumerate(zip(parts, names, strict=True)):
        canvas.paste(part.resize((width, height)), (i * width, CAPTION))
        ImageDraw.Draw(canvas).text((i * width + 6, 3), name, fill="white", font=font)
    return canvas


def film_frames(player: Player, recipe: EnvRecipe) -> tuple[np.ndarray, float]:
    """
    Pictures of a player at play.

    :param player: anything with SB3's ``predict``
    :param recipe: its environment
    :return: RGB pictures, uint8, shape (n_frames, height, width, 3), and the number of pictures per second
    """
    shown = recipe if recipe.is_native else make_recipe(recipe, {"render_mode": "rgb_array"})
    env = shown.make_vec_env(1, seed=VALIDATION_SEED, training=False)
    try:
        observation: Any = env.reset()
        pictures: list[Any] = []
        act, dones = Actor(player, env, recipe.deterministic), np.ones(1, bool)
        for _ in range(N_FRAMES):
            observation, _, dones, _ = env.step(act(observation, dones))
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

    return _pictures_to_gif([Image.fromarray(frame) for frame in frames[::3]], fps / 3)


def _pictures_to_gif(pictures: list[Any], fps: float) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"duration": max(20, round(1_000 / fps)), "loop": 0}
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], **options)
    return buffer.getvalue()
