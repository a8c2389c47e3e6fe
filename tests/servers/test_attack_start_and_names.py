"""What a governed server starts with, whom it takes for an officer, and what it tells."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from flask import Flask

from infra.governed.app import _check_options, check_start
from infra.governed.identity import current_user, require_officer
from infra.governed.settings import Settings
from lineage.digests import LineageError
from lineage.ledger import Ledger
from tests.servers.governed import settings


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a server in a folder."""
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    for name, value in settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def options(**given: object) -> click.Context:
    context = click.Context(click.Command("server"))
    context.params = {"serve_artifacts": True, **given}
    return context


@pytest.mark.parametrize("destination", ["{}", "{}/keys", "file://{}", "{}/channel", "{}/witness", "{}/mark.writes"])
def test_keys_ledger_and_mark_inside_what_is_served_as_artifacts(started: Path, destination: str) -> None:
    # HIGH: GET /api/2.0/mlflow-artifacts/artifacts/keys/promotion.pem answers with the private key, and
    # PUT …/mark.json writes the mark.
    with options(artifacts_destination=destination.format(started)), pytest.raises(LineageError):
        check_start()


@pytest.mark.parametrize(
    "given",
    [
        {"allowed_hosts": "*"},
        {"cors_allowed_origins": "*"},
        {"cors_allowed_origins": "https://a.example,*"},
        {"cors_allowed_origins": "http*"},
    ],
)
def test_options_by_which_any_website_acts_for_its_visitors(given: dict[str, str]) -> None:
    # MEDIUM: as --disable-security-middleware, which is refused.
    with pytest.raises(LineageError):
        _check_options(given)


@pytest.mark.parametrize("variable", ["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "MLFLOW_SERVER_ALLOWED_HOSTS"])
def test_variables_by_which_any_website_acts_for_its_visitors(
    started: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "*")
    with options(), pytest.raises(LineageError):
        check_start()


@pytest.mark.parametrize("name", ["olga\xa0", "\xa0olga", "olga\x85", "olga\x1f"])
def test_another_user_whose_name_ends_in_a_space_of_unicodes_is_no_officer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # LOW: it needs a proxy that writes names as Latin-1.
    for variable, value in settings(tmp_path, authentication="header").items():
        monkeypatch.setenv(variable, value)
    known = Settings.read()
    with (
        Flask("proxied").test_request_context(environ_base={"HTTP_X_USER": name}),
        pytest.raises(LineageError),
    ):
        require_officer(known, current_user(known), "withdraw")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://127.0.0.1:1/m?user=u&password=secret",
        "postgresql+psycopg:///m?host=127.0.0.1&port=1&password=secret",
    ],
)
def test_a_password_in_the_query_of_the_ledgers_url_is_not_told(url: str) -> None:
    # MEDIUM: this error is what every route answers while the database is away, and what the command says.
    with pytest.raises(LineageError) as told:
        Ledger.open(url).refresh()
    assert "secret" not in str(told.value)
