"""Serves the explorer of a run on the loopback interface until it is interrupted."""

from __future__ import annotations

import errno
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn

from ..artifact import lock
from ..errors import ArtifactError, UsageError
from .opened import FOLDER, check_run, open_run

HOST = "127.0.0.1"
PORT = 8765


def serve(
    path: Path,
    *,
    port: int = PORT,
    browser: bool = True,
    corpus: str | None = None,
    model: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Opens a run and serves it; returns when it is interrupted.

    Args:
        port: of the loopback interface; 0 takes a free one.
        browser: whether a browser is opened at the address.
        corpus: where the run's corpus lies now, if it has moved.
        model: where the run's model lies now, if it has moved.
        say: told the address and what is missing.
    Raises: UsageError: there is no such run, or the port is in use. ArtifactError: the run is being explored already.
    """
    from .app import make_app
    from .guard import Guard

    check_run(path)
    listener = _listen(port)
    with listener:
        try:
            with lock(path / FOLDER / FOLDER):
                say(f"opening {path} ...")
                run = open_run(path, corpus=corpus, model=model)
                for gap in run.gaps:
                    say(gap)
                app = make_app(run)
                guard = Guard(app, listener.getsockname()[1])

                def announce() -> None:
                    say(f"exploring {run.title} at {guard.address}")
                    say("stop with Ctrl-C")
                    if browser:
                        threading.Thread(target=webbrowser.open, args=[guard.address], daemon=True).start()

                config = uvicorn.Config(
                    guard,
                    log_level="error",
                    access_log=False,
                    server_header=False,
                    timeout_graceful_shutdown=2,
                    limit_concurrency=64,
                )
                server = _Server(config, announce)
                app.state.closing = lambda: server.should_exit
                with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has ended in order
                    server.run(sockets=[listener])
        except ArtifactError as error:
            if "another process is working" in str(error):
                raise ArtifactError(f"{path} is being explored by another process; use that one, or stop it") from None
            raise


class _Server(uvicorn.Server):
    """A server that says when it can be asked and stopped: what is said before may be answered too early."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._announce()


def _listen(port: int) -> socket.socket:
    """A socket on the loopback interface. Raises: UsageError: the port is in use or not to be had."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UsageError(f"port {port} is in use; give another with --port, or 0 for any free one") from None
        raise UsageError(f"port {port} cannot be had ({error}); give another with --port") from None
    return listener
