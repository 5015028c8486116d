"""The target ``tflite``: the exporter of one file, and the policy that runs it."""

from sb3_qpd.export.tflite.exporter import export_tflite
from sb3_qpd.export.tflite.runtime import TflitePolicy

__all__ = ["TflitePolicy", "export_tflite"]
