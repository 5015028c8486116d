"""
Environments: recipes for building the one that a teacher was trained on, and ALE's native vector environment for SB3.

The names are loaded at their first use (PEP 562). So the command can look an environment up before torch is imported.
"""

from typing import TYPE_CHECKING

from sb3_qpd.lazy_names import lazy_names

if TYPE_CHECKING:
    from sb3_qpd.envs.atari import AtariVecEnv
    from sb3_qpd.envs.recipe import EnvRecipe, make_recipe

__all__ = ["VEC_ENVS", "AtariVecEnv", "EnvRecipe", "make_recipe"]

VEC_ENVS = ("dummy", "subproc", "ray")  # kinds of vectorized environments: SB3's two, and actors on the nodes of a cluster
RESTARTS = {"subproc": 0, "ray": 100}  # default number: the nodes of a cluster may come and go
NEEDS_RAY = "vec_env='ray' needs Ray: pip install 'sb3_qpd[ray]'"
_MODULE_OF = {"AtariVecEnv": "envs.atari", "EnvRecipe": "envs.recipe", "make_recipe": "envs.recipe"}

__getattr__ = lazy_names(globals(), _MODULE_OF)
