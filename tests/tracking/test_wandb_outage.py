"""Weights & Biases out of reach: the run goes on offline, and what W&B itself refuses is an error.

Each service is on the loopback; nothing is sent anywhere else.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from interstack.commands.run_directory import _keep_wandb_id, _wandb_id
from interstack.errors import ConfigurationError
from interstack.tracking.loggers import WandbEventLogger
from interstack.tracking.wandb import finished_wandb, start_wandb
from tests.target_cache.cached_runs import fit_words
from tests.tracking.offline_wandb import Offline

KEY = "a" * 40
BUCKET = {
    "id": "x",
    "displayName": "run",
    "config": "{}",
    "project": {"id": "p", "name": "x", "entity": {"id": "e", "name": "me"}},
    "historyLineCount": 0,
}


@contextmanager
def refusing() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


@contextmanager
def serving(answer: Callable[[str], tuple[int, object]] | None) -> Iterator[str]:
    """A service that answers GraphQL queries by their text, or accepts and never answers."""
    ended = Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if answer is None:
                ended.wait(60)
                return
            query = json.loads(body)["query"] if self.path == "/graphql" else ""
            status, content = answer(query)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            ended.set()
            server.shutdown()


def accept(query: str) -> tuple[int, object]:
    """Let a run begin."""
    if "ResumeStatus" in query:
        return 200, {"data": {"model": None}}
    if "UpsertBucket" in query:
        bucket = BUCKET | {"name": "abc12345"}
        return 200, {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
    return 200, {"data": {}}


def refuse(query: str) -> tuple[int, object]:
    """Refuse the key."""
    del query
    return 403, {"errors": [{"message": "permission denied"}]}


Reach = Callable[[str], None]


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reach]:
    """Let W&B's client speak to an address, for a second; a fresh client, and after."""

    def speak_to(address: str) -> None:
        wandb.teardown()
        for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_QUIET", "WANDB_SILENT"):
            monkeypatch.delenv(name, raising=False)
        service = {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "WANDB_INIT_TIMEOUT": "1"}
        for name, value in service.items():
            monkeypatch.setenv(name, value)

    yield speak_to
    wandb.teardown()


def make_logger(directory: Path) -> WandbLogger:
    """A logger of a run with an id."""
    return WandbLogger(project="x", save_dir=directory, id="abc12345")


