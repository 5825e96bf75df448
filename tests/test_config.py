from __future__ import annotations

import pytest

from salver.config import ModelConfig, parse
from salver.errors import ConfigError


def test_a_default_priority_beyond_the_last_is_refused() -> None:
    queue = "queue:\n  priority_levels: 2\n  default_priority: {}"
    assert parse(queue.format(2), ModelConfig, "model.yaml").queue.default_priority == 2
    with pytest.raises(ConfigError, match=r"yaml:3: queue\.default_priority: is 3.* is 2"):
        parse(queue.format(3), ModelConfig, "model.yaml")
