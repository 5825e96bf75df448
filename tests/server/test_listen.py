from __future__ import annotations

import pytest

from salver.config import ServerConfig
from salver.errors import ConfigError
from salver.server.listen import listening_sockets


def test_a_host_that_is_none() -> None:
    with pytest.raises(ConfigError, match="cannot listen on no host: no such host"):
        listening_sockets(ServerConfig(host="no host", port=0), 1)


def test_a_port_that_is_taken() -> None:
    (listener,) = listening_sockets(ServerConfig(port=0), 1)
    with listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} is in use \(pid \d+\)"):
            listening_sockets(ServerConfig(port=port), 1)
