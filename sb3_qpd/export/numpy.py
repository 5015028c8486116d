"""A student for a device that has Python and numpy: its ``.npz``, and the interpreter as one file."""

from __future__ import annotations

from pathlib import Path

from sb3_qpd import integer
from sb3_qpd.export.files import disk_space
from sb3_qpd.integer import IntegerModel


def export_numpy(model: IntegerModel, out_dir: Path) -> list[Path]:
    """
    Write ``student.npz`` and ``policy.py``, which is ``sb3_qpd/integer.py`` itself:

        from policy import IntegerModel
        action, _ = IntegerModel.load("student.npz").predict(observation, deterministic=True)

    The device needs Python 3.8 and numpy 1.17, or newer ones.

    :param model: in either requantization mode
    :param out_dir: a folder that exists
    :return: both files
    """
    paths, interpreter = [out_dir / "student.npz", out_dir / "policy.py"], Path(integer.__file__).read_bytes()
    with disk_space(out_dir, model.nbytes + len(interpreter)):
        model.save(paths[0])
        paths[1].write_bytes(interpreter)
    return paths
