"""The target ``onnx``: the exporter of one file, and the policy that runs it."""

from sb3_qpd.export.onnx.exporter import export_onnx
from sb3_qpd.export.onnx.runtime import OnnxPolicy

__all__ = ["OnnxPolicy", "export_onnx"]
