"""Who comes second to an address is told at once, whether the first one serves or still loads."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from serving_house import open_house

from prismatic.commands.deploy import DeployConfig, deploy
from prismatic.serving.address import open_socket
from prismatic.serving.healthcheck import check

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nobody can bind twice")


@on_linux
@pytest.mark.parametrize(
    ("first", "second"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("localhost", "127.0.0.1")]
)
def test_an_address_of_a_server_that_loads_is_taken(first: str, second: str) -> None:
    loading = open_socket(first, 0)
    port = loading.getsockname()[1]
    assert check(port) is None  # nothing listens: still loading
    with pytest.raises(ValueError, match=f"--host {second} --port {port}: another server, which still loads its policy, has this address"):
        open_socket(second, port)
    with pytest.raises(ValueError, match="which still loads its policy"):
        deploy(DeployConfig(pretrained_checkpoint="no such folder", host=second, port=port))
    loading.close()
    open_socket(second, port).close()


def test_an_address_of_a_server_that_serves_is_taken_and_free_behind_it() -> None:
    with open_house() as house:
        assert house.request("/healthz")[0] == 200
        with pytest.raises(ValueError, match=f"--port {house.port}: .*choose another address or stop the server that has it"):
            open_socket("127.0.0.1", house.port)
        port = house.port
    again = open_socket("127.0.0.1", port)  # its connections are remembered for a minute
    again.listen()
    again.close()


@pytest.mark.parametrize("host", ["..", "256.1.1.1", "x" * 64])
def test_an_address_that_is_none_is_named(host: str) -> None:
    with pytest.raises(ValueError, match=rf"--host {re.escape(host)} --port 8777: .*; choose another address"):
        open_socket(host, 8777)


@on_linux
def test_who_listens_first_has_the_address() -> None:
    loading = open_socket("127.0.0.1", 0)
    address = loading.getsockname()
    with socket.socket() as other:  # of a program that knows nothing of our names
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(address)
        other.listen()
        with pytest.raises(ValueError, match=f"--host 127.0.0.1 --port {address[1]}: .*in use; choose another address"):
            loading.listen()
    loading.close()


@on_linux
def test_a_server_that_is_killed_while_it_loads_leaves_nothing_behind() -> None:
    text = "from prismatic.serving.address import open_socket\n"
    text += "found = open_socket('127.0.0.1', 0); print(found.getsockname()[1], flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with pytest.raises(ValueError, match="which still loads its policy"):
            open_socket("127.0.0.1", port)
        process.kill()
        process.wait(30)
        open_socket("127.0.0.1", port).close()