@pytest.mark.parametrize("service", [refusing, lambda: serving(None)], ids=["refuses", "silent"])
def test_a_run_continues_offline_under_its_id(
    service: Callable[[], Any], reach: Reach, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After one warning, which says how to send it; nothing is left of the attempt."""
    with service() as address:
        reach(address)
        logger = make_logger(tmp_path)
        with caplog.at_level(logging.INFO, "interstack"), finished_wandb():
            start_wandb([logger], "offline")
            logger.log_metrics({"loss": 1.0}, step=3)
        (warning,) = [
            each.message
            for each in caplog.records
            if each.levelno == logging.WARNING and each.name.startswith("interstack")
        ]
    assert logger.experiment.id == "abc12345"
    wandb.teardown()  # it has written everything then
    offline = Offline(tmp_path)
    assert offline.exit_code == 0
    assert [row["loss"] for row in offline.rows] == [1.0]
    assert f"wandb sync {offline.directory} sends it" in warning
    assert not list(tmp_path.glob("wandb/run-*"))


@pytest.mark.parametrize(
    ("environment", "limits"),
    [
        ({}, (20.0, 60.0)),
        ({"WANDB_INIT_TIMEOUT": "1", "WANDB_FINISH_TIMEOUT": "2"}, (1.0, 2.0)),
    ],
)
def test_a_run_waits_for_the_service_within_limits(
    environment: dict[str, str],
    limits: tuple[float, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By default 20 s at its beginning and 60 s at its end; the environment's own limits hold."""
    for name in ("WANDB_INIT_TIMEOUT", "WANDB_FINISH_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given: list[wandb.Settings] = []

    def begin(**arguments: Any) -> None:  # noqa: ANN401
        given.append(arguments["settings"])
        raise TimeoutError("nobody answers")

    monkeypatch.setattr(wandb, "init", begin)
    with pytest.raises(ConfigurationError, match="nobody answers"):
        start_wandb([make_logger(tmp_path)], "stop")
    settings = wandb.Settings()
    settings.update_from_env_vars(os.environ)
    settings.update_from_settings(given[0])
    assert (settings.init_timeout, settings.finish_timeout) == limits


def test_an_option_lets_an_outage_stop_the_run(reach: Reach, tmp_path: Path) -> None:
    """With the option's name."""
    with refusing() as address:
        reach(address)
        with pytest.raises(ConfigurationError, match=r"tracking\.wandb_outage"):
            start_wandb([make_logger(tmp_path)], "stop")


def test_what_the_service_refuses_is_an_error(reach: Reach, tmp_path: Path) -> None:
    """A key that is not its own is the user's to correct, also where an outage is not."""
    with serving(refuse) as address:
        reach(address)
        with pytest.raises(ConfigurationError, match=r"403.*correct that"), finished_wandb():
            start_wandb([make_logger(tmp_path)], "offline")


def test_an_outage_at_the_end_does_not_hold_the_run_up(
    reach: Reach,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It began online; what could not be sent is in its directory."""
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    with finished_wandb(), caplog.at_level(logging.INFO, "interstack"), ExitStack() as stack:
        reach(stack.enter_context(serving(accept)))
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "20")
        logger = make_logger(tmp_path)
        start_wandb([logger], "offline")
        assert not logger.experiment.offline
        logger.log_metrics({"loss": 1.0})
    logged = [each.message for each in caplog.records if each.name.startswith("interstack")]
    assert logged[0].endswith("/me/x/runs/abc12345")
    (directory,) = tmp_path.glob("wandb/run-*")
    assert f"wandb sync {directory} sends it" in logged[-1]


def test_a_fit_in_an_outage_is_whole_and_without_colours(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """In a file there is no terminal; a launcher's WANDB_RUN_ID is the run's id."""
    online = '[{"class_path": "WandbLogger", "init_args": {"project": "x", "save_dir": "."}}]'
    words = fit_words(tmp_path / "run", teacher_directory, f"--trainer.logger={online}")
    with refusing() as address:
        service = {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "WANDB_RUN_ID": "swept001"}
        unset = ("WANDB_MODE", "WANDB_QUIET", "WANDB_SILENT")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        done = subprocess.run(
            [sys.executable, "-m", "interstack.cli", *words],
            env=environment | service | {"WANDB_INIT_TIMEOUT": "1"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.count("can't be reached") == 1
    offline = Offline(tmp_path / "run")
    assert offline.directory.name.endswith("-swept001")
    assert offline.exit_code == 0
    assert sum("train/loss" in row for row in offline.rows) == 4
    assert (tmp_path / "run" / "wandb_id").read_text() == "swept001\n"


def test_a_launchers_id_takes_precedence_over_the_runs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stays the run's, where it is resumed without it."""
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    own = _wandb_id(tmp_path)
    assert own
    _keep_wandb_id(tmp_path, own)
    assert own == _wandb_id(tmp_path)
    assert own != _wandb_id(None)
    monkeypatch.setenv("WANDB_RUN_ID", "swept001")
    assert _wandb_id(tmp_path) == "swept001"
    _keep_wandb_id(tmp_path, "swept001")
    monkeypatch.delenv("WANDB_RUN_ID")
    assert _wandb_id(tmp_path) == "swept001"


@pytest.mark.parametrize(
    ("offline", "resumed", "known", "sent"),
    [
        (False, True, 11, [20]),  # what was logged in an outage
        (False, True, 29, []),
        (False, False, None, [10, 20]),  # it began in an outage
        (True, False, None, [10, 20]),
    ],
)
def test_a_resumed_run_sends_what_the_service_lacks(
    offline: bool, resumed: bool, known: int | None, sent: list[int]
) -> None:
    """Whether it is logged online or offline, before the cut and after it."""
    rows: list[int] = []
    summary = {} if known is None else {"trainer/global_step": known}
    run = SimpleNamespace(
        offline=offline,
        resumed=resumed,
        summary=summary,
        log=lambda row: rows.append(row["trainer/global_step"] + 1),
    )
    history = [{"kind": "point", "step": step, "train/loss": 1.0} for step in (10, 20)]
    logger: Any = SimpleNamespace(experiment=run)
    WandbEventLogger(logger).catch_up(history)
    assert rows == sent
