"""The target ``js``: the exporter of an ES module, which node runs for comparisons."""

from sb3_qpd.export.js.exporter import export_js
from sb3_qpd.export.js.runtime import JsPolicy

__all__ = ["JsPolicy", "export_js"]
