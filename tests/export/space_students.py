"""Students of all spaces, for the tests of their exports."""

from typing import Any

import torch as th
from gymnasium import spaces
from students import BOX, IMAGE
from toys import sample

from sb3_qpd import QuantActorCriticPolicy

OBSERVATIONS: dict[str, spaces.Space] = {
    "vector": spaces.Box(-1, 1, (3,)),
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "MultiBinary": spaces.MultiBinary((2, 2)),
    "float image": spaces.Box(0, 1, (2, 36, 36)),
    "Dict": spaces.Dict(
        camera=IMAGE, depth=spaces.Box(0, 1, (1, 36, 36)), gear=spaces.Discrete(4), joints=spaces.Box(-9, 9, (3,))
    ),
    "Dict of vectors": spaces.Dict(a=spaces.MultiDiscrete([2, 3]), b=spaces.Box(-1, 1, (2,))),
}
ACTIONS: dict[str, spaces.Space] = {
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "MultiDiscrete of one": spaces.MultiDiscrete([4]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": BOX,
}


def make_student(observation: str, action: str, bits: int, seed: int = 0, **kwargs: Any) -> QuantActorCriticPolicy:
    th.manual_seed(seed)
    space = OBSERVATIONS[observation]
    options = {"weight_bits": bits, "activation_bits": bits, "normalized_image": True, **kwargs}
    policy = QuantActorCriticPolicy(space, ACTIONS[action], lambda _: 0.0, "nano", **options)
    with th.no_grad():
        policy.action_net.weight.mul_(100)
        policy.action_net.bias.normal_(0, 0.1)
    policy.calibrate(policy.obs_to_tensor(sample(space, 64))[0])
    policy.set_training_mode(False)
    return policy
