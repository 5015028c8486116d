"""Recipes of environments: how to build the one that a teacher was trained on."""

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecTransposeImage

from sb3_qpd.checks import check_choice, check_type
from sb3_qpd.envs import VEC_ENVS
from sb3_qpd.envs.atari import NATIVE_ENV_KWARGS, NATIVE_WRAPPER_KWARGS, AtariVecEnv, is_native_id
from sb3_qpd.envs.ray_env import RayVecEnv
from sb3_qpd.envs.registry import check_env_kwargs, find_spec, make_registered
from sb3_qpd.envs.workers import WorkerVecEnv

MAX_FRAME_STACK = 64
# Modules, and the wrappers in them that a recipe may name. A recipe can come from an untrusted file, so wrappers that write
# files, render or take a function (Monitor, RecordVideo, HumanRendering, TransformReward) are left out
WRAPPERS: tuple[tuple[str, str], ...] = (
    (
        r"gymnasium\.wrappers(\.\w+)?",
        "AtariPreprocessing|(Delay|Discretize|Dtype|Filter|Flatten|FrameStack|Grayscale|MaxAndSkip|Normalize|Rescale|Reshape"
        "|Resize|TimeAware)Observation|(Clip|Discretize|Repeat|Rescale|Sticky)Action|(Clip|Normalize)Reward"
        "|OrderEnforcing|PassiveEnvChecker|RecordEpisodeStatistics|TimeLimit",
    ),
    (
        r"stable_baselines3\.common\.atari_wrappers",
        "AtariWrapper|ClipRewardEnv|EpisodicLifeEnv|FireResetEnv|MaxAndSkipEnv|NoopResetEnv|StickyActionEnv|WarpFrame",
    ),
    (r"sb3_contrib\.common\.wrappers(\.time_feature)?", "TimeFeatureWrapper"),
    (
        r"rl_zoo3\.wrappers",
        "ActionNoiseWrapper|ActionSmoothingWrapper|DelayedRewardWrapper|FrameSkip|HistoryWrapper|HistoryWrapperObsDict"
        "|MaskVelocityWrapper|TimeFeatureWrapper|TruncatedOnSuccessWrapper|YAMLCompatResizeObservation",
    ),
    (r"sb3_qpd\.envs\.wrappers", "ZeroContactForces"),
)
_VEC_ENV_CLASSES: tuple[type[DummyVecEnv] | type[SubprocVecEnv], ...] = (DummyVecEnv, WorkerVecEnv, RayVecEnv)
VEC_ENV_CLASSES = dict(zip(VEC_ENVS, _VEC_ENV_CLASSES, strict=True))

ATARI_WRAPPER = f"{AtariWrapper.__module__}.{AtariWrapper.__name__}"


