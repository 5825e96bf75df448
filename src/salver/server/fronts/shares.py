"""What of a configuration each front gets, so that all together do as their user wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from salver.config import ModelConfig, ServerConfig


def share(config: ModelConfig, num_fronts: int, num_cores: int) -> ModelConfig:
    """A model's configuration in each of several fronts, so that together they are as configured:
    its instances and its queue are divided, at least one for each, and so are the machine's cores.
    """
    replace, instances, queue = msgspec.structs.replace, config.instances, config.queue
    count = _part(instances.count, num_fronts)
    threads = instances.threads or max(1, num_cores // (num_fronts * max(count, 1)))
    return replace(
        config,
        instances=replace(instances, count=count, threads=threads),
        queue=replace(queue, max_calls=_part(queue.max_calls, num_fronts)),
    )


def share_server(config: ServerConfig) -> ServerConfig:
    """The server's configuration in each of its fronts: its connections are divided, at least one
    for each.
    """
    limits = config.limits
    part = _part(limits.connections, config.processes)
    shared = msgspec.structs.replace(limits, connections=part)
    return msgspec.structs.replace(config, limits=shared)


def num_processes(config: ServerConfig) -> int:
    """How many serve: the fronts, and the host, whose index is the last."""
    return config.processes + 1


def _part(whole: int, num_fronts: int) -> int:
    return -(-whole // num_fronts)
