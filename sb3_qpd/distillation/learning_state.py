"""
The state of learning as plain values and arrays, and back: all that the rest of a run follows from, but for the environments.

The ring of observations is kept apart, see :mod:`sb3_qpd.distillation.checkpoints`.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EventCallback

from sb3_qpd.teachers.families import DeterministicTeacher

if TYPE_CHECKING:
    from sb3_qpd.distillation.distiller import QPDDistiller

# attributes that change while a distiller learns -> their types
COUNTERS: dict[str, type] = {
    "num_timesteps": int,
    "_n_updates": int,
    "_episode_num": int,
    "_total_timesteps": int,
    "_current_progress_remaining": float,
    "_updates_owed": float,
    "_last_calibration": float,
    "_transition_progress": float,
    "_teacher_temperature": float,
    "_is_fitted": bool,
    "seconds_learning": float,
}
# what a run is: another value of one of these is another run
SETTINGS = (
    *("student_arch", "n_envs", "seed", "batch_size", "buffer_size", "gradient_steps", "learning_starts"),
    *(
        "temperature",
        "student_temperature",
        "critic_coef",
        "entropy_coef",
        "box_loss",
        "beta",
        "roll_in",
        "transition",
        "transition_start",
        "transition_end",
        "transition_steps",
    ),
    *("max_grad_norm", "learning_rate", "teacher_checksum"),
)


def settings_of(distiller: QPDDistiller, total_timesteps: int) -> dict[str, str]:
    """
    What a run is, as text. A checkpoint of a run with other settings is refused.

    :param distiller: the distiller, before learning
    :param total_timesteps: environment steps at the end of the run
    """
    values = {**{name: getattr(distiller, name) for name in SETTINGS}, "student_arch": distiller.policy.arch}
    values |= {"observation_space": distiller.observation_space, "action_space": distiller.action_space}
    values["observations"] = distiller.recording
    described = {name: _describe(value) for name, value in values.items()}
    described["optimizer"] = type(distiller.policy.optimizer).__name__
    return {"total_timesteps": str(total_timesteps), **described, "device": distiller.device.type}


def _describe(value: Any) -> str:
    """The text of a setting; a function, which may be new in each process, by its name."""
    return getattr(value, "__qualname__", repr(value)) if callable(value) and not hasattr(value, "initial") else repr(value)


def learning_state(distiller: QPDDistiller, callback: BaseCallback, before: list[Any]) -> dict[str, Any]:
    """
    The state of a distiller between two rounds.

    :param distiller: the distiller, while it learns
    :param callback: its callbacks; their numbers that have changed belong to the state
    :param before: :func:`numbers_of` these callbacks before learning
    :return: plain values, tensors and arrays in dicts, lists and tuples
    """
    teacher, buffer = distiller.teacher, distiller._buffer
    assert teacher is not None and buffer is not None
    return {
        "counters": {name: kind(getattr(distiller, name)) for name, kind in COUNTERS.items()},
        "policy": distiller.policy.state_dict(),
        "optimizer": distiller.policy.optimizer.state_dict(),
        "float_state": distiller._float_state,
        "input_findings": distiller.input_findings,
        "roll_in": distiller._turns.state(),
        "student_episodes": distiller._students.state(),
        "ep_info_buffer": [_episode(info) for info in distiller.ep_info_buffer or ()],
        "ep_success_buffer": [float(success) for success in distiller.ep_success_buffer or ()],
        "action_unit": teacher.action_unit if isinstance(teacher, DeterministicTeacher) else None,
        "teacher_state": distiller._teacher_state,
        "generators": _generators(distiller),
        "callbacks": _changed(numbers_of(callback), before),
    }


def restore_learning(distiller: QPDDistiller, callback: BaseCallback, state: dict[str, Any]) -> None:
    """
    Bring a distiller to a state of the same run.

    :param distiller: the distiller, which is about to learn
    :param callback: its callbacks
    :param state: from :func:`learning_state`
    :raises ValueError: values of other types, or tensors of other shapes
    """
    for name, kind in COUNTERS.items():
        value = state["counters"][name]
        if type(value) is not kind:
            raise ValueError(f"{name} is {value!r}, expected {kind.__name__}")
        setattr(distiller, name, value)
    distiller.policy.load_state_dict(state["policy"])
    distiller.policy.optimizer.load_state_dict(state["optimizer"])
    distiller._float_state = _checked_float_state(distiller, state["float_state"])
    distiller.input_findings = list(state["input_findings"])
    distiller._set_precision()
    distiller._turns.restore(state["roll_in"])
    distiller._students.restore(state["student_episodes"])
    distiller.ep_info_buffer = deque(state["ep_info_buffer"], maxlen=distiller._stats_window_size)
    distiller.ep_success_buffer = deque(state["ep_success_buffer"], maxlen=distiller._stats_window_size)
    if isinstance(distiller.teacher, DeterministicTeacher) and state["action_unit"] is not None:
        distiller.teacher.action_unit = state["action_unit"].to(distiller.teacher.device)
    memory = state.get("teacher_state")  # older checkpoints have none
    distiller._teacher_state = None if memory is None else tuple(one.to(distiller.device) for one in memory)
    for one, (name, numbers) in zip(_all_callbacks(callback), state["callbacks"], strict=False):
        if type(one).__name__ == name:
            vars(one).update({key: value for key, value in numbers.items() if key in _numbers(one)})
    _restore_generators(distiller, state["generators"])


def _checked_float_state(distiller: QPDDistiller, state: Any) -> dict[str, th.Tensor] | None:
    if state is None:
        return None
    own = distiller.policy.state_dict()
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
        raise ValueError("the float student has other tensors than the student")
    return {name: value.to(own[name].device) for name, value in state.items()}


def _episode(info: dict[str, Any]) -> dict[str, float]:
    """The numbers of SB3's monitor; other information that an environment adds is not kept."""
    return {key: float(info[key]) for key in ("r", "l", "t") if key in info}


