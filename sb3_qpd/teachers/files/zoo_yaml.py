"""RL Zoo's YAML files as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sb3_qpd.teachers.files.archive import TeacherError, read_file
from sb3_qpd.teachers.files.pickle_reader import check_extent

MAX_YAML_BYTES = 2**16


class ZooLoader(yaml.SafeLoader):
    """
    SafeLoader that also knows the Python types which RL Zoo writes.

    A class or function that is named (``-params policy_kwargs:"dict(activation_fn=nn.ReLU)"``) stays its name, a schedule the
    mapping of its attributes.
    """

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


def read_yaml(path: str | Path) -> dict[str, Any]:
    """
    Read RL Zoo's ``args.yml`` or ``config.yml``; no Python object that the file asks for is made.

    :param path: the file
    :return: its mapping; strings that RL Zoo would evaluate stay strings
    """
    path = Path(path)
    content = read_file(path, "an args.yml or config.yml of RL Zoo", MAX_YAML_BYTES)
    try:
        values = yaml.load(content, Loader=ZooLoader)
        check_extent(values)  # aliases are a few bytes each, and what they repeat can be large
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TeacherError(f"{path} was refused, without running it: {reason}. Expected plain YAML of RL Zoo") from error
    if not isinstance(values, dict):
        raise TeacherError(f"{path} holds a {type(values).__name__}, expected a mapping as RL Zoo writes it")
    return values
