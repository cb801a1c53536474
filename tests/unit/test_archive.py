"""The file of a backup: whole or refused."""

import hashlib
import json
import os
import random
import re
import tarfile
from pathlib import Path

import pytest

from core import archive, errors

LABEL = archive.Label(format=archive.FORMAT, made_at="2026-11-26T10:00:00Z", version="1.2.3")
CONTENTS = {
    "keys/complete": b"",
    "head": b'{"seq":7}',
    "chunks/00000000": random.Random(7).randbytes(3_000),
    "exact": bytes(range(256)) * 4,
}
SEED = 20_261_126


def write(path: Path, label: archive.Label = LABEL) -> str:
    with archive.Writer(path, label) as writer:
        for name, data in CONTENTS.items():
            writer.add(name, data)
        return writer.finish(last_seq=7, chunks=1, refusals=0, unpacked_bytes=4_000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "نسخة احتياطية.tar"
    write(path)
    return path


def refused(path: Path, raw: bytes) -> str:
    """The words with which these bytes are refused."""
    path.write_bytes(raw)
    with pytest.raises(errors.BackupError) as raised:
        archive.verify(path)
    return str(raised.value)


def test_what_was_written_is_read_back(file: Path) -> None:
    manifest = archive.verify(file)
    assert dict(archive.members(file, manifest)) == CONTENTS
    assert (manifest.label, manifest.last_seq, manifest.unpacked_bytes) == (LABEL, 7, 4_000)
    digests = {one.name: (one.bytes, one.sha256) for one in manifest.members}
    for name, data in CONTENTS.items():
        assert digests[name] == (len(data), hashlib.sha256(data).hexdigest())


def test_any_tar_can_read_it_and_only_its_owner_may(file: Path) -> None:
    with tarfile.open(file) as tar:
        names = tar.getnames()
        assert {one.mode for one in tar} == {0o600}
    assert names == [archive.LABEL, *CONTENTS, archive.MANIFEST, archive.DIGEST]
    if os.name == "posix":
        assert file.stat().st_mode & 0o777 == 0o600


def test_its_digest_is_that_of_everything_before_it(tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    digest = write(path)
    raw = path.read_bytes()
    assert hashlib.sha256(raw[: -archive.TRAILER_BYTES]).hexdigest() == digest
    assert digest.encode() in raw[-archive.TRAILER_BYTES :]


def test_every_byte_that_is_changed_is_noticed(file: Path) -> None:
    raw = file.read_bytes()
    one = random.Random(SEED)
    ends = [*range(1_600), *range(len(raw) - archive.TRAILER_BYTES - 64, len(raw))]
    for offset in ends + one.sample(range(len(raw)), 600):
        changed = bytearray(raw)
        changed[offset] ^= 1 << one.randrange(8)
        words = refused(file, bytes(changed))
        assert re.search("damaged|format", words), (offset, words)


def test_every_end_that_is_cut_off_or_added_is_noticed(file: Path) -> None:
    raw = file.read_bytes()
    one = random.Random(SEED)
    for size in [*range(0, len(raw), 512), *one.sample(range(len(raw)), 200), len(raw) - 1]:
        assert "damaged" in refused(file, raw[:size])
    for more in (b"\0", bytes(512), bytes(10_240), raw):
        assert "damaged" in refused(file, raw + more)


def test_two_blocks_that_changed_places_are_noticed(file: Path) -> None:
    raw = file.read_bytes()
    swapped = raw[:2_048] + raw[2_560:3_072] + raw[2_048:2_560] + raw[3_072:]
    assert raw != swapped
    assert "damaged" in refused(file, swapped)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    write(path, archive.Label(format=archive.FORMAT + 1, made_at="", version="9.0"))
    with pytest.raises(errors.BackupError, match=r"format 2, made by Aghsan 9\.0.*Upgrade"):
        archive.verify(path)


@pytest.mark.parametrize("raw", [b"", b"hello", bytes(10_240), json.dumps({"format": 1}).encode()])
def test_what_is_no_backup_is_said_to_be_none(tmp_path: Path, raw: bytes) -> None:
    assert "no backup of Aghsan" in refused(tmp_path / "b.tar", raw)


def test_a_file_that_is_not_there_or_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="no backup"):
        archive.verify(tmp_path / "b.tar")
    with pytest.raises(errors.BackupError, match="cannot be read"):
        archive.verify(tmp_path)


def test_nothing_is_written_over(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(errors.BackupError, match="exists already"):
        write(file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_name_that_was_taken_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    with archive.Writer(path, LABEL) as writer:
        path.write_bytes(b"of another")
        with pytest.raises(errors.BackupError, match="exists already"):
            writer.finish(last_seq=1, chunks=0, refusals=0, unpacked_bytes=0)
    assert path.read_bytes() == b"of another"
    assert list(tmp_path.iterdir()) == [path]


def test_a_backup_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with archive.Writer(tmp_path / "b.tar", LABEL) as writer:
        writer.add("head", b"")
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.BackupError, match="cannot be written: No such file"):
        write(tmp_path / "nowhere" / "b.tar")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with archive.Writer(tmp_path / "b.tar", LABEL) as writer:
        full = os.open("/dev/full", os.O_WRONLY)
        assert writer._file is not None
        os.dup2(full, writer._file.fileno())
        os.close(full)
        with pytest.raises(errors.BackupError, match="No space left"):
            writer.add("large", bytes(1_000_000))
    assert list(tmp_path.iterdir()) == []
