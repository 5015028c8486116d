"""Runtimes of exported policies that misbehave. Their processes import this module, which needs no torch."""

import os
import sys

import numpy as np


class Endless:
    def run(self, observations: np.ndarray) -> None:
        while True:
            pass


class Crashing:
    def run(self, observations: np.ndarray) -> None:
        os.abort()


class Greedy:
    def run(self, observations: np.ndarray) -> tuple[np.ndarray]:
        return (np.zeros(2**40, np.int8),)


class Sending:
    """Its answer is an object, which would run code in an unpickler."""

    def run(self, observations: np.ndarray) -> tuple[object]:
        return (np.array([Endless()], dtype=object),)


class Importing:
    """It tells whether torch is imported, which no exported policy needs."""

    def run(self, observations: np.ndarray) -> tuple[np.ndarray]:
        return (np.array("torch" in sys.modules),)
