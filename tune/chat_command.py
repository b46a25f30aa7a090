"""`preftune chat` becomes the process that serves the page."""

import ipaddress
import os
import socket
import sys
from pathlib import Path

from rich.console import Console

from results.run import layout
from results.run.listing import list_runs, open_run
from search_spaces.errors import UserError
from search_spaces.locations import is_hub_id


def open_page(name: str | None, storage: str, port: int, host: str, console: Console) -> None:
    """Serve board and chat until Ctrl-C.

    Args:
        name: a run, a model's folder or Hub id, or None for the newest run.

    Raises:
        UserError: the port is taken, or neither a run nor a model has that name.
    """
    arguments = ["--storage", storage]
    if name is None or (Path(storage) / name).is_dir() or (Path(name) / layout.INFO).is_file():
        if name is not None or list_runs(storage):
            arguments += ["--run", str(open_run(name, storage).folder)]
    else:
        _check_model(name, storage)
        arguments += ["--model", name]
    bound, port = _free(host, port)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    lines = [f"chat at {url} (end it with Ctrl-C)"]
    address = ipaddress.ip_address(bound)
    if not address.is_loopback:
        at = "any address of this machine" if address.is_unspecified else bound
        lines.append(
            f"The page has no password: whoever reaches {at} can read the runs in {storage}, chat "
            "and vote. Leave --host out to keep the page to this machine."
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()
    # This process becomes the page instead of waiting for it: its signals reach the page.
    page = [sys.executable, "-m", "serve.launch", host, str(port), *arguments]
    os.execv(sys.executable, page)


def _check_model(name: str, storage: str) -> None:
    """Refuse a name that is neither a run nor a model, before a page opens that only says so."""
    if (Path(os.path.expanduser(name)) / "config.json").is_file():
        return
    unknown = ""
    if is_hub_id(name):
        # Most names without an owner are misspelled runs; a few old models have no owner either.
        unknown = "" if "/" in name else _unknown(name)
        if not unknown:
            return
    runs = ", ".join(run.name for run in list_runs(storage)[:5]) or "none"
    raise UserError(
        f"{name!r} is neither a run nor a model: the runs in {storage} are {runs}; a model is a "
        f"folder with a config.json, or a Hub id such as owner/name{unknown}"
    )


def _unknown(name: str) -> str:
    """Return why a name without an owner is not a model of the Hub, or nothing where it is one."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return ""
    try:
        HfApi().model_info(name, timeout=10)
    except GatedRepoError:
        return ""  # it exists, and loading it says what to do
    except HfHubHTTPError as error:
        # Without a login the Hub answers 401 for what does not exist and for what is private.
        if error.response.status_code in (401, 404):
            return f", and the Hub has no model {name!r}"
    except (HTTPError, OfflineModeIsEnabled):
        pass
    else:
        return ""
    return f", and the Hub cannot be asked for {name!r} now"


def _free(host: str, port: int) -> tuple[str, int]:
    """Return the numeric address and the port to listen at; for port 0, a free one.

    Raises:
        UserError: the address is not this machine's, or the port is taken.
    """
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            # As the server itself will: a port whose last connections are dying is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((place[0], port, *place[2:]))  # a name look-up cuts 99999 to 16 bits
            bound = probe.getsockname()
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"cannot listen at {host}:{port} ({error}): choose another --port, 0 for any, or an "
            "address of this machine as --host"
        ) from error
    return str(bound[0]).partition("%")[0], int(bound[1])
