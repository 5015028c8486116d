"""The target ``onnx``: one file of standard operators, and its runtime."""

from sb3_qpd.export.onnx.exporter import export_onnx
from sb3_qpd.export.onnx.runtime import OnnxPolicy

__all__ = ["OnnxPolicy", "export_onnx"]
