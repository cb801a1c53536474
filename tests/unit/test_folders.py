"""An agent has its folder to itself, and deletes only what it made."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import folders
from core import errors


def test_a_folder_made_here_is_emptied_as_often_as_one_likes(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tasks"
    for _ in range(2):
        folders.empty(folder)
        assert [path.name for path in folder.iterdir()] == [folders.MARK]
        (folder / "t1").mkdir()
        (folder / "t1" / "weights").write_bytes(b"x")
        (folder / "loose").write_bytes(b"x")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    folders.empty(tmp_path)
    folders.own(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [folders.MARK]


def test_what_a_link_leads_to_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "work").write_text("mine")
    folders.own(tmp_path / "tasks")
    (tmp_path / "tasks" / "link").symlink_to(kept)
    folders.empty(tmp_path / "tasks")
    assert (kept / "work").read_text() == "mine"
    assert not (tmp_path / "tasks" / "link").is_symlink()


@pytest.mark.parametrize("ask", [folders.own, folders.empty])
def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(
    tmp_path: Path, ask: Callable[[Path], None]
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "notes.txt").write_text("mine")
    with pytest.raises(errors.DataDirectoryError, match="another --directory"):
        ask(tmp_path / "tasks")
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["notes.txt"]


def test_agents_of_one_host_that_name_themselves_never_share_a_name(tmp_path: Path) -> None:
    taken = [folders.use_first_free(tmp_path, "حاسوب") for _ in range(3)]
    assert [name for name, _ in taken] == ["حاسوب", "حاسوب-2", "حاسوب-3"]
    taken[1][1].release()
    again, lock = folders.use_first_free(tmp_path, "حاسوب")
    assert again == "حاسوب-2"
    for one in (lock, taken[0][1], taken[2][1]):
        one.release()


def test_names_of_agents_on_one_host_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "AGENTS_MAX", 1)
    _, lock = folders.use_first_free(tmp_path, "host")
    with pytest.raises(errors.DirectoryInUse, match="--worker-id"):
        folders.use_first_free(tmp_path, "host")
    lock.release()


def test_a_folder_in_use_is_refused_with_who_uses_it_and_what_to_do(tmp_path: Path) -> None:
    lock = folders.use(tmp_path / "agent")
    with pytest.raises(errors.DirectoryInUse, match=f"process {os.getpid()}.*--worker-id"):
        folders.use(tmp_path / "agent")
    lock.release()


def test_one_server_under_its_local_names_is_one_server_and_another_is_not(tmp_path: Path) -> None:
    def of(api: str) -> str:
        return folders.of_server(tmp_path, api).name

    assert of("http://127.0.0.1:8000") == of("http://localhost:8000/") == of("http://[::1]:8000")
    others = ["http://127.0.0.1:8001", "http://host", "https://host", "https://name:pw@host/a/b"]
    assert [of(api) for api in others] == [
        "localhost-8001",
        "host-80",
        "host-443",
        "host-443_a_b",
    ]


@pytest.mark.parametrize("api", ["host:8000", "ftp://host", "http://", "http://h:x", "http://[::1"])
def test_what_is_no_address_of_a_server_is_refused(tmp_path: Path, api: str) -> None:
    with pytest.raises(errors.Invalid, match="http://host:8000"):
        folders.of_server(tmp_path, api)
