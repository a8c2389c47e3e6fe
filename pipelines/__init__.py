"""The pipeline, its configuration and runners, the audit, and the `triptych` command line."""
