"""A student for a device that has Python and numpy: its ``.npz``, and the interpreter as one file."""

from __future__ import annotations

import shutil
from pathlib import Path

from sb3_qpd import integer
from sb3_qpd.integer import IntegerModel


def export_numpy(model: IntegerModel, out_dir: Path) -> list[Path]:
    """
    Write ``student.npz`` and ``policy.py``, which is ``sb3_qpd/integer.py`` itself:

        from policy import IntegerModel
        action, _ = IntegerModel.load("student.npz").predict(observation, deterministic=True)

    :param model: in either requantization mode
    :param out_dir: a folder that exists
    :return: both files
    """
    paths = [Path(out_dir) / "student.npz", Path(out_dir) / "policy.py"]
    model.save(paths[0])
    shutil.copyfile(integer.__file__, paths[1])
    return paths