@dataclass(frozen=True)
class EnvRecipe:
    """
    How to build the environment that a teacher was trained on.

    :param env_id: a registered id that runs today
    :param env_kwargs: keyword arguments for ``gym.make``
    :param env_wrappers: wrappers as pairs of a dotted name in ``WRAPPERS`` and keyword arguments, the innermost first
    :param frame_stack: frames in an observation. 0 takes the usual number: 4 for Atari's pixels, 1 elsewhere
    """

    env_id: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    env_wrappers: tuple[tuple[str, dict[str, Any]], ...] = ()
    frame_stack: int = 0

    def __post_init__(self) -> None:
        check_type("env_id", self.env_id, str, "the id of a registered environment")
        check_type("env_kwargs", self.env_kwargs, Mapping, "a dict of arguments for gym.make")
        self._check_wrappers()
        n_frames = self.frame_stack
        if not isinstance(n_frames, int) or isinstance(n_frames, bool) or not 0 <= n_frames <= MAX_FRAME_STACK:
            raise ValueError(f"frame_stack must be 0 (the usual number) to {MAX_FRAME_STACK}, got {self.frame_stack}.")
        if self.frame_stack == 0:
            object.__setattr__(self, "frame_stack", 4 if self.has_pixels else 1)

    def _check_wrappers(self) -> None:
        expected = "pairs of a wrapper's dotted name and a dict of its arguments"
        check_type("env_wrappers", self.env_wrappers, (list, tuple), expected)
        for pair in self.env_wrappers:
            if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[1], Mapping)):
                raise TypeError(f"env_wrappers must be {expected}, got {pair!r}")
            _check_wrapper_name(pair[0])

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values: what it takes to build the environment again."""
        return {**asdict(self), "env_wrappers": [[name, dict(kwargs)] for name, kwargs in self.env_wrappers]}

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any]) -> "EnvRecipe":
        """
        A recipe from the values of :meth:`to_json`. Where they come from an untrusted file, give the recipe to
        :func:`~sb3_qpd.envs.limits.check_untrusted_recipe` next.

        :param recorded: the fields as plain JSON values
        :raises TypeError: unknown fields, or other types
        :raises ValueError: values that no environment has
        """
        wrappers = tuple((name, dict(kwargs)) for name, kwargs in recorded.get("env_wrappers", ()))
        return cls(**{**recorded, "env_wrappers": wrappers})

    @property
    def is_atari(self) -> bool:
        """Whether it is a game of the Arcade Learning Environment."""
        spec = gym.registry.get(self.env_id)
        return spec is not None and "AtariEnv" in str(spec.entry_point)

    @property
    def deterministic(self) -> bool:
        """Whether RL Zoo scores deterministic actions here. It does so everywhere but in Atari, where actions are sampled."""
        return not self.is_atari

    @property
    def has_pixels(self) -> bool:
        """Whether this is an Atari game that shows its screen, not its memory."""
        return self.is_atari and self.env_kwargs.get("obs_type", "rgb") != "ram"

    @property
    def effective_wrappers(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """The wrappers that are really used: ``AtariWrapper`` around a game's pixels where the recipe names none."""
        return self.env_wrappers or (((ATARI_WRAPPER, {}),) if self.has_pixels else ())

    @property
    def is_native(self) -> bool:
        """Whether :class:`AtariVecEnv` plays this recipe: a game with ``AtariWrapper`` or none, at the usual settings."""
        return (
            is_native_id(self.env_id)
            and set(self.env_kwargs) <= set(NATIVE_ENV_KWARGS)
            and self._has_usual_wrappers
            and all(NATIVE_WRAPPER_KWARGS.get(key, "no") in (None, value) for key, value in self._wrapper_kwargs.items())
        )

    def make_env(self) -> gym.Env:
        """One environment with a ``Monitor`` and the recipe's wrappers. Frames are stacked by :meth:`make_vec_env` alone."""
        return self._wrap(Monitor(make_registered(find_spec(self.env_id), **self.env_kwargs)))

    def make_vec_env(
        self,
        n_envs: int,
        seed: int | None = None,
        vec_env: str = "dummy",
        training: bool = True,
        vec_env_kwargs: Mapping[str, Any] | None = None,
    ) -> VecEnv:
        """
        A vectorized environment, with a monitor, stacked frames, and images channels first.

        :class:`AtariVecEnv` plays whole games for raw rewards. Only for training, a named ``AtariWrapper`` may ask for
        something else. Other Atari environments get SB3's wrappers as they are.

        :param n_envs: number of sub-environments
        :param seed: seed of the first sub-environment; the others count on from it
        :param vec_env: ``"dummy"``, ``"subproc"`` or ``"ray"``; ignored by :class:`AtariVecEnv`, which has its own threads
        :param training: ``False`` for evaluation
        :param vec_env_kwargs: arguments of :class:`~sb3_qpd.envs.workers.WorkerVecEnv` for ``"subproc"``, of
            :class:`~sb3_qpd.envs.ray_env.RayVecEnv` for ``"ray"``
        """
        check_choice("vec_env", vec_env, VEC_ENVS)
        if self.is_native:
            return self._make_native(n_envs, seed, training)
        if vec_env != "dummy":
            self.make_env().close()  # an error is raised here: another process would only break the connection
        # a spec, as a subprocess may not know the id
        make = partial(make_registered, find_spec(self.env_id), **self.env_kwargs)
        kind: dict[str, Any] = {"vec_env_cls": VEC_ENV_CLASSES[vec_env], "vec_env_kwargs": dict(vec_env_kwargs or {})}
        if self.has_pixels and self._has_usual_wrappers:
            venv = make_atari_env(make, n_envs, seed, wrapper_kwargs=self._wrapper_kwargs, **kind)
        else:
            venv = make_vec_env(make, n_envs, seed, wrapper_class=self._wrap, **kind)
        if self.frame_stack > 1:
            venv = VecFrameStack(venv, self.frame_stack)
        space = venv.observation_space
        images = [one for one in (space.values() if isinstance(space, gym.spaces.Dict) else [space]) if is_image_space(one)]
        if images and not any(is_image_space_channels_first(one) for one in images):  # type: ignore[arg-type]
            venv = VecTransposeImage(venv)
        return venv

    @property
    def wrapper_names(self) -> list[str]:
        """Names of the classes around one environment, the innermost first."""
        return [name.rpartition(".")[2] for name, _ in self.effective_wrappers]

    @property
    def _has_usual_wrappers(self) -> bool:
        return [name for name, _ in self.env_wrappers] in ([], [ATARI_WRAPPER])

    @property
    def _wrapper_kwargs(self) -> dict[str, Any]:
        return self.env_wrappers[0][1] if self.env_wrappers else {}

    def _make_native(self, n_envs: int, seed: int | None, training: bool) -> "AtariVecEnv":
        options = {key: value for key, value in self._wrapper_kwargs.items() if NATIVE_WRAPPER_KWARGS[key] is None}
        if not training:
            options |= {"terminal_on_life_loss": False, "clip_reward": False}
        return AtariVecEnv(self.env_id, n_envs, frame_stack=self.frame_stack, seed=seed, **options, **self.env_kwargs)

    def _wrap(self, env: gym.Env) -> gym.Env:
        for name, kwargs in self.env_wrappers:
            with _named_settings(f"The wrapper {name} around {self.env_id}", kwargs):
                env = load_wrapper(name)(env, **kwargs)
        return env


