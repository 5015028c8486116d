"""RL Zoo's YAML files as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sb3_qpd.teachers.files.archive import TeacherError, read_file
from sb3_qpd.teachers.files.pickle_reader import MAX_DEPTH, MAX_VALUES, check_extent

MAX_YAML_BYTES = 2**16
MAX_NUMBER = 1_000  # characters of a number or a time: 1:1:1:..., to the base of 60, takes the square of its length
MAX_KEY = 16  # characters of a number that is a key: integers below 2^61 have hashes of their own
_TEXTS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:binary")


class BoundedLoader(yaml.SafeLoader):
    """SafeLoader for texts of a bounded size, whose aliases do not repeat values without bound."""

    max_bytes = 2**20

    def __init__(self, stream: Any) -> None:
        content = stream.read(self.max_bytes + 1) if hasattr(stream, "read") else stream
        if len(content) > self.max_bytes:
            raise yaml.YAMLError(f"it has more than {self.max_bytes} bytes")
        super().__init__(content)

    def get_single_node(self) -> yaml.Node | None:
        try:
            node = super().get_single_node()
            _count_values(node, {}, 0)
            return node
        except RecursionError as error:
            raise yaml.YAMLError("it is nested too deep") from error


def _count_values(node: yaml.Node | None, known: dict[int, int], depth: int) -> int:
    """Values under a node. Those of an alias count each time, and are visited once."""
    if node is None or isinstance(node, yaml.ScalarNode):
        _check_scalar(node, MAX_NUMBER)
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # of a list that holds itself
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(one,) for one in node.value]
        for key in [pair[0] for pair in pairs if len(pair) == 2]:
            _check_scalar(key, MAX_KEY)
        known[id(node)] = 1 + sum(_count_values(one, known, depth + 1) for pair in pairs for one in pair)
    if known[id(node)] > MAX_VALUES or depth > MAX_DEPTH:
        raise yaml.YAMLError(f"its aliases repeat more than {MAX_VALUES} values, or it is nested more than {MAX_DEPTH} levels")
    return known[id(node)]


def _check_scalar(node: yaml.Node | None, most: int) -> None:
    if isinstance(node, yaml.ScalarNode) and node.tag not in _TEXTS and len(node.value) > most:
        raise yaml.YAMLError(f"a value or a key that is no text has more than {most} characters")


class ZooLoader(BoundedLoader):
    """
    SafeLoader that also knows the Python types in RL Zoo's files.

    A named class or function (``-params policy_kwargs:"dict(activation_fn=nn.ReLU)"``) becomes its name. A schedule becomes
    the mapping of its attributes.
    """

    max_bytes = MAX_YAML_BYTES

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "a merge (<<), which can grow without bound", node.start_mark)

    def ordered_dict(self, node: yaml.Node) -> dict[Any, Any]:
        arguments = self.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None
        return dict(arguments[0]) if arguments else {}

    def tuple(self, node: yaml.SequenceNode) -> tuple[Any, ...]:
        return tuple(self.construct_sequence(node, deep=True))

    def name(self, name: str, node: yaml.Node) -> str:
        return name

    def schedule(self, node: yaml.MappingNode) -> dict[Any, Any]:
        return self.construct_mapping(node, deep=True)


ZooLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", ZooLoader.ordered_dict)
ZooLoader.add_constructor("tag:yaml.org,2002:python/tuple", ZooLoader.tuple)
ZooLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", ZooLoader.name)
for _schedule in (
    "rl_zoo3.utils.SimpleLinearSchedule",
    *(f"stable_baselines3.common.utils.{kind}Schedule" for kind in ("Constant", "Float", "Linear")),
):
    ZooLoader.add_constructor(f"tag:yaml.org,2002:python/object:{_schedule}", ZooLoader.schedule)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """
    Read RL Zoo's ``args.yml`` or ``config.yml``. No Python object that the file asks for is made.

    :param path: path of the file
    :return: its mapping. Strings that RL Zoo would evaluate stay strings
    :raises TeacherError: other YAML, or too much of it
    """
    path = Path(path)
    values = parse_yaml(read_file(path, "an args.yml or config.yml of RL Zoo", MAX_YAML_BYTES), str(path))
    if not isinstance(values, dict):
        raise TeacherError(f"{path} holds a {type(values).__name__}, expected a mapping as RL Zoo writes it")
    return values


def parse_yaml(content: bytes | str, what: str) -> Any:
    """
    YAML from elsewhere as plain values.

    :param content: the text
    :param what: name of the file, for messages
    :raises TeacherError: it asks for a Python object, or its values take more than their text
    """
    try:
        values = yaml.load(content, Loader=ZooLoader)
        check_extent(values)  # an alias takes a few bytes, and may repeat large values
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TeacherError(f"{what} was refused, without running it: {reason}. Expected plain YAML of RL Zoo") from error
    return values
