"""What observation and action are, and what the device has to do itself: the comment at the head of the C interface."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from sb3_qpd.export.c.fields import fields_of
from sb3_qpd.export.ranges import feature_ranges
from sb3_qpd.integer import IntegerModel

MOST_FEATURES = 64  # lines about features; more are counted


def legend(model: IntegerModel) -> list[str]:
    """
    Lines for a comment. Names come from files, so they hold letters, digits and a few signs alone.

    :param model: the student
    """
    return [*_observation(model), *_wrappers(model), *_actions(model)]


def plain(text: Any) -> str:
    """
    Text that is safe in a comment of C, and in a string or a line of other files, because it cannot end them.

    :param text: from a file
    """
    return re.sub(r"[^A-Za-z0-9_.: @/+()-]", "_", text)[:100] if isinstance(text, str) else ""


def _observation(model: IntegerModel) -> Iterator[str]:
    kinds, features = {part.kind for part in model.parts}, list(_features(model))
    if "image" in kinds:
        yield "Observation: pixels from 0 to 255, as the environment gives them."
    if "one_hot" in kinds:
        yield "Observation: indices that start at 0, as the environment gives them."
    if features:
        yield "Observation: as the environment gives it. A value beyond the range seen in training counts as its end."
        yield from features[:MOST_FEATURES]
    if len(features) > MOST_FEATURES:
        yield f"    and {len(features) - MOST_FEATURES} more"


def _features(model: IntegerModel) -> Iterator[str]:
    """Each number with its range: by its index, for a Dict with the name of the field. Images of floats have one range."""
    names = {field.part: field.name for field in fields_of(model)} if model.is_dict else {}
    ranges = iter(feature_ranges(model))
    for part in (part for trunk in model.trunks for part in trunk if part.kind != "image"):
        of_part = list(islice(ranges, 1 if part.is_image else part.n_features))
        if part.kind != "one_hot":
            name = names.get(part, "")
            yield from (
                f"    {name}{'' if part.is_image else f'[{number}]'} {low:.6g} to {high:.6g}"
                for number, (low, high) in enumerate(of_part)
            )


def _wrappers(model: IntegerModel) -> Iterator[str]:
    wrappers = model.metadata.get("pipeline")
    names = [plain(name) for name in wrappers if isinstance(name, str)] if isinstance(wrappers, list) else []
    if names:
        yield "The program has to do what these wrappers did to an observation, in this order:"
        yield from (f"    {name}" for name in names)
    else:
        yield "No wrapper changed the observations in training."


def _actions(model: IntegerModel) -> Iterator[str]:
    if not model.is_box:
        sizes = model.action_nvec if model.action_shape else model.action_nvec[:1]
        for number, size in enumerate(sizes):
            index = f"[{number}] " if model.action_shape else ""
            yield f"Action: {index}an index from 0 to {max(size, 2) - 1}, in the order of the environment."
        return
    assert model.action_low is not None and model.action_high is not None
    yield "Action: numbers in the units of the environment, inside its bounds."
    for number in range(math.prod(model.action_shape)):
        low, high = model.action_low.ravel()[number], model.action_high.ravel()[number]
        yield f"    [{number}] {low:.6g} to {high:.6g}"
