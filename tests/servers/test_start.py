OTHER = {
    "TRIPTYCH_LEDGER": ("", "TRIPTYCH_LEDGER: is not set"),
    "TRIPTYCH_ROOT": ("0" * 64, "was opened by another root key"),
    "TRIPTYCH_PROMOTION_KEY": ("file2:/nowhere/key.pem", "there is no usable key at file2:/nowhere/key.pem"),
    "TRIPTYCH_AUTHENTICATION": ("header", "TRIPTYCH_USER_HEADER goes with"),
    "TRIPTYCH_OFFICERS": ("olga", "needs authentication"),
    "TRIPTYCH_ALLOWED_HOSTS": ("*", "must name the hosts"),
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": ("true", "jobs run users' code"),
}
"""Variable -> a wrong value, and what the server says to it."""


@pytest.mark.parametrize("variable", OTHER)
def test_a_wrong_setting_is_named(tmp_path: Path, variable: str) -> None:
    value, reason = OTHER[variable]
    environment = clean_environment() | settings(tmp_path) | {variable: value}
    line = [sys.executable, "-c", "import infra.governed.app"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("the governed server does not start: ") and reason in done.stderr


@pytest.mark.parametrize(
    ("option", "reason"),
    [("--no-serve-artifacts", "only what the server writes"), ("--gunicorn-opts=--preload", "works under uvicorn")],
)
def test_the_command_refuses_options_that_open_a_way_round(tmp_path: Path, option: str, reason: str) -> None:
    line = command(tmp_path, free_port(), 2, f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path), option)
    environment = clean_environment() | settings(tmp_path)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=180, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "the governed server does not start: " in done.stderr and reason in done.stderr
