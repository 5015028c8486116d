"""A student for a device that has Python and numpy: its ``.npz``, and the interpreter as one file."""

from __future__ import annotations

import re
from pathlib import Path

from sb3_qpd import integer, integer_file, integer_parts
from sb3_qpd.export.files import disk_space
from sb3_qpd.integer import IntegerModel


def export_numpy(model: IntegerModel, out_dir: Path) -> list[Path]:
    """
    Write ``student.npz`` and ``policy.py``, see :func:`interpreter`:

        from policy import IntegerModel
        action, _ = IntegerModel.load("student.npz").predict(observation, deterministic=True)

    The device needs Python 3.8 and numpy 1.17, or newer ones.

    :param model: in either requantization mode
    :param out_dir: a folder that exists
    :return: both files
    """
    paths, content = [out_dir / "student.npz", out_dir / "policy.py"], interpreter()
    with disk_space(out_dir, model.nbytes + len(content)):
        model.save(paths[0])
        paths[1].write_bytes(content)
    return paths


def interpreter() -> bytes:
    """The content of ``policy.py``: ``integer.py``, with the modules that it needs in place of their imports."""
    texts = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in (integer, integer_file, integer_parts)]
    outer, *inner = (re.sub(r"from sb3_qpd\.integer_\w+ import \([^)]*\)\n+", "", text) for text in texts)
    before, mark, after = outer.partition("if sys.version_info <")
    bodies = [text.partition("from __future__ import annotations\n")[2].strip() for text in inner]
    return "\n\n\n".join([before.strip(), *bodies, mark + after]).encode()
