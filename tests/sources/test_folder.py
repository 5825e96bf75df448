from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from salver.errors import ConfigError, LoadFailed
from salver.sources import folder, layout
from salver.sources.folder import FolderSource, Place
from salver.testing import check_source
from salver.types import ModelRef

if TYPE_CHECKING:
    from pathlib import Path

    from salver.interfaces import VersionOnDisk


def put(root: Path, *names: str) -> None:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("content")


def scan(*paths: Path, **overrides: object) -> dict[str, VersionOnDisk]:
    found = FolderSource([Place(path) for path in paths], overrides).scan()
    return {f"{ref.name}:{ref.version}": version for ref, version in found.items()}


def files(found: dict[str, VersionOnDisk], root: Path) -> dict[str, str]:
    return {name: str(version.path.relative_to(root)) for name, version in found.items()}


def test_it_keeps_its_contract(tmp_path: Path) -> None:
    put(tmp_path / "a", "one.onnx", "two/model.onnx", "three/1/model.onnx", "three/2/model.onnx")
    put(tmp_path / "b", "model.onnx")
    (tmp_path / "a" / "three" / "model.yaml").write_text("versions: all")
    places = [Place(tmp_path / "a"), Place(tmp_path / "b")]
    lost = tmp_path / "lost"
    check_source(FolderSource(places, {}), lose=lambda: (tmp_path / "b").rename(lost))


def test_files_folders_and_repositories(tmp_path: Path) -> None:
    put(tmp_path, "one.onnx", "two/model.onnx", "three/1/model.onnx", "three/10/net.joblib")
    put(tmp_path, ".hidden/model.onnx", "_off/model.onnx", "README.txt", "notes.json", "empty/a.md")
    put(tmp_path, "four/net.onnx", "four/labels.txt")
    (tmp_path / "folder.onnx").mkdir()
    expected = {
        "four:1": "four/net.onnx",
        "one:1": "one.onnx",
        "three:10": "three/10/net.joblib",
        "two:1": "two/model.onnx",
    }
    assert files(scan(tmp_path), tmp_path) == expected
    assert files(scan(tmp_path / "two"), tmp_path) == {"two:1": "two/model.onnx"}
    assert files(scan(tmp_path / "one.onnx"), tmp_path) == {"one:1": "one.onnx"}


def test_a_folder_of_several_models_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "one/model.onnx", "both/a.onnx", "both/b.onnx", "data/a.json", "data/b.json")
    source = FolderSource([Place(tmp_path)], {})
    for _ in range(2):
        assert [ref.name for ref in source.scan()] == ["one"]
    assert [record.message for record in caplog.records] == [
        "both is not served: 'both' holds a.onnx, b.onnx: name one as `file:` in model.yaml",
        "there is no model in data",
    ]
    (tmp_path / "both" / "model.yaml").write_text("file: b.onnx")
    assert {ref.name: version.path.name for ref, version in source.scan().items()} == {
        "both": "b.onnx",
        "one": "model.onnx",
    }


def test_what_has_no_name_or_is_no_file_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "one.onnx", os.fsdecode(b"caf\xe9/model.onnx"), os.fsdecode(b"\xe9.onnx"), "b.py")
    os.mkfifo(tmp_path / "two.onnx")
    source = FolderSource([Place(tmp_path)], {})
    for _ in range(2):
        assert [ref.name for ref in source.scan()] == ["one"]
    assert sorted(record.message for record in caplog.records) == [
        "\\udce9.onnx is not served: its name is not UTF-8",
        "caf\\udce9 is not served: its name is not UTF-8",
        "two.onnx is not served: it is neither a regular file nor a folder",
    ]


def test_a_place_that_has_no_name_needs_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / os.fsdecode(b"\xe9.onnx")
    put(tmp_path, path.name)
    assert FolderSource([Place(path)], {}).scan() == {}
    assert "not UTF-8; serve it as NAME=PATH" in caplog.text
    assert list(FolderSource([Place(path, "e")], {}).scan()) == [ModelRef("e", "1")]