# an id, a recipe, an environment, or a class or function that makes one
EnvSource = str | EnvRecipe | gym.Env | VecEnv | Callable[[], gym.Env | VecEnv]


def is_env_source(env: Any) -> bool:
    """
    Whether a value names an environment, is one, or makes one.

    :param env: anything
    """
    return isinstance(env, str | EnvRecipe | gym.Env | VecEnv) or callable(env)


def check_env_type(env: Any) -> None:
    """
    Refuse what is no environment.

    :param env: argument of the user
    :raises TypeError: it is no environment, and does not name or make one
    """
    if not is_env_source(env):
        raise TypeError(
            "env must be an id, an environment, a vectorized environment, or a class or function that makes an environment, "
            f"got {env!r} ({type(env).__name__})"
        )


@contextmanager
def _named_settings(what: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever a setting breaks in a constructor into an error that names it: settings come from files."""
    try:
        yield
    except (ImportError, MemoryError, gym.error.Error):
        raise
    except Exception as error:  # of any kind: constructors check their arguments, or fail on them
        reason = str(error).strip() or type(error).__name__
        raise ValueError(f"{what} cannot be built with the settings {dict(settings)!r:.200}: {reason}") from error


def make_recipe(env: str | EnvRecipe, env_kwargs: Mapping[str, Any] | None = None) -> EnvRecipe:
    """
    The recipe of an environment that is registered.

    :param env: a registered id (``"package:Id-v0"`` imports the package first), or a recipe
    :param env_kwargs: keyword arguments for ``gym.make``, added to those of a recipe
    :raises ValueError: the environment is not registered; the message names the nearest ids
    """
    spec = find_spec(env.env_id if isinstance(env, EnvRecipe) else env)
    if env_kwargs is not None:
        check_type("env_kwargs", env_kwargs, Mapping, "a dict of arguments for gym.make")
        check_env_kwargs(spec, env_kwargs)
    if isinstance(env, EnvRecipe):
        return replace(env, env_kwargs={**env.env_kwargs, **(env_kwargs or {})})
    return EnvRecipe(env, dict(env_kwargs or {}))


def describe_env(env: EnvSource | Mapping[str, Any]) -> dict[str, Any]:
    """
    An environment as plain JSON values: its recipe, or the id of an environment that is not built from a recipe.

    :param env: id, recipe, environment, class or function that makes one, or such values
    """
    if isinstance(env, Mapping):
        return dict(env)
    if isinstance(env, str | EnvRecipe):
        return make_recipe(env).to_json()
    check_env_type(env)
    if not isinstance(env, gym.Env | VecEnv):
        with closing(build_env(env)) as built:
            return describe_env(built)
    spec = getattr(env, "spec", None)
    return {"env_id": spec.id if spec is not None else type(env).__name__}


def build_env(make: Callable[[], gym.Env | VecEnv]) -> gym.Env | VecEnv:
    """
    The environment that a class or a function builds.

    :param make: a class or function without arguments
    :raises TypeError: it takes arguments, or builds something else
    """
    name = getattr(make, "__name__", type(make).__name__)
    try:
        env = make()
    except TypeError as error:
        raise TypeError(
            f"env= was given as {name}, which cannot be called without arguments ({error}). Give an environment"
        ) from error
    if not isinstance(env, gym.Env | VecEnv):
        raise TypeError(f"Expected {name}() to build a gymnasium.Env or a VecEnv, got {type(env).__name__}")
    return env


def _check_wrapper_name(name: str) -> None:
    module, _, class_name = name.rpartition(".")
    if not any(re.fullmatch(known, module) and re.fullmatch(names, class_name) for known, names in WRAPPERS):
        raise ValueError(
            f"The wrapper {name!r} is not among those that may be named: gymnasium's, stable_baselines3's, sb3_contrib's and "
            "rl_zoo3's that neither write files nor render. Build the environment with it yourself and pass that as env=."
        )


def load_wrapper(name: str) -> Callable[..., gym.Env]:
    """
    The class of a wrapper.

    :param name: its dotted name
    :raises ValueError: there is none by this name
    """
    module, _, class_name = name.rpartition(".")
    try:
        wrapper = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"There is no wrapper {name!r}: {error}.") from error
    if not (isinstance(wrapper, type) and issubclass(wrapper, gym.Wrapper)):
        raise ValueError(f"{name!r} is not a gymnasium.Wrapper.")
    return wrapper