def _generators(distiller: QPDDistiller) -> dict[str, Any]:
    """The states of all generators that learning draws from."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "torch": th.get_rng_state(),
        "numpy": [name, np.asarray(keys), *rest],
        "python": random.getstate(),
        "roll_in": distiller._rng.bit_generator.state,
        "buffer": distiller._buffer.rng_state,  # type: ignore[union-attr]
    }
    return {**state, "cuda": th.cuda.get_rng_state(distiller.device)} if distiller.device.type == "cuda" else state


def _restore_generators(distiller: QPDDistiller, states: dict[str, Any]) -> None:
    th.set_rng_state(states["torch"])
    np.random.set_state(tuple(states["numpy"]))
    random.setstate(states["python"])
    distiller._rng.bit_generator.state = states["roll_in"]
    distiller._buffer.rng_state = states["buffer"]  # type: ignore[union-attr]
    if distiller.device.type == "cuda":
        th.cuda.set_rng_state(states["cuda"], distiller.device)


def numbers_of(callback: BaseCallback) -> list[Any]:
    """
    The numbers of callbacks: counts, the best return so far, results of evaluations, and settings.

    :param callback: a callback, with those in it
    :return: a name and numbers for each
    """
    return copy.deepcopy([[type(one).__name__, _numbers(one)] for one in _all_callbacks(callback)])


def _changed(numbers: list[Any], before: list[Any]) -> list[Any]:
    """What has changed, so that settings are those of the run that goes on."""
    return [
        [name, {key: value for key, value in now.items() if value != then.get(key)}]
        for (name, now), (_, then) in zip(numbers, before, strict=True)
    ]


def _all_callbacks(callback: BaseCallback | None) -> Iterator[BaseCallback]:
    """A callback and those in it."""
    if callback is None:
        return
    yield callback
    if isinstance(callback, CallbackList):
        for one in callback.callbacks:
            yield from _all_callbacks(one)
    if isinstance(callback, EventCallback):
        yield from _all_callbacks(callback.callback)


def _numbers(callback: BaseCallback) -> dict[str, Any]:
    """The attributes that are numbers, or lists of them."""
    return {name: value for name, value in vars(callback).items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, list) and all(map(_is_number, value)))


def encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """
    Plain values, tensors and arrays as JSON values, with the arrays apart.

    :param value: numbers, text, ``None``, tensors and arrays, in dicts, lists and tuples
    :param arrays: takes the arrays, by names that the JSON values mention
    """
    if isinstance(value, th.Tensor | np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = value.detach().cpu().numpy() if isinstance(value, th.Tensor) else value
        return {"tensor" if isinstance(value, th.Tensor) else "array": name}
    if isinstance(value, dict):
        return {"dict": [[key, encode(item, arrays)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [encode(item, arrays) for item in value]}
    return value.item() if isinstance(value, np.generic) else value


def decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """
    The inverse of :func:`encode`.

    :param value: JSON values
    :param arrays: the arrays that they mention
    :raises ValueError: something else
    """
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return th.from_numpy(arrays[content].copy())
    if kind == "array":
        return arrays[content].copy()
    if kind == "dict":
        return {key: decode(item, arrays) for key, item in content}
    if kind in ("tuple", "list"):
        items = [decode(item, arrays) for item in content]
        return tuple(items) if kind == "tuple" else items
    raise ValueError(f"expected a tensor, an array, a dict, a tuple or a list, got {kind!r}")
