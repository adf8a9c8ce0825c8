"""Files: written completely or not at all, and dataclasses read from JSON."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from dabsmix.errors import UserError
from dabsmix.files import parsed, require_writable, write


@dataclass(frozen=True)
class Mixed:
    name: "str"
    size: "float | None" = None
    ready: "bool" = False
    places: "tuple[int, ...]" = ()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "it lacks 'name'"),
        ({"name": None}, "name is None, not str"),
        ({"name": "a", "size": "2"}, r"size is '2', not float \| None"),
        ({"name": "a", "size": True}, "size is True"),
        ({"name": "a", "ready": 1}, "ready is 1, not bool"),
        ({"name": "a", "places": {}}, "places is"),
        ("a", "expected a JSON object, found a str"),
    ],
)
def test_values_of_another_type_are_named(values: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parsed(Mixed, values)


def test_unknown_entries_are_ignored_and_missing_ones_have_their_default() -> None:
    assert parsed(Mixed, {"name": "a", "size": 2, "colour": "red"}) == Mixed("a", 2)


def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"set \$DABSMIX_CACHE to another folder"):
        write(tmp_path / "file" / "kind" / "x.json", lambda path: path.write_text("{}"))
    (tmp_path / "other").touch()
    with pytest.raises(UserError, match="choose another folder"):
        write(tmp_path / "other" / "x.json", lambda path: path.write_text("{}"))


def test_a_folder_in_place_of_a_file_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}: it is a folder; name a file"):
        write(tmp_path, lambda path: path.write_text("{}"))


def test_what_cannot_be_written_is_refused_before_the_work_and_nothing_is_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/deep/x\.csv: Not a directory; .*choose another folder"):
        require_writable(tmp_path / "file" / "deep" / "x.csv")
    with pytest.raises(UserError, match="it is a folder; name a file"):
        require_writable(tmp_path)
    require_writable(tmp_path / "new" / "deep" / "x.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
