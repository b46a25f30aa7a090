"""What `preftune chat` becomes and says: who can reach the page, and on which run it opens."""

import os
import socket
from pathlib import Path

import pytest
from rich.console import Console
from run_folder import write_run

from search_spaces.errors import UserError
from tune.chat_command import open_page


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of the process that the command becomes."""
    line: list[str] = []
    monkeypatch.setattr(os, "execv", lambda executable, arguments: line.extend(arguments))
    return line


def printed(storage: Path, host: str, name: str | None = None) -> str:
    console = Console(width=60, force_terminal=False)
    with console.capture() as capture:
        open_page(name, str(storage), 0, host, console)
    return capture.get()


def test_page_on_this_machine_alone_says_its_address(tmp_path: Path, process: list[str]) -> None:
    folder = write_run(tmp_path, "won")
    for host in ("127.0.0.1", "localhost"):
        process.clear()
        text = printed(tmp_path, host)
        assert process[2:4] == ["serve.launch", host]
        assert process[5:] == ["--storage", str(tmp_path), "--run", str(folder)]
        assert text == f"chat at http://{host}:{process[4]} (end it with Ctrl-C)\n"


def lan_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no other address than loopback")
        return str(probe.getsockname()[0])


@pytest.mark.parametrize("kind", ["every address", "every address, IPv6", "one address"])
def test_page_that_others_reach_says_so(tmp_path: Path, process: list[str], kind: str) -> None:
    write_run(tmp_path, "won")
    host = {"every address": "0.0.0.0", "every address, IPv6": "::"}.get(kind) or lan_address()
    if ":" in host and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    first, second = printed(tmp_path, host).splitlines()
    assert first.startswith("chat at http://[::]:" if ":" in host else f"chat at http://{host}:")
    assert "no password" in second and str(tmp_path) in second and "Leave --host out" in second
    assert ("any address of this machine" if "every" in kind else host) in second


def test_port_beyond_all_ports_is_not_cut_to_sixteen_bits(tmp_path: Path) -> None:
    write_run(tmp_path, "won")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:99999 .*choose another --port"):
        open_page(None, str(tmp_path), 99999, "127.0.0.1", Console())


def test_model_is_passed_on_to_the_page(tmp_path: Path, process: list[str]) -> None:
    printed(tmp_path, "127.0.0.1", name="owner/model")
    assert process[5:] == ["--storage", str(tmp_path), "--model", "owner/model"]
