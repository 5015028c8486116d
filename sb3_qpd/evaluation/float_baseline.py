"""Float policies in ONNX Runtime, in float32 and quantized after training: what integer students are measured against."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_qpd.export.onnx.exporter import INPUT


class Actor(th.nn.Module):
    """
    The network that acts, without the value's.

    :param policy: SB3's
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy: Any = policy

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: as SB3 hands them to its policies
        :return: logits or mean action; of a policy without those, the action
        """
        if not hasattr(self.policy, "mlp_extractor"):
            return self.policy._predict(observations, deterministic=True)
        features: Any = self.policy.extract_features(observations)
        pi_features = features[0] if isinstance(features, tuple) else features
        return self.policy.action_net(self.policy.mlp_extractor.forward_actor(pi_features))


def write_float_onnx(policy: BasePolicy, observation: np.ndarray, path: Path) -> None:
    """
    A float policy as an ONNX file, by torch's own exporter.

    :param policy: SB3's
    :param observation: a batch of one
    :param path: where to
    """
    policy.set_training_mode(False)
    names: dict[str, Any] = {"input_names": ["observation"], "output_names": ["actor"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, to its users
        axes = {"observation": {0: "batch"}, "actor": {0: "batch"}}
        th.onnx.export(Actor(policy), (th.as_tensor(observation),), str(path), dynamo=False, dynamic_axes=axes, **names)


def quantize_after_training(path: Path, out: Path, observations: np.ndarray) -> None:
    """
    ONNX Runtime's own static quantization of a float file to int8: what a student is measured against.

    :param path: of a float network whose input is called ``observation``
    :param out: where to
    :param observations: to calibrate the activations with
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{INPUT: observations}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    logging.disable(logging.WARNING)  # it recommends a pre-processing that changes nothing here
    try:
        quantization.quantize_static(path, out, Reader(), per_channel=True)
    finally:
        logging.disable(logging.NOTSET)