@pytest.mark.parametrize("path", ["/dev/null", "fifo"])
def test_a_path_that_is_no_file_is_an_error(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(LoadFailed, match="cannot be served: it is neither a regular file nor"):
        scan(tmp_path / path)


def test_the_only_python_file_that_looks_like_a_model_is_one(tmp_path: Path) -> None:
    put(tmp_path, "up/helper.py", "two/a.py", "two/b.py", "none/a.py", "net/net.onnx", "m.py")
    put(tmp_path, "net/lib/tool.py", "v/1/helper.py", "broken/a.py", "broken/b.py")
    for name in ("up/up.py", "two/a.py", "two/b.py", "net/lib/tool.py", "v/1/v.py", "broken/a.py"):
        (tmp_path / name).write_text(CLASS)
    (tmp_path / "broken" / "b.py").write_text("class (")
    found = {"broken:1": "broken/a.py", "net:1": "net/net.onnx"}
    found |= {"up:1": "up/up.py", "v:1": "v/1/v.py"}
    assert files(scan(tmp_path), tmp_path) == found
    (tmp_path / "up" / "up.py").write_text("class (")
    assert files(scan(tmp_path), tmp_path) == found
    assert files(scan(tmp_path / "up"), tmp_path) == {"up:1": "up/up.py"}


def test_what_is_no_model_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "i/latest/model.onnx", "j/2/model.onnx", "j/old/model.onnx", "m.py", "setup.py")
    put(tmp_path, "docs/a.md", "src/tool.py", "two/a.py", "two/b.py")
    (tmp_path / "j" / "latest").symlink_to("2")
    for name in ("m.py", "two/a.py", "two/b.py"):
        (tmp_path / name).write_text(CLASS)
    source = FolderSource([Place(tmp_path)], {})
    for _ in range(2):
        assert list(source.scan()) == [ModelRef("j", "2")]
    numbers = "but only numbers name versions; serve other models by their paths"
    assert sorted(record.message for record in caplog.records) == [
        f"i is not served: it holds latest, {numbers}",
        f"j: it holds old, {numbers}",
        "m.py is not served: it is code; put it into a folder of its own, or serve it by its path",
        "there is no model in docs, src",
        "two is not served: 'two' holds a.py, b.py: name one as `file:` in model.yaml",
    ]


def test_places_may_be_named(tmp_path: Path) -> None:
    put(tmp_path, "a.onnx")
    source = FolderSource([Place(tmp_path / "a.onnx", "b")], {})
    assert list(source.scan()) == [ModelRef("b", "1")]


def test_only_code_that_was_named_is_trusted(tmp_path: Path) -> None:
    put(tmp_path, "a.py", "b/model.py", "c.onnx")
    assert scan(tmp_path / "a.py")["a:1"].trusted
    assert not scan(tmp_path / "b")["b:1"].trusted
    assert not scan(tmp_path / "c.onnx")["c:1"].trusted


def test_two_models_of_one_name_are_an_error(tmp_path: Path) -> None:
    put(tmp_path, "a.onnx", "a/model.onnx")
    with pytest.raises(
        ConfigError, match=r"two models are called 'a': a/model\.onnx and \S+/a\.onnx;"
    ):
        scan(tmp_path)


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="there is no file or folder"):
        scan(tmp_path / "missing")


def test_older_versions_are_those_below_the_latest(tmp_path: Path) -> None:
    put(tmp_path, *(f"m/{number}/model.onnx" for number in (1, 2, 10, 11)), "one.onnx")
    source = FolderSource([Place(tmp_path), Place(tmp_path / "m", "given")], {})
    config = tmp_path / "m" / "model.yaml"

    def older(name: str) -> list[ModelRef]:
        source.scan()
        found = source.older(name)
        assert all(version.path.parent.name == version.ref.version for version in found)
        return [version.ref for version in found]

    assert older("m") == [ModelRef("m", version) for version in ("10", "2", "1")]
    assert older("given") == [ModelRef("given", version) for version in ("10", "2", "1")]
    assert older("one") == older("other") == []
    config.write_text("versions: 3")
    assert older("m") == [ModelRef("m", "1")]
    for policy in ("all", "['11']", "]"):
        config.write_text(f"versions: {policy}")
        assert older("m") == []


def test_a_listed_version_that_is_missing_is_a_problem(tmp_path: Path) -> None:
    put(tmp_path, "1/model.onnx")
    (tmp_path / "model.yaml").write_text("name: m\nversions: ['1', '7']")
    found = scan(tmp_path)
    assert found["m:1"].problem is None
    assert "no version folder '7'; there are: 1" in str(found["m:7"].problem)


def test_versions_may_be_written_as_numbers(tmp_path: Path) -> None:
    put(tmp_path, "many/1/model.onnx", "many/2/model.onnx", "many/3/model.onnx", "one/model.onnx")
    labels = "version_labels: {stable: 1, next: '2'}"
    (tmp_path / "many" / "model.yaml").write_text(f"versions: [1, '2']\n{labels}")
    (tmp_path / "one" / "model.yaml").write_text("version: 3")
    found = scan(tmp_path)
    assert sorted(found) == ["many:1", "many:2", "one:3"]
    assert not any(version.problem for version in found.values())
    assert found["many:1"].config.version_labels == {"stable": "1", "next": "2"}


