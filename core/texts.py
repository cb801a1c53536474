"""A folder of text files, read as documents: each file is one."""

import codecs
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from core import corpora, errors

FILE_BYTES_MAX = corpora.CORPUS_BYTES_MAX
FILES_MAX = 200_000
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""What files begin with that say themselves how they are written."""
ARABIC = "windows-1256"
ARABIC_SHARE_MIN = 0.95
_ARABIC_LETTERS = frozenset(chr(one) for one in range(0x0621, 0x064B))
"""Those of Arabic itself: UTF-8 read as windows-1256 is full of Persian and Urdu ones, and of
accented Latin."""


class Skipped(NamedTuple):
    """A file that is no document, and why; of one `kind` are those of which the same is to be said,
    but for the place in the file."""

    path: Path
    reason: str
    kind: str


class Found(NamedTuple):
    """The documents of a folder as UTF-8 with plain line ends, and what is none."""

    documents: list[bytes]
    skipped: list[Skipped]
    short: int
    """Files with fewer characters than a document has."""
    duplicates: int
    files: int


def read(folder: Path, encoding: str = "utf-8") -> Found:
    """Read every file below a folder, but for hidden ones (`.git`); links are not followed.

    A file that is no text in that encoding is skipped, and said where. Raises errors.Invalid for an
    encoding that is none, for more text than a corpus may have, and for what cannot be read at all.
    """
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise errors.Invalid(
            f"no encoding is called {encoding!r}; windows-1256 and utf-8 are usual ones"
        ) from error
    documents: dict[bytes, None] = {}
    skipped: list[Skipped] = []
    short = duplicates = files = size = 0
    for path in _files(folder):
        files += 1
        text = _text(path, encoding)
        if isinstance(text, Skipped):
            skipped.append(text)
            continue
        document = text.encode()
        if len(text) < corpora.DOCUMENT_CHARS_MIN:
            short += 1
        elif document in documents:
            duplicates += 1
        else:
            documents[document] = None
            size += len(document)
        if size > corpora.CORPUS_BYTES_MAX:
            raise errors.Invalid(
                f"{folder} has more than {corpora.CORPUS_BYTES_MAX} bytes of text, the most a "
                f"corpus has (reached at {path}); name a folder with less, or cut it into folders "
                "for several nodes"
            )
    return Found(list(documents), skipped, short, duplicates, files)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below, in an order that is always the same."""

    def unreadable(error: OSError) -> None:
        raise errors.Invalid(
            f"{error.filename} cannot be read: {error.strerror}; make it readable, or move it out "
            f"of {folder}"
        ) from error

    count = 0
    for where, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if name.startswith(".") or path.is_symlink() or not path.is_file():
                continue
            count += 1
            if count > FILES_MAX:
                raise errors.Invalid(
                    f"{folder} holds more than {FILES_MAX} files; name a folder with fewer"
                )
            yield path


def _text(path: Path, encoding: str) -> str | Skipped:
    try:
        size = path.stat().st_size
        if size > FILE_BYTES_MAX:
            return Skipped(path, f"it has {size} bytes, more than a whole corpus may have", "large")
        data = path.read_bytes()
    except OSError as error:
        raise errors.Invalid(
            f"{path} cannot be read: {error.strerror}; make it readable, or move it away"
        ) from error
    encoding = next((own for mark, own in _MARKS.items() if data.startswith(mark)), encoding)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        return _undecodable(path, data, encoding, error)
    if "\0" in text:
        return Skipped(path, f"character {text.index(chr(0))} is a zero, as in no text", "zero")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Skipped(path, f"character {error.start} is half of one", "half")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _undecodable(path: Path, data: bytes, encoding: str, error: UnicodeDecodeError) -> Skipped:
    """Why a file is no text in its encoding, and what to do about it."""
    where = f"byte {error.start}: {error.reason}"
    if codecs.lookup(encoding).name != "utf-8":
        return Skipped(path, f"it is no {encoding} text ({where})", f"no {encoding}")
    if not _reads_as_arabic(data):
        words = f"it is not UTF-8 ({where}); if it is text, say in which encoding by `--encoding`"
        return Skipped(path, words, "no utf-8")
    words = (
        f"it is not UTF-8 ({where}), but likely {ARABIC}: it reads as Arabic so. Say `--encoding "
        f"{ARABIC}` if all files are, else convert this one (iconv -f {ARABIC} -t utf-8)"
    )
    return Skipped(path, words, ARABIC)


def _reads_as_arabic(data: bytes) -> bool:
    """Whether bytes are Arabic as older Windows wrote it: most letters are, and hardly any other
    beyond ASCII, as there would be of Cyrillic, ISO-8859-6 or of UTF-8 that is broken."""
    letters = [one for one in data.decode(ARABIC) if one.isalpha()]
    foreign = [one for one in letters if not one.isascii()]
    arabic = [one for one in foreign if one in _ARABIC_LETTERS]
    return 2 * len(arabic) > len(letters) and len(arabic) >= ARABIC_SHARE_MIN * len(foreign)
