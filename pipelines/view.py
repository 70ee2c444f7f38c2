"""`pv3d view`: a page on which a model's portraits are turned and played."""

from __future__ import annotations

import contextlib
import errno
import io
import ipaddress
import logging
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra import interrupts
from pipelines.publish import MARKED, Marking, ready

if TYPE_CHECKING:
    from pipelines.api import Model
    from pipelines.view_page import Page
    from pipelines.view_renderer import Renderer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A server while it runs."""

    url: str
    renderer: Renderer
    pages: dict[int, Page] = field(default_factory=dict)
    """Those that are open, by client"""


def view(
    name: str | None, *, tracking: str, host: str, port: int, tell: Callable[[str], None],
    browser: bool = False, marking: Marking = MARKED,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Serve until Ctrl-C. `name`: as `open_model` takes it; `tell` gets the address once it answers.

    Raises ValueError of one line for a model that there is not, and for a place that cannot be listened at.
    """
    try:
        import viser  # noqa: F401
    except ImportError:
        raise ValueError("the viewer needs viser; pip install 'pv3d-pipeline[view]'") from None
    from pipelines.api import Model

    port = free_port(host, port)
    ready(marking)
    model = Model.load(name, tracking)
    with served(model, host, port, marking) as server:
        if not loopback(host):
            log.warning("listening at %s: anybody who reaches this machine can look and load files", host)
        try:
            tell(f"{model.name or 'the model'} at {server.url} (Ctrl-C ends it)")
            if browser:
                webbrowser.open(server.url)
            threading.Event().wait()
        except KeyboardInterrupt:
            if interrupts.last() != signal.SIGINT:
                raise
    return {"url": server.url, "model": model.name}, "closed"


@contextlib.contextmanager
def served(model: Model, host: str, port: int, marking: Marking = MARKED) -> Iterator[Served]:
    """A page of the model at an address while the context lasts."""
    import viser

    from pipelines.view_page import Page
    from pipelines.view_renderer import Renderer

    found = Served(f"http://{f'[{host}]' if ':' in host else host}:{port}", Renderer(model))
    pages = found.pages
    logging.getLogger("websockets").setLevel(logging.WARNING)
    logging.getLogger("websockets.server").addFilter(_of_a_page)
    with contextlib.redirect_stdout(io.StringIO()):      # it draws a box, and knows no other way to be told
        server = viser.ViserServer(host=host, port=port, label="pv3d", verbose=False)
    try:
        if server.get_port() != port:        # somebody was quicker, and viser took the next one
            raise ValueError(f"--port {port}: is in use; give another")
        server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        server.gui.main_panel.dock_right()
        server.scene.set_up_direction("+y")
        start = server.initial_camera
        start.position, start.look_at = (0.0, 0.0, model.opened.cameras.RADIUS), (0.0, 0.0, 0.0)
        start.up = (0.0, 1.0, 0.0)

        @server.on_client_connect
        def _(client: viser.ClientHandle) -> None:
            pages[client.client_id] = Page(client, found.renderer, marking)

        @server.on_client_disconnect
        def _(client: viser.ClientHandle) -> None:
            page = pages.pop(client.client_id, None)
            if page is not None:
                page.close()

        yield found
    finally:
        for page in list(pages.values()):
            page.close()
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()


def _of_a_page(record: logging.LogRecord) -> bool:
    """Not of a visitor who speaks no HTTP: it has a traceback, and anybody's port scan is one."""
    return record.msg != "opening handshake failed"


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises ValueError where nobody can listen."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            found: int = probe.getsockname()[1]
            return found
    except (socket.gaierror, UnicodeError):
        raise ValueError(f"--host {host}: is no address of this machine; give 127.0.0.1") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"--port {port}: is in use; give another, or 0 for any that is free") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise ValueError(f"--host {host}: is no address of this machine; give 127.0.0.1") from None
        raise ValueError(f"--port {port}: cannot be listened at ({error.strerror}); give another") from None


def loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
