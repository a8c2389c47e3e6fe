"""Commands of `docs/operate.md` that a governed server answers."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from pipelines.cli import app
from tests.runs import AVATARS
from tests.servers.governed import EDITOR, OFFICER, Server, signed_in


def test_an_officer_sets_the_policy_as_documented(basic_server: Server, tmp_path: Path) -> None:
    (tmp_path / "retrain.yaml").write_text(f"extends: {AVATARS / 'retrain.yaml'}\nregistry: {{model_name: operated}}\n")
    (tmp_path / "policy.yaml").write_text("extends: retrain.yaml\nevaluation: {limit: 64}\n")
    command = [
        "policy",
        "set",
        "--server",
        basic_server.url,
        "--config",
        str(tmp_path / "policy.yaml"),
        "--reason",
        "why",
    ]
    with signed_in(basic_server, EDITOR):
        refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1 and "operated" not in basic_server.ledger().state.policies, refused.output
    with signed_in(basic_server, OFFICER):
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    pinned = basic_server.ledger().state.policies["operated"]
    assert (pinned.user, pinned.reason, pinned.evaluation["limit"]) == (OFFICER, "why", 64)
