from __future__ import annotations

import socket

import pytest

from salver.config import ServerConfig
from salver.errors import ConfigError
from salver.server.listen import listening_sockets


def test_a_host_that_is_none() -> None:
    with pytest.raises(ConfigError, match="cannot listen on no host: no such host"):
        listening_sockets(ServerConfig(host="no host", port=0), 1)


def test_clients_that_vanish_are_noticed() -> None:
    (listener,) = listening_sockets(ServerConfig(port=0), 1)
    with listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


def test_a_port_that_is_taken() -> None:
    (listener,) = listening_sockets(ServerConfig(port=0), 1)
    with listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} is in use \(pid \d+\)"):
            listening_sockets(ServerConfig(port=port), 1)
