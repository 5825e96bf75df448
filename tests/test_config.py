from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from salver.config import (
    Batching,
    Limits,
    ModelConfig,
    ServerConfig,
    combine,
    from_environment,
    parse,
    read,
    walk,
)
from salver.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nane: x", "m.yaml:1: unknown key 'nane'. Did you mean 'name'? There are: name,"),
        (
            "name: x\nbatching:\n  max_sise: 3\n",
            "m.yaml:3: unknown key 'max_sise'. Did you mean 'max_size'? There are: max_size,",
        ),
        ("batching:\n  delay_ms: -1\n", "m.yaml:2: batching.delay_ms: "),
        ("labels:\n  - a\n  - 5\n", "m.yaml:3: labels[1]: "),
        ("inputs:\n  - {name: x, dtype: FP32, shap: [1]}\n", "m.yaml:2: unknown key 'shap'."),
        ("name: [x\n", "m.yaml:1: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text, ModelConfig, "m.yaml")
    assert raised.value.message.startswith(message)


def test_an_empty_file_says_nothing() -> None:
    assert parse("# nothing yet\n", ModelConfig, "m.yaml") == ModelConfig()


def test_numbers_are_names_of_versions() -> None:
    text = "version: 7\nversions: [1, b]\nversion_labels: {stable: 1}\n"
    found = parse(text, ModelConfig, "m.yaml")
    assert (found.version, found.versions) == ("7", ("1", "b"))
    assert found.version_labels == {"stable": "1"}
    assert parse("versions: 2", ModelConfig, "m.yaml").versions == 2


def test_a_file_that_is_not_there_and_one_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "salver.yaml"
    assert read(file, ServerConfig) == ServerConfig()
    file.write_bytes(b"host: \xff")
    with pytest.raises(ConfigError, match=r"^salver\.yaml: byte 6 is not UTF-8$"):
        read(file, ServerConfig)


def test_later_layers_win_and_text_becomes_what_the_option_takes() -> None:
    base = ServerConfig(port=1, host="::1")
    found = combine(base, {"port": "2", "limits.streams": "9"}, {"port": "3", "trust": True})
    assert found == ServerConfig(port=3, host="::1", trust=True, limits=Limits(streams=9))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"port": "x"}, r"^port: expected a whole number, got 'x'$"),
        ({"port": 70000}, r"^port: expected a whole number <= 65535, got 70000$"),
        ({"mode": "pol"}, r"^mode: expected one of poll, explicit, none, got 'pol'$"),
        ({"limits.streams": 0}, r"^limits\.streams: expected a whole number >= 1, got 0$"),
    ],
)
def test_a_value_that_an_option_does_not_take(layer: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        combine(ServerConfig(), layer)


def test_variables_are_options_in_capitals() -> None:
    environ = {
        "SALVER_HOST": "::",
        "SALVER_LIMITS__STREAMS": "4",
        "SALVER_NO_SUCH": "x",
        "PORT": "1",
    }
    assert from_environment(environ) == {"host": "::", "limits.streams": "4"}


@pytest.mark.parametrize("struct", [ServerConfig, ModelConfig])
def test_every_option_has_a_name_of_its_own_and_help(struct: type[Any]) -> None:
    options = list(walk(struct))
    assert len({name for name, *_ in options}) == len(options)
    assert all(meta.description.endswith(".") for _, _, meta, _ in options)


def test_options_of_groups_have_dotted_names_and_their_own_defaults() -> None:
    defaults = {name: default for name, _, _, default in walk(ModelConfig)}
    assert defaults["batching.delay_ms"] == Batching().delay_ms
    assert "batching" not in defaults


def test_a_default_priority_beyond_the_last_is_refused() -> None:
    queue = "queue:\n  priority_levels: 2\n  default_priority: {}"
    assert parse(queue.format(2), ModelConfig, "model.yaml").queue.default_priority == 2
    with pytest.raises(ConfigError, match=r"yaml:3: queue\.default_priority: is 3.* is 2"):
        parse(queue.format(3), ModelConfig, "model.yaml")
