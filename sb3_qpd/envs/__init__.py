"""
Environments: recipes for building the one that a teacher was trained on, and ALE's native vector environment for SB3.

The names are loaded at their first use (PEP 562). So the command can look an environment up before torch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_qpd.envs.atari import AtariVecEnv
    from sb3_qpd.envs.recipe import EnvRecipe, make_recipe

__all__ = ["VEC_ENVS", "AtariVecEnv", "EnvRecipe", "make_recipe"]

VEC_ENVS = ("dummy", "subproc", "ray")  # kinds of vectorized environments: SB3's two, and actors on the nodes of a cluster
RESTARTS = {"subproc": 0, "ray": 100}  # default number: the nodes of a cluster may come and go
NEEDS_RAY = "vec_env='ray' needs Ray: pip install 'sb3_qpd[ray]'"
_MODULE_OF = {"AtariVecEnv": "atari", "EnvRecipe": "recipe", "make_recipe": "recipe"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next access does not call this function
    return value
