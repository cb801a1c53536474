"""Folders of agents: whose they are, who uses them now, and what may be deleted there."""

import re
import shutil
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from core import errors, platforms, subjects

MARK = ".aghsan-agent"
LOCK = ".aghsan-agent.lock"
AGENTS_MAX = 64
"""How many agents of one host may name themselves."""


def of_server(home: Path, api: str) -> Path:
    """Where a user's agents of the server at an address have their folders, a folder each.

    Raises errors.Invalid when that is no address of a server.
    """
    try:
        address = urlsplit(api)
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError:
        address, port = urlsplit(""), 0
    if address.scheme not in ("http", "https") or not address.hostname:
        raise errors.Invalid(f"--api takes an address such as http://host:8000, not {api!r}")
    host = "localhost" if address.hostname in ("127.0.0.1", "::1") else address.hostname
    where = f"{host}-{port}{address.path.rstrip('/')}"
    return home / ".aghsan" / "agents" / re.sub(r"[^A-Za-z0-9.-]+", "_", where)


def of_agent(server: Path, worker_id: str) -> Path:
    """The folder of one agent of a server."""
    return server / subjects.token(worker_id)


def of_bases(server: Path) -> Path:
    """Where the agents of a server keep together what they train from; no agent is named so."""
    return server / ".bases"


def use(folder: Path) -> platforms.DataLock:
    """Make an agent's folder and use it alone, until the lock is released or the process ends.

    Raises errors.DirectoryInUse when another agent uses it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = platforms.DataLock(folder / LOCK)
    try:
        lock.acquire()
    except errors.DirectoryInUse as error:
        raise errors.DirectoryInUse(
            f"{str(error).rstrip('.')}: give this agent another --worker-id (or --directory)"
        ) from error
    return lock


def use_first_free(server: Path, name: str) -> tuple[str, platforms.DataLock]:
    """The first of NAME, NAME-2, NAME-3… that no agent of this server uses here, now in use.

    So an agent that is started again has its name again. Raises errors.DirectoryInUse.
    """
    for number in range(1, AGENTS_MAX + 1):
        worker_id = name if number == 1 else f"{name}-{number}"
        try:
            return worker_id, use(of_agent(server, worker_id))
        except errors.DirectoryInUse:
            continue
    raise errors.DirectoryInUse(
        f"{AGENTS_MAX} agents named after this host run here already, the most there may be; "
        "give this one a --worker-id"
    )


def own(folder: Path) -> None:
    """Make a folder, or see that an agent made it: an empty one is taken, one with a mark is ours.

    Raises errors.DataDirectoryError for any other: nothing in it may be deleted.
    """
    mark = folder / MARK
    if mark.is_file():
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.DataDirectoryError(
            f"{folder} is not an agent's: it has no {MARK} in it, and an agent deletes what it "
            f"finds there. Give the agent another --directory, or move that away."
        )
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


def empty(folder: Path, but: Collection[Path] = ()) -> None:
    """Delete all in an agent's folder but its mark, and what is in `but`. Raises as `own` does."""
    own(folder)
    for path in folder.iterdir():
        if path.name == MARK or path in but:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
