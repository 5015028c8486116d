"""Results as a page: ``report.html``, one file without scripts that fetches nothing, made from the JSON of a result folder."""

from sb3_qpd.child_processes import import_matplotlib

import_matplotlib()
