"""Float policies in ONNX Runtime, in float32 and quantized after training: the baselines of integer students."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy


class Actor(th.nn.Module):
    """
    The network of the action, without that of the value.

    :param policy: policy of SB3
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy: Any = policy

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        Compute the actor's outputs.

        :param observations: observations as SB3 hands them to its policies
        :return: logits or mean action; the action where the policy has neither
        """
        if not hasattr(self.policy, "mlp_extractor"):
            return self.policy._predict(observations, deterministic=True)
        features: Any = self.policy.extract_features(observations)
        pi_features = features[0] if isinstance(features, tuple) else features
        return self.policy.action_net(self.policy.mlp_extractor.forward_actor(pi_features))


def write_float_onnx(policy: BasePolicy, observation: np.ndarray, path: Path) -> None:
    """
    Write a float policy as an ONNX file, by torch's own exporter.

    :param policy: policy of SB3
    :param observation: a batch of one observation
    :param path: the file
    """
    policy.set_training_mode(False)
    names: dict[str, Any] = {"input_names": ["observation"], "output_names": ["actor"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks on itself
        axes = {"observation": {0: "batch"}, "actor": {0: "batch"}}
        th.onnx.export(Actor(policy), (th.as_tensor(observation),), str(path), dynamo=False, dynamic_axes=axes, **names)


def quantize_after_training(path: Path, out: Path, observations: np.ndarray) -> None:
    """
    Quantize a float file to int8 by ONNX Runtime's own static quantization.

    :param path: file of a float network whose input is called ``observation``
    :param out: the quantized file
    :param observations: batch to calibrate the activations with
    """
    from onnxruntime import quantization

    from sb3_qpd.export.onnx.graph import INPUT

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
