"""What tests of several rooms share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lineage.registry import Registry

# A shell's background job ignores it, and so would every process that a test starts to interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


SLOW = frozenset(
    {
        *("attacks/test_audit_holds_on.py", "audit/test_answers.py", "avatars/test_scorers.py"),
        *("cluster/test_doctor.py", "cluster/test_operate.py"),
        *("cluster/test_submit.py", "cluster/test_trainjob.py", "lineage/test_moves.py", "lineage/test_registry.py"),
        *("pipelines/test_identity.py", "pipelines/test_interruption.py", "pipelines/test_invalid.py"),
        *("pipelines/test_retraining.py", "pipelines/test_stale.py", "serving/engine/test_fuzz.py"),
        *("serving/engine/test_requests.py", "tampering/test_entries.py", "tampering/test_evidence.py"),
        *("training/test_candidate.py", "training/test_checkpoints.py", "training/test_launch.py"),
        *("training/test_marks.py", "training/test_selection.py", "training/test_two_processes.py"),
        *("evaluate/test_real_scorers.py", "tampering/test_hostile.py", "training/test_lora.py"),
        *("training/test_portrait.py", "training/test_zero.py"),
    }
)
"""Files that take from half a minute to many: `make test` leaves them out, `make test-all` and CI do not."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a folder's tests in one process where several run: they share what takes long to make."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.parent.name))
        if item.path.relative_to(Path(__file__).parent).as_posix() in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty MLflow database to copy: creating one takes long."""
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Registry(f"sqlite:///{database}", "any").versions()
    return database.read_bytes()
