"""Bring MLflow's database up to this installation's version, and check that the ledger is there and holds.

    python -m infra.governed.migrate

reads ``MLFLOW_BACKEND_STORE_URI``, ``TRIPTYCH_LEDGER`` and ``TRIPTYCH_ROOT``; addresses, which may hold passwords, are
neither arguments nor printed. Safe to repeat. A cluster runs it as a Job before a new server starts.
"""

from __future__ import annotations

import os
import sys

from lineage.digests import LineageError


def migrate(backend: str, ledger: str, root: str) -> int:
    """Migrate the database at ``backend``; gives the number of entries in the ledger.

    Raises:
        LineageError: the ledger is not there, is another root's or does not hold.
    """
    from mlflow.store.db.utils import _initialize_tables, _upgrade_db, create_sqlalchemy_engine_with_retry
    from sqlalchemy import inspect

    from lineage.ledger import Ledger

    engine = create_sqlalchemy_engine_with_retry(backend)
    if inspect(engine).has_table("experiments"):
        _upgrade_db(engine)
    else:
        _initialize_tables(engine)
    return Ledger.open(ledger, root).refresh().size


def main() -> None:
    """Entry point."""
    names = ("MLFLOW_BACKEND_STORE_URI", "TRIPTYCH_LEDGER", "TRIPTYCH_ROOT")
    if missing := [name for name in names if not os.environ.get(name)]:
        sys.exit(f"error: {', '.join(missing)} not set")
    try:
        size = migrate(*(os.environ[name] for name in names))
    except LineageError as error:
        sys.exit(f"error: {error}")
    print(f"MLflow's database is up to date; the ledger has {size} entries and holds")


if __name__ == "__main__":
    main()
