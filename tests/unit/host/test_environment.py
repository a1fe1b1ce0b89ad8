from __future__ import annotations

from dataflower.host.environment import visible


def test_secrets_stay_with_the_server() -> None:
    environ = {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": "/models",
        "HF_TOKEN": "x",
        "DATAFLOWER_API_KEYS": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "DATABASE_URL": "postgres://user:x@host",
        "LC_ALL": "C",
    }
    assert set(visible(environ)) == {"PATH", "OMP_NUM_THREADS", "HF_HOME", "LC_ALL"}


def test_what_was_asked_for_is_passed_on_secret_or_not() -> None:
    environ = {"OPENAI_API_KEY": "x", "MY_A": "1", "MY_B": "2", "OTHER": "3"}
    assert set(visible(environ, ("OPENAI_API_KEY", "MY_*"))) == {"OPENAI_API_KEY", "MY_A", "MY_B"}
