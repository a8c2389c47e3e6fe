"""The audit: what stands behind a version, run, digest, training image or generated picture, and whether it holds.

    report = audit("champion", Sources(entries, root, records, registry))
    print(write_text(report))

It reads only: the ledger's entries, the records and the artifact store. No server is asked and nothing is believed
that a digest or a signature does not bind.
"""

from pipelines.audit.collect import audit
from pipelines.audit.render import write_page, write_text
from pipelines.audit.report import Report, Sources
from pipelines.audit.resolve import UnknownError

__all__ = ["Report", "Sources", "UnknownError", "audit", "write_page", "write_text"]
