"""The target ``onnx``: the exporter of one file, and the policy that runs it."""

try:
    from onnx import TensorProto

    TensorProto.UINT2  # noqa: B018  # since onnx 1.20
except (ImportError, AttributeError) as error:
    raise ImportError("The target onnx needs onnx>=1.20 and onnxruntime: pip install 'sb3_qpd[export]'") from error

from sb3_qpd.export.onnx.exporter import export_onnx
from sb3_qpd.export.onnx.runtime import OnnxPolicy

__all__ = ["OnnxPolicy", "export_onnx"]
