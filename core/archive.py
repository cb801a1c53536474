"""The one file of a backup: a plain tar that tells by itself whether it is what it was.

Members stand in the order they were written: first `aghsan-backup.json`, which says in which format
the rest is, then the contents, then `manifest.json` with the size and the SHA-256 of each, then
`SHA256`: the digest of every byte before it. After that come the two empty blocks that end a tar,
and nothing else. No byte is left uncovered: those of `SHA256` and behind it are compared with what
has to stand there. So a file that was cut off, never finished, or changed anywhere is refused
before anything in it is believed; and any `tar` can still list and unpack it.
"""

import contextlib
import hashlib
import json
import os
import secrets
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec

from core import errors, platforms

FORMAT = 1
LABEL, MANIFEST, DIGEST = "aghsan-backup.json", "manifest.json", "SHA256"
BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
TRAILER_BYTES = 2 * BLOCK_BYTES + len(END)
"""`SHA256` and the end of the tar."""
MEMBER_BYTES_MAX = 64 * 1024 * 1024
READ_BYTES = 1024 * 1024


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """The first member: which format, made when and by which version."""

    format: int
    made_at: str
    version: str


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One file in the backup."""

    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds. `unpacked_bytes` is how much room its contents take once restored."""

    label: Label
    last_seq: int
    chunks: int
    refusals: int
    unpacked_bytes: int
    members: list[Member]


class Writer:
    """Writes a backup under a temporary name, and gives it its own only once it is whole."""

    def __init__(self, path: Path, label: Label) -> None:
        self._path = path
        self._label = label
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        self._members: list[Member] = []
        self._digest = hashlib.sha256()
        self._file: IO[bytes] | None = None
        self.bytes = 0

    def __enter__(self) -> "Writer":
        """Raises BackupError where the file exists already, or cannot be made."""
        _require_absent(self._path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with self._explained():
            # Keys are in it: its owner's alone, from the first byte on.
            self._file = os.fdopen(os.open(self._temporary, flags, 0o600), "wb")
        self.add(LABEL, msgspec.json.encode(self._label))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave nothing behind where it was not finished."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def add(self, name: str, data: bytes) -> None:
        """Write one file. Raises BackupError."""
        assert len(data) <= MEMBER_BYTES_MAX, name
        self._write(_framed(name, data))
        member = Member(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        self._members.append(member)

    def finish(self, *, last_seq: int, chunks: int, refusals: int, unpacked_bytes: int) -> str:
        """Close the backup, make it durable, and give it its name; its digest.

        Raises BackupError, also where that name was taken meanwhile.
        """
        manifest = Manifest(
            label=self._label,
            last_seq=last_seq,
            chunks=chunks,
            refusals=refusals,
            unpacked_bytes=unpacked_bytes,
            members=self._members,
        )
        self._write(_framed(MANIFEST, msgspec.json.encode(manifest)))
        digest = self._digest.hexdigest()
        self._write(_trailer(digest))
        file, self._file = self._file, None
        assert file is not None, "it is finished once"
        try:
            with self._explained(), file:
                file.flush()
                platforms.sync_file(file.fileno())
            with self._explained():
                _name_without_overwriting(self._temporary, self._path)
                platforms.sync_folder(self._path.parent)
        finally:
            self._temporary.unlink(missing_ok=True)
        return digest

    def _write(self, data: bytes) -> None:
        assert self._file is not None, "nothing is added to a finished backup"
        with self._explained():
            self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise errors.BackupError(
                f"{self._path} cannot be written: {error.strerror or error}. Nothing is left of it;"
                " choose a folder that exists, may be written to, and has room."
            ) from error


def _require_absent(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise errors.BackupError(
            f"{path} exists already, and no backup is written over. Choose another name, or move"
            " it away."
        )


def _name_without_overwriting(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        _require_absent(path)
        raise
    except OSError:
        # A file system without hard links, as on many memory sticks.
        _require_absent(path)
        os.rename(temporary, path)


def _framed(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return b"".join((header, data, bytes(-len(data) % BLOCK_BYTES)))


def _trailer(digest: str) -> bytes:
    return _framed(DIGEST, f"{digest}  everything before this\n".encode()) + END


# Reading


def verify(path: Path) -> Manifest:
    """Read a whole backup and compare it with its digest; what it holds.

    Raises NotFound, BackupError for what is damaged, cut off, of a newer format or none at all.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _require_known_format(path, file)
            file.seek(0)
            digest = hashlib.sha256()
            left = size - TRAILER_BYTES
            while left > 0 and (block := file.read(min(READ_BYTES, left))):
                digest.update(block)
                left -= len(block)
            if left or file.read() != _trailer(digest.hexdigest()):
                raise _damaged(path)
        return _read_manifest(path)
    except FileNotFoundError:
        raise errors.NotFound(f"There is no backup {path}.") from None
    except OSError as error:
        raise errors.BackupError(f"{path} cannot be read: {error.strerror or error}.") from error


def members(path: Path, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """The contents of a verified backup in their order, each compared with its digest.

    Raises BackupError.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for expected in manifest.members:
                data = _read_member(tar, expected.name)
                if (len(data), hashlib.sha256(data).hexdigest()) != (
                    expected.bytes,
                    expected.sha256,
                ):
                    raise _damaged(path)
                if expected.name != LABEL:
                    yield expected.name, data
    except (tarfile.TarError, OSError) as error:
        raise errors.BackupError(f"{path} cannot be read: {error}.") from error


def _read_member(tar: tarfile.TarFile, name: str) -> bytes:
    info = tar.next()
    if info is None or info.name != name or not info.isreg() or info.size > MEMBER_BYTES_MAX:
        raise tarfile.ReadError(f"{name} is not where it should be")
    file = tar.extractfile(info)
    assert file is not None, "a regular file has contents"
    return file.read()


def _require_known_format(path: Path, file: IO[bytes]) -> None:
    try:
        info = tarfile.TarInfo.frombuf(file.read(BLOCK_BYTES), "utf-8", "strict")
        if info.name != LABEL or info.size > BLOCK_BYTES:
            raise ValueError(info.name)
        label = json.loads(file.read(info.size))
        found = int(label["format"])
    except (tarfile.TarError, ValueError, KeyError, TypeError):
        raise errors.BackupError(
            f"{path} is no backup of Aghsan, or its beginning is damaged. Nothing was restored; use"
            " another copy of it."
        ) from None
    if found > FORMAT:
        raise errors.BackupError(
            f"{path} is a backup of format {found}, made by Aghsan {label.get('version', '?')};"
            f" this one knows formats up to {FORMAT}. Upgrade Aghsan, then restore."
        )


def _read_manifest(path: Path) -> Manifest:
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            if info.name == MANIFEST and (file := tar.extractfile(info)):
                try:
                    return msgspec.json.decode(file.read(), type=Manifest)
                except msgspec.MsgspecError as error:
                    raise errors.BackupError(
                        f"{path} is whole, but what it says of itself cannot be read: {error}."
                        " Upgrade Aghsan, then restore."
                    ) from error
    raise _damaged(path)


def _damaged(path: Path) -> errors.BackupError:
    return errors.BackupError(
        f"{path} is damaged or cut off: its bytes are not those that were written. Nothing was"
        " restored; use another copy of it."
    )