@pytest.mark.parametrize("text", ["version: 1.5", "versions: [true]", "version_labels: {a: [1]}"])
def test_other_values_are_no_versions(tmp_path: Path, text: str) -> None:
    put(tmp_path, "m/model.onnx")
    (tmp_path / "m" / "model.yaml").write_text(text)
    (version,) = scan(tmp_path).values()
    assert "model.yaml:1: version" in str(version.problem)


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/passwd", "a/../../b"])
def test_the_configured_file_lies_inside(tmp_path: Path, name: str) -> None:
    put(tmp_path, "secret.onnx", "m/model.onnx")
    (tmp_path / "m" / "model.yaml").write_text(f"file: {name}")
    assert "lies outside" in str(scan(tmp_path / "m")["m:1"].problem)


def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    put(tmp_path, "blobs/4f3a", "m/1/readme.md")
    (tmp_path / "m" / "model.yaml").write_text("file: net.onnx")
    (tmp_path / "m" / "1" / "net.onnx").symlink_to(tmp_path / "blobs" / "4f3a")
    assert scan(tmp_path / "m")["m:1"].path.name == "net.onnx"


def test_a_mistake_in_the_configuration_goes_on_naming_the_same_model(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "m/2/model.onnx")
    config = tmp_path / "m" / "model.yaml"
    config.write_text("name: iris\nversions: all")
    source = FolderSource([Place(tmp_path)], {})
    before = source.scan()
    config.write_text("name: iris\nversion: [")
    after = source.scan()
    assert list(after) == list(before)
    assert all(isinstance(version.problem, ConfigError) for version in after.values())
    assert [v.stamp for v in after.values()] != [v.stamp for v in before.values()]


@pytest.mark.parametrize("text", [b"nam: x", b"\xff\xfe", b"versions: {}", b"- a"])
def test_configurations_that_cannot_be_read_are_problems(tmp_path: Path, text: bytes) -> None:
    put(tmp_path, "m/model.onnx")
    (tmp_path / "m" / "model.yaml").write_bytes(text)
    assert isinstance(scan(tmp_path)["m:1"].problem, ConfigError)


def test_overrides_apply_to_every_model(tmp_path: Path) -> None:
    put(tmp_path, "a.onnx", "b/model.onnx")
    found = scan(tmp_path, runtime="onnx")
    assert {version.config.runtime for version in found.values()} == {"onnx"}


def stamps(path: Path) -> list[str]:
    return [version.stamp for version in scan(path).values()]


def test_stamps_change_with_files_and_configuration_only(tmp_path: Path) -> None:
    model = tmp_path / "m"
    put(model, "1/model.onnx", "1/data/weights.bin")
    seen = [stamps(model)]
    put(model, "1/.draft.onnx", "1/__pycache__/a.pyc", "notes.md")
    assert stamps(model) == seen[-1]
    for change in (
        lambda: (model / "1" / "data" / "weights.bin").write_text("longer than it was"),
        lambda: (model / "model.yaml").write_text("description: x"),
        lambda: os.utime(model / "1" / "model.onnx", ns=(1, 1)),
        lambda: (model / "1" / "data").rename(model / "1" / "other"),
    ):
        change()
        assert stamps(model) not in seen
        seen.append(stamps(model))


def test_a_file_put_in_place_of_another_changes_the_stamp(tmp_path: Path) -> None:
    put(tmp_path, "m/model.onnx", "m/.new")
    for name in ("model.onnx", ".new"):
        os.utime(tmp_path / "m" / name, ns=(1, 1))
    before = stamps(tmp_path / "m")
    (tmp_path / "m" / ".new").replace(tmp_path / "m" / "model.onnx")
    assert stamps(tmp_path / "m") != before


def test_weights_beside_a_single_file_count(tmp_path: Path) -> None:
    put(tmp_path, "a.onnx")
    before = stamps(tmp_path / "a.onnx")
    put(tmp_path, "b.onnx")
    assert stamps(tmp_path / "a.onnx") == before
    put(tmp_path, "a.onnx.data")
    assert stamps(tmp_path / "a.onnx") != before


def test_what_vanishes_in_the_middle_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a/model.onnx", "b/model.onnx")
    whole, calls = layout.is_model, []

    def vanishing(path: Any) -> bool:
        calls.append(path)
        if len(calls) == 1:
            raise FileNotFoundError(2, "gone", str(path))
        return whole(path)

    monkeypatch.setattr(layout, "is_model", vanishing)
    assert sorted(scan(tmp_path)) == ["a:1", "b:1"]


