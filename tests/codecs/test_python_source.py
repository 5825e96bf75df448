"""What a Python file says of its model, without being run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from salver.codecs.python_source import candidates, declared
from salver.config import Batching, ModelConfig
from salver.errors import LoadFailed

if TYPE_CHECKING:
    from pathlib import Path

    from salver.codecs.python_source import Declared

CLASS = "class {}:\n    def predict(self, x: int) -> int: ...\n"


def read(folder: Path, code: str, **config: Any) -> Declared:
    """What `code` says, which would fail if it were run."""
    (folder / "m.py").write_text("import salver\n" + code + "raise SystemExit\n")
    file = folder / "m.py"
    return declared(candidates(file), file, ModelConfig(**config))


def marked(options: str) -> str:
    return f"@salver.model({options})\n" + CLASS.format("A")


def test_literals_of_the_decorator_fill_the_configuration(tmp_path: Path) -> None:
    code = marked(
        'name="iris", description="d", labels=["a", "b"], example=({"w": (1, 2.5)},), max_batch=16,'
        'device="cuda:1", idempotent=True, thread_safe=True'
    )
    found = read(tmp_path, code, batching=Batching(delay_ms=2))
    assert (found.target, found.unread) == ("A", [])
    assert found.config == ModelConfig(
        name="iris",
        description="d",
        labels=("a", "b"),
        example=[{"w": [1, 2.5]}],
        batching=Batching(max_size=16, delay_ms=2),
        device="cuda:1",
        idempotent=True,
    )


def test_the_configuration_has_the_last_word(tmp_path: Path) -> None:
    config = {
        "name": "mine",
        "labels": ("x",),
        "example": 0,
        "idempotent": False,
        "batching": Batching(max_size=32),
    }
    code = marked('name="his", labels=["a"], example=1, idempotent=True, max_batch=16')
    assert read(tmp_path, code, **config).config == ModelConfig(**config)


def test_what_is_no_literal_is_not_read_and_said_where_it_matters(tmp_path: Path) -> None:
    found = read(tmp_path, marked("labels=LABELS,\n name=f(),\n example=[0] * 4, **more"))
    assert found.config == ModelConfig()
    assert found.unread == [
        f"m.py:{line}: @salver.model: {key} is no plain literal and is not read; write it out, or "
        "set it in model.yaml"
        for line, key in ((3, "name"), (4, "example"))
    ]
    assert read(tmp_path, marked("name=f()"), name="mine").unread == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("\nnme='x'", "m.py:3: @salver.model takes no 'nme'. Did you mean 'name'?"),
        ("nme=f()", "m.py:2: @salver.model takes no 'nme'"),
        ("name=1", "m.py:2: @salver.model: name: Expected `str`, got `int`"),
        ("name='a',\nlabels='ab'", "m.py:3: @salver.model: labels: Expected `array`"),
        ("max_batch=-1", "max_batch: Expected `int` >= 0"),
        ("example=1j", "example: Encoding objects of type complex is unsupported"),
        (r"description='\ud800'", "description: "),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        read(tmp_path, marked(options))
    assert message in caught.value.message


def test_of_several_classes_the_chosen_one_speaks(tmp_path: Path) -> None:
    code = CLASS.format("B") + marked('name="a"')
    assert read(tmp_path, code).config.name == "a"
    assert read(tmp_path, code, class_name="B").config.name == ""
    assert read(tmp_path, code, class_name="Made").target == "Made"


def test_several_that_are_meant_are_refused(tmp_path: Path) -> None:
    other = marked("name='b'").replace("class A", "class B")
    with pytest.raises(
        LoadFailed, match=r"several models: A, B; choose one with --class or class_name$"
    ):
        read(tmp_path, marked("name='a'") + other)
    with pytest.raises(LoadFailed, match=r"or mark it with @salver\.model$"):
        read(tmp_path, CLASS.format("A") + CLASS.format("B"))


@pytest.mark.parametrize("code", ["class A(:\n", "-" * 100_000 + "1\n", "'\0'\n"])
def test_code_that_cannot_be_read_is_refused(tmp_path: Path, code: str) -> None:
    with pytest.raises(LoadFailed, match=r"^m\.py"):
        read(tmp_path, code)


def test_a_folder_is_no_code(tmp_path: Path) -> None:
    (tmp_path / "m.py").mkdir()
    with pytest.raises(LoadFailed, match=r"m\.py cannot be read: Is a directory"):
        candidates(tmp_path / "m.py")


@pytest.mark.parametrize(
    "mark", ["import salver as s\n@s.model", "from salver import model as m\n@m"]
)
def test_however_it_is_imported(tmp_path: Path, mark: str) -> None:
    assert read(tmp_path, f"{mark}(name='iris')\n{CLASS.format('A')}").config.name == "iris"
