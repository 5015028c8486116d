"""Limits on the environment that an untrusted file may ask for."""

from __future__ import annotations

import math
import re
from typing import Any

from sb3_qpd.envs.recipe import EnvRecipe

# Sizes multiply memory, and repetitions multiply each other. A limit of steps does neither, and may be larger
MAX_NUMBER = 1_000
MAX_STEPS = 1_000_000
MAX_ITEMS = 64
MAX_PIXELS = 2**24  # in all frames of an observation that wrappers resize
_STEPS = re.compile(r"max_(episode_)?steps|max_num_frames_per_episode|horizon|episode_length|time_limit")
_SKIPS = re.compile(r"frame_?skip|skip")
_REPETITIONS = re.compile(r"frame_?skip|skip|horizon|num_repeats|stack_size|n_stack|delay")  # settings of wrappers
_PLACES = re.compile(
    r"(^|_)(log)?(dir|directory|file|folder|path|url)(_?names?|s)?$", re.IGNORECASE
)  # names of settings that are places
_WORDS = re.compile(r"[\w +-]{0,100}")  # no paths, addresses, or modules


def check_untrusted_recipe(recipe: EnvRecipe) -> None:
    """
    Refuse a recipe that could take memory or time without bound, open files, or import modules.

    Environments trust the code that builds them. A recipe from a file is not trusted; one that a user passes in Python or on
    the command line needs no check.

    :param recipe: recipe from a file
    :raises ValueError: a setting is outside the limits
    """
    if ":" in recipe.env_id:
        raise ValueError(f"The environment {_shown(recipe.env_id)} would import a module: a file may name a plain id only.")
    check_untrusted_settings([recipe.env_kwargs, *(kwargs for _, kwargs in recipe.env_wrappers)], recipe.frame_stack)


def check_untrusted_settings(settings: list[Any], frame_stack: int) -> None:
    """
    Refuse settings of an environment as :func:`check_untrusted_recipe` does.

    :param settings: keyword arguments of the environment, then those of each wrapper
    :param frame_stack: frames in an observation
    :raises ValueError: a setting is outside the limits
    """
    if not all(isinstance(kwargs, dict) for kwargs in settings):
        raise ValueError("Expected settings by keyword for the environment and its wrappers.")
    if len(settings) > MAX_ITEMS or max(map(len, settings)) > MAX_ITEMS:
        raise ValueError(f"A file may name {MAX_ITEMS - 1} wrappers with {MAX_ITEMS} settings each: it names more.")
    of_env, *of_wrappers = ([*kwargs.items()] for kwargs in settings)
    in_wrappers = [pair for pairs in of_wrappers for pair in pairs]
    for name, value in (*of_env, *in_wrappers):
        items = value if isinstance(value, list | tuple) else [value]
        if len(items) > MAX_ITEMS or not all(_is_harmless(name, one) for one in items):
            raise ValueError(
                f"The setting {_shown(name)}: {_shown(value)} of the environment is not taken from a file. Expected numbers "
                f"up to {MAX_NUMBER} (of steps 1 to {MAX_STEPS}), words that name no file, lists of {MAX_ITEMS} of these, and "
                "no window."
            )
    repetitions = [value for name, value in of_env if _SKIPS.fullmatch(name)]
    repetitions += [value for name, value in in_wrappers if _REPETITIONS.fullmatch(name)]
    numbers = [value for value in repetitions if isinstance(value, int | float)]
    if (product := frame_stack * math.prod(max(1, value) for value in numbers)) > MAX_NUMBER:
        raise ValueError(f"Frames, skips and horizons of a file multiply to {product}: expected at most {MAX_NUMBER}.")
    largest = max((_pixels(name, value) for name, value in in_wrappers), default=1)
    if product * largest > MAX_PIXELS:
        raise ValueError(
            f"{product} frames of {largest} pixels are not taken from a file: expected {MAX_PIXELS} pixels at most."
        )


def _is_harmless(name: Any, value: Any) -> bool:
    if not isinstance(name, str) or (name == "render_mode" and value not in (None, "rgb_array")):
        return False
    if isinstance(value, str):
        return _WORDS.fullmatch(value) is not None and _PLACES.search(name) is None
    if isinstance(value, int | float):
        if _STEPS.fullmatch(name):
            return 1 <= value <= MAX_STEPS
        if name == "seed":
            return 0 <= value < 2**32
        return abs(value) <= MAX_NUMBER or value in (math.inf, -math.inf)  # an honest end of a range
    return value is None


def _pixels(name: str, value: Any) -> int:
    """Pixels of the picture that a wrapper makes, from one of its settings; 1 for other settings."""
    sides = [int(side) for side in (value if isinstance(value, list | tuple) else [value, value]) if _is_size(side)]
    return max(1, math.prod(sides)) if name in ("shape", "screen_size") else 1


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value <= MAX_NUMBER


def _shown(value: Any) -> str:
    """A value for a message. Python refuses to write integers of more than some thousand digits."""
    try:
        return repr(value)[:80]
    except ValueError:
        return "a number of thousands of digits"
