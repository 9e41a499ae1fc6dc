"""Mode `studio`: a page in the browser on a run, or on several: --workdir runs/a,runs/b.

    --workdir runs/digits                                       http://127.0.0.1:7860
    --workdir runs/digits --host 0.0.0.0 --auth users.txt       for others too, who have a password

Four tabs: Make makes pictures, seen as they arise; Edit makes anew what is painted over; Lab
changes one number and shows what it does; Look has the reports of the runs side by side. The page
needs no network, asks nothing of other machines, and serves no file but those that it made or was
sent. It is an extra: pip install 'diffusion_jax[studio]'.
"""
from __future__ import annotations

import hmac
import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.modes.options import Weights, group
from diffusion_jax.pipelines.jobs import Device
from diffusion_jax.pipelines.pipeline import Pipeline, pipeline
from diffusion_jax.studio import bounds
from diffusion_jax.studio.desk import Desk

HERE = ("127.0.0.1", "localhost")
"""Addresses that no other machine reaches."""
PATIENCE = 10
"""Seconds, at most, for which a page that is ready waits until the first picture's programs are."""


@dataclass(frozen=True)
class Options:
    """Where the page is, and who may see it."""

    host: str = option(
        "127.0.0.1",
        "Address to listen at; one that other machines reach needs --password or --auth",
    )
    port: int = option(7860, "Port to listen at; 0 for any that is free", least=0, most=65535)
    password: str | None = option(
        None, "Password of the page, with any user name; lists of processes show it, not --auth"
    )
    auth: str | None = option(None, "File of user:password lines, who may see the page")
    weights: Weights = group(Weights)

    def __post_init__(self):
        check_options(self)
        if self.password is not None and self.auth is not None:
            raise ConfigError("give --password or --auth, not both")
        if self.password == "":
            raise ConfigError("--password is empty: give one")
        if self.host not in HERE and self.password is None and self.auth is None:
            needs = "give --password, or --auth with a file of user:password lines"
            raise ConfigError(f"--host {self.host} lets other machines in: {needs}")


def run(options: Options, workdir: str) -> None:
    """Serves the page until it is stopped.

    Args:
      options: where, and to whom.
      workdir: the folder of a run that makes pictures, or several with commas between them.

    Raises:
      ConfigError: gradio is missing, a folder holds nothing that the studio can ask for pictures,
        or a file of passwords that does not read.
      OSError: the port is taken.
    """
    if find_spec("gradio") is None:
        raise ConfigError("mode studio needs gradio: pip install 'diffusion_jax[studio]'")
    passwords = allowed(options)
    desk = Desk(opened(workdir, options.weights))
    # A folder of its own: whatever lies in gradio's is served.
    with tempfile.TemporaryDirectory(prefix="diffusion_jax-studio-") as folder:
        settle(folder)
        device = Device()
        # What the first picture needs is compiled while gradio is imported and the page built.
        warming = threading.Thread(target=desk.warm, args=(device,), daemon=True)
        warming.start()
        # Not before: gradio reads its settings while it is imported.
        from diffusion_jax.studio import page
        from diffusion_jax.studio.calls import Calls

        # gradio itself does so at the first event, when somebody waits.
        import_module("matplotlib.pyplot")
        blocks = page.build(Calls(desk, device)).queue(max_size=bounds.WAITING)
        port = options.port or free_port(options.host)
        blocks.launch(**door(options.host, port, passwords), **page.LOOKS_LIKE)
        warming.join(PATIENCE)
        address = f"http://{options.host}:{port}"
        print(f"studio of {', '.join(desk.pipes)}: {address} (Ctrl-C ends it)", flush=True)
        # A signal ends it here. The server's threads end with the process: to wait for them would
        # outlast the time that is left.
        while True:
            time.sleep(1)