def test_what_cannot_be_read_is_an_error_without_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a/model.onnx")

    def refuse(path: Any) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(layout, "is_model", refuse)
    with pytest.raises(LoadFailed, match="cannot be read: Permission denied") as raised:
        scan(tmp_path)
    assert str(tmp_path) not in str(raised.value)


CLASS = "class A:\n    def predict(self, x: int) -> int: ...\n"
CODE = 'import salver\n@salver.model(name="{}")\n' + CLASS


def test_a_python_file_says_what_it_is(tmp_path: Path) -> None:
    code = CODE.format("tagger").replace(")", ', description="tags", max_batch=16)', 1)
    put(tmp_path, "a.py")
    (tmp_path / "a.py").write_text(code)
    found = scan(tmp_path / "a.py")["tagger:1"]
    assert (found.config.description, found.config.batching.max_size) == ("tags", 16)
    (tmp_path / "model.yaml").write_text("name: mine\nbatching: {max_size: 4}")
    found = scan(tmp_path / "a.py")["mine:1"]
    assert (found.config.description, found.config.batching.max_size) == ("tags", 4)
    given = FolderSource([Place(tmp_path / "a.py", "given")], {}).scan()
    assert list(given) == [ModelRef("given", "1")]


def test_files_beside_each_other_do_not_share_a_configuration(tmp_path: Path) -> None:
    put(tmp_path, "a.onnx", "b.onnx")
    config = tmp_path / "model.yaml"
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    config.write_text("description: x")
    found = scan(*paths)
    assert list(found) == ["a:1", "b:1"]
    for version in found.values():
        assert "which of a.onnx, b.onnx it is for: say it there, as in `file: a.onnx`" in str(
            version.problem
        )
    config.write_text("description: x\nfile: b.onnx")
    found = scan(*paths)
    assert [version.config.description for version in found.values()] == ["", "x"]
    assert not any(version.problem for version in found.values())
    config.write_text("description: x")
    assert scan(paths[0])["a:1"].config.description == "x"


def test_each_version_of_a_folder_says_what_it_is(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.py", "m/2/model.py", "m/3/model.onnx", "n/model.py")
    (tmp_path / "m" / "model.yaml").write_text("versions: all")
    (tmp_path / "m" / "1" / "model.py").write_text(CODE.format("old"))
    (tmp_path / "m" / "2" / "model.py").write_text(CLASS)
    (tmp_path / "n" / "model.py").write_text(CODE.format("new"))
    assert list(scan(tmp_path)) == ["old:1", "m:2", "m:3", "new:1"]


def test_a_mistake_in_code_goes_on_naming_the_same_model(tmp_path: Path) -> None:
    file = tmp_path / "m" / "1" / "model.py"
    put(tmp_path, "m/1/model.py", "m/2/readme.md")
    (tmp_path / "m" / "model.yaml").write_text("versions: ['1', '2', '7']")
    file.write_text(CODE.format("tagger"))
    source = FolderSource([Place(tmp_path)], {})
    names = [ModelRef("tagger", version) for version in ("1", "2", "7")]
    assert list(source.scan()) == names
    file.write_text("class A(:")
    assert list(source.scan()) == names
    file.write_text(CODE.format("x").replace("name", "nam"))
    assert list(source.scan()) == names


def test_code_is_read_again_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a.py")
    (tmp_path / "a.py").write_text(CODE.format("one"))
    source = FolderSource([Place(tmp_path / "a.py")], {})
    before = source.scan()
    with monkeypatch.context() as patched:
        patched.setattr(folder, "declared", None)
        assert source.scan() == before
    (tmp_path / "a.py").write_text(CODE.format("another"))
    assert list(source.scan()) == [ModelRef("another", "1")]


def test_models_beside_the_one_that_its_name_chose_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "m/model.onnx", "m/model.onnx.data", "m/old.pkl", "m/words.txt", "n/1/model.pt")
    put(tmp_path, "n/1/net.py")
    source = FolderSource([Place(tmp_path)], {})
    for _ in range(2):
        assert [version.path.name for version in source.scan().values()] == [
            "model.onnx",
            "model.pt",
        ]
    assert [record.getMessage() for record in caplog.records] == [
        "model.onnx alone is served: 'm' holds model.onnx, old.pkl: name one as `file:` in "
        "model.yaml"
    ]
    caplog.clear()
    (tmp_path / "m" / "model.yaml").write_text("file: model.onnx")
    assert len(FolderSource([Place(tmp_path)], {}).scan()) == 2
    assert not caplog.records
