"""Films of players: of a student for the Hub, and of teacher and student side by side for the page."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sb3_qpd.envs.limits import check_untrusted_recipe
from sb3_qpd.envs.recipe import EnvRecipe, make_recipe
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.integer import IntegerModel
from sb3_qpd.players import Actor, Player

N_FRAMES = 400
MAX_GIF_BYTES = 3_000_000
HEIGHT, LINE = 260, 30  # of a picture side by side and of a line of its caption, in pixels


class Film(NamedTuple):
    """
    A player at play.

    :param pictures: RGB, uint8, shape (n_frames, height, width, 3)
    :param returns: raw return of the episode up to each picture, shape (n_frames,)
    :param fps: pictures per second
    """

    pictures: np.ndarray
    returns: np.ndarray
    fps: float


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
        taken = take_film(model, make_recipe(recipe))
        return _encode(taken.pictures, taken.fps)
    except Exception as error:  # of any kind: renderers, drivers, encoders and missing packages raise their own
        return {}, f"no replay: {str(error).strip() or type(error).__name__}"


def side_by_side(players: Mapping[str, Player], recipe: EnvRecipe) -> bytes:
    """
    A GIF of several players at play from the same first state. Above each is its name and the return of its episode so far.

    :param players: the players by their names
    :param recipe: their environment
    :return: the GIF, of at most 3 MB
    """
    films = {name: take_film(player, recipe, every=3) for name, player in players.items()}
    first = next(iter(films.values()))
    for step in (1, 2, 4, 8):  # fewer pictures a second, until it is small enough
        pictures = [_titled(films, at) for at in range(0, len(first.pictures), step)]
        gif = _pictures_to_gif(pictures, first.fps / step)
        if len(gif) <= MAX_GIF_BYTES:
            return gif
    raise ValueError(f"the film has {len(gif):,} bytes, expected at most {MAX_GIF_BYTES:,}")


def _titled(films: Mapping[str, Film], at: int) -> Any:
    """One picture of several films beside each other, each below its caption."""
    from PIL import Image, ImageDraw

    parts = [Image.fromarray(one.pictures[at]) for one in films.values()]
    width, height = HEIGHT * parts[0].width // parts[0].height, HEIGHT
    canvas = Image.new("RGB", (width * len(parts), height + 2 * LINE))
    for i, (part, (name, one)) in enumerate(zip(parts, films.items(), strict=True)):
        canvas.paste(part.resize((width, height)), (i * width, 2 * LINE))
        for line, text in enumerate((name, f"return {one.returns[at]:.0f}")):
            ImageDraw.Draw(canvas).text((i * width + 6, line * LINE + 2), text, fill="white", font=_font(text, width - 12))
    return canvas


def _font(text: str, width: int) -> Any:
    """The largest font, up to 24 pixels, in which a text is no wider than its picture."""
    fonts = map(_font_of_size, range(24, 8, -1))
    return next((font for font in fonts if font.getlength(text) <= width), _font_of_size(8))


@functools.cache
def _font_of_size(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def take_film(player: Player, recipe: EnvRecipe, every: int = 1) -> Film:
    """
    Film a player.

    :param player: anything with SB3's ``predict``
    :param recipe: its environment
    :param every: number of steps from one picture to the next. Each step is rendered, because some
        environments move their particles while they render
    """
    shown = recipe if recipe.is_native else make_recipe(recipe, {"render_mode": "rgb_array"})
    env = shown.make_vec_env(1, seed=VALIDATION_SEED, training=False)
    try:
        observation: Any = env.reset()
        pictures: list[Any] = []
        returns: list[float] = []
        total = 0.0
        act, dones = Actor(player, env, recipe.deterministic), np.ones(1, bool)
        for step in range(N_FRAMES):
            is_new = bool(dones[0])
            observation, rewards, dones, _ = env.step(act(observation, dones))
            total = float(rewards[0]) + (0.0 if is_new else total)
            if (picture := env.get_images()[0]) is None:
                raise ValueError(f"{recipe.env_id} renders nothing")
            if step % every == 0:
                pictures.append(picture)
                returns.append(total)
        fps: Any = env.metadata.get("render_fps", 30)
        return Film(np.stack(pictures), np.array(returns), (15.0 if recipe.is_atari else float(fps)) / every)
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
