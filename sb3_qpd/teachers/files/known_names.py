"""The classes and functions that files of Stable-Baselines3 have a reason to name. None of them is imported."""

from __future__ import annotations

import re

from sb3_qpd.teachers.files.pickle_reader import GlobalName

_NUMPY_TYPES = r"bool_?|bool8|u?int\d*|u?int[cp]|u?long|u?longlong|float\d+|float_|half|single|double|longdouble"

# Modules, and the names in them. Besides spaces and statistics, a vecnormalize.pkl holds what VecNormalize happened to keep:
# its random generators, its last observations and the info of its last reset. These are let through and never looked at.
KNOWN_NAMES: tuple[tuple[str, str], ...] = (
    (
        r"gym(nasium)?\.spaces(\.\w+)?",
        "Space|Box|Discrete|MultiDiscrete|MultiBinary|Dict|Tuple|Text|Graph|GraphInstance|Sequence|OneOf",
    ),
    (r"gym(nasium)?\.utils\.seeding", "RandomNumberGenerator|RNG"),
    ("numpy", rf"dtype|ndarray|{_NUMPY_TYPES}|generic|number|integer|floating|str_|bytes_|object_"),
    (r"numpy\.dtypes", r"\w+DType"),
    (r"numpy\._?core\.multiarray", "_reconstruct|scalar"),
    (r"numpy\._?core\.numeric", "_frombuffer"),
    (r"numpy\.random(\.\w+)?", r"\w+"),  # states of random generators
    ("collections", "OrderedDict|defaultdict|deque"),
    ("_codecs", "encode"),  # protocol 2 writes bytes with it
    # Protocol 3 and older write sets and byte arrays as calls of their classes, and empty bytes as a call of bytes
    (
        r"builtins|__builtin__",
        "set|frozenset|bytearray|bytes|list|tuple|dict|str|unicode|int|long|float|bool|complex|slice|x?range|object",
    ),
    ("copy_?reg", "_reconstructor"),
    (r"torch\.nn\.modules\.\w+", r"\w+"),
    (r"torch\.optim\.\w+", r"\w+"),
    ("torch", "device"),
    (r"stable_baselines3\.common\.torch_layers", "FlattenExtractor|NatureCNN|CombinedExtractor"),
    (r"stable_baselines3\.common\.sb2_compat\.rmsprop_tf_like", "RMSpropTFLike"),
    (r"stable_baselines3\.common\.vec_env\.vec_normalize", "VecNormalize"),
    (r"stable_baselines3\.common\.running_mean_std", "RunningMeanStd"),
)


def is_known(name: GlobalName) -> bool:
    """
    Whether files of Stable-Baselines3 have a reason to name a class or function.

    :param name: name from a pickle
    """
    return any(re.fullmatch(module, name.module) and re.fullmatch(names, name.name) for module, names in KNOWN_NAMES)