def opened(workdir: str, weights: Weights) -> dict[str, Pipeline]:
    """The runs of a --workdir, by the names of their folders, or by their paths where two have one
    name."""
    parts = [part.strip() for part in workdir.split(",") if part.strip()]
    folders = [os.path.expanduser(part) for part in parts]
    if Path(workdir).is_dir():  # a folder may have a comma in its name
        folders = [workdir]
    names = [Path(folder).resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = folders
    return {
        name: pipeline(folder, which=weights.which, step=weights.step, lora=weights.loras)
        for name, folder in zip(names, folders, strict=True)
    }


def allowed(options: Options) -> dict[str, str] | None:
    """Passwords by user, '' for any; None where nobody is asked for one."""
    if options.password is not None:
        return {"": options.password}
    if options.auth is None:
        return None
    file = Path(options.auth).expanduser()
    lines = file.read_text(encoding="utf-8").splitlines()
    pairs = [line.partition(":") for line in lines if line.strip()]
    if not pairs or not all(user and password for user, _, password in pairs):
        raise ConfigError(
            f"--auth {options.auth}: write a line user:password for each who may see the page"
        )
    return {user: password for user, _, password in pairs}


def checked(passwords: dict[str, str]) -> Callable[[str, str], bool]:
    """Whether a user has a password, in a time that does not tell how much of it is right."""

    def is_right(user: str, password: str) -> bool:
        wanted = passwords.get("", passwords.get(user))
        is_same = hmac.compare_digest(password.encode(), (wanted or "").encode())
        return is_same and wanted is not None

    return is_right


def settle(folder: str) -> None:
    """What gradio and Pillow are told before they are used: where files go, how large a picture may
    be, and to ask nobody."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]  # some of them would open folders, or the page to everybody
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    Image.MAX_IMAGE_PIXELS = bounds.PIXELS


def free_port(host: str) -> int:
    """A port that nobody listens at."""
    with socket.socket() as trial:
        trial.bind((host, 0))
        return trial.getsockname()[1]


def door(host: str, port: int, passwords: dict[str, str] | None) -> dict[str, Any]:
    """What `launch` is told so that nobody comes in by another way."""
    return dict(
        server_name=host,
        server_port=port,
        auth=None if passwords is None else checked(passwords),
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=False,
        allowed_paths=[],
        max_file_size=bounds.UPLOAD,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        strict_cors=True,
        footer_links=[],
        state_session_capacity=bounds.WAITING,
        app_kwargs={"middleware": [(Guard, (), {})]},
    )


class Guard:
    """Refuses what would have the server read elsewhere, and what is too large, before gradio sees
    it.

    gradio checks itself that a file which a client names is one that it was sent or made; an
    address it would fetch.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http" or scope["method"] == "HEAD":
            await self.app(scope, receive, send)
            return
        code, receive = await looked_at(scope, receive)
        if not code:
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": b"refused"})


async def looked_at(scope: Any, receive: Any) -> tuple[int, Any]:
    """(0 or the code of a refusal, what the application receives)."""
    headers = dict(scope["headers"])
    if re.search(r"(file|proxy)=/*\w+:", scope["path"]):
        return 403, receive
    length = headers.get(b"content-length", b"0")
    if scope["method"] == "POST" and (not length.isdigit() or int(length) > 2 * bounds.UPLOAD):
        return 413, receive
    if b"json" not in headers.get(b"content-type", b""):
        return 0, receive
    body, more = b"", True
    while more and len(body) <= 2 * bounds.UPLOAD:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if more or names_address(body):
        return 403, receive
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return messages.pop() if messages else await receive()

    return 0, again


def names_address(body: bytes) -> bool:
    """Whether a file that a request names is an address; true too for what is no JSON, which
    nothing here needs."""
    try:
        entries = [json.loads(body or b"{}")]
    except (ValueError, RecursionError):
        return True
    for entry in entries:  # grows as it goes: no recursion, which deep input would exhaust
        if isinstance(entry, dict) and re.match(r"\s*\w+:", str(entry.get("path", ""))):
            return True
        if isinstance(entry, dict | list):
            entries += entry.values() if isinstance(entry, dict) else entry
    return False
