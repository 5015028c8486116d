"""The target ``tflite``: one file, and its runtime."""

from sb3_qpd.export.tflite.exporter import export_tflite
from sb3_qpd.export.tflite.runtime import TflitePolicy

__all__ = ["TflitePolicy", "export_tflite"]
