"""Environments: recipes for building the one that a teacher was trained on, and ALE's native vector environment for SB3."""

from sb3_qpd.envs.atari import AtariVecEnv
from sb3_qpd.envs.recipe import EnvRecipe, make_recipe

__all__ = ["AtariVecEnv", "EnvRecipe", "make_recipe"]
