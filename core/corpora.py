"""Corpora: documents in the order of their digests, in three parts, as artifacts.

Of every twenty documents, by SHA-256, one is hidden and one is for validation; the others are
trained on. A part is its documents one after another with a zero byte between, which no text has.
What agents read (`training.txt`, `validation.txt`) is one artifact, `hidden.txt` another: an agent
is never given the second. Exact duplicates are one document, near ones can fall into two parts.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from core import chunks, errors
from core.chunks import DESK, File, Manifest
from core.events import Corpus, Part

TRAINING, VALIDATION, HIDDEN = "training", "validation", "hidden"
PARTS = (TRAINING, VALIDATION, HIDDEN)
KIND = "corpus"
SEPARATOR = b"\0"
HELD_OUT_EVERY = 20
"""One document in so many is hidden, and one more for validation."""
DOCUMENT_CHARS_MIN = 200
CORPUS_BYTES_MAX = 64 * 1024 * 1024
HELD_OUT_BYTES_MIN = 4 * 1024
"""Of hidden, and of validation text: on less a verdict means nothing."""
DOCUMENTS_MIN = 3
PIECE_BYTES = 720 * 1024
"""Of a chunk, which goes in base64 into one request of at most 1 MiB."""
CHUNKS_MAX = -(-2 * CORPUS_BYTES_MAX // PIECE_BYTES) + len(PARTS)
"""Of a corpus: its text with separators, each part's last chunk not full."""
NAME_CHARS_MAX = 128


class Text(NamedTuple):
    """The documents of each part, as UTF-8."""

    training: list[bytes]
    validation: list[bytes]
    hidden: list[bytes]


class Packed(NamedTuple):
    """The two artifacts of a corpus, and the bytes of all their chunks by digest."""

    corpus: Corpus
    public: Manifest
    hidden: Manifest
    pieces: dict[str, bytes]


def split(documents: Iterable[bytes]) -> Text:
    """Documents in three parts, each once. Raises errors.Invalid where they are too few or too
    many."""
    once = {hashlib.sha256(document).digest(): document for document in documents}
    ordered = [once[digest] for digest in sorted(once)]
    _require_size(ordered)
    hidden, rest = _held_out(ordered, len(ordered))
    validation, training = _held_out(rest, len(ordered))
    if sum(map(len, training)) < sum(map(len, hidden)) + sum(map(len, validation)):
        raise errors.Invalid(
            f"{len(ordered)} documents of {sum(map(len, ordered))} bytes are too little: with "
            f"{HELD_OUT_BYTES_MIN} bytes of them hidden and as many for validation, less would be "
            "left to train on; add documents"
        )
    return Text(training, validation, hidden)


def _require_size(documents: Sequence[bytes]) -> None:
    size = sum(map(len, documents))
    if not documents:
        raise errors.Invalid(
            f"there is no document of {DOCUMENT_CHARS_MIN} characters or more; a corpus needs "
            f"{DOCUMENTS_MIN} at least, and {2 * HELD_OUT_BYTES_MIN} bytes beside what is trained "
            "on"
        )
    if len(documents) < DOCUMENTS_MIN:
        raise errors.Invalid(
            f"there is only {len(documents)} document of {DOCUMENT_CHARS_MIN} characters or more "
            f"(duplicates count once); {DOCUMENTS_MIN} are needed at least, since hidden and "
            "validation documents are not trained on: cut a long one into a file for each chapter "
            "or page"
        )
    if size > CORPUS_BYTES_MAX:
        raise errors.Invalid(
            f"the documents have {size} bytes together, a corpus has at most {CORPUS_BYTES_MAX}; "
            "leave some out, or give them to several nodes"
        )


def _held_out(documents: list[bytes], of: int) -> tuple[list[bytes], list[bytes]]:
    """The first documents, as many as are held out of so many, and the others."""
    count, size = 0, 0
    wanted = -(-of // HELD_OUT_EVERY)
    while count < len(documents) and (count < wanted or size < HELD_OUT_BYTES_MIN):
        size += len(documents[count])
        count += 1
    return documents[:count], documents[count:]


def pack(name: str, text: Text) -> Packed:
    """The artifacts of a corpus: the same documents always give the same digests."""
    pieces: dict[str, bytes] = {}
    public = Manifest(
        kind=KIND,
        writer=DESK,
        files=[
            _file(TRAINING, text.training, pieces),
            _file(VALIDATION, text.validation, pieces),
        ],
    )
    hidden = Manifest(kind=KIND, writer=DESK, files=[_file(HIDDEN, text.hidden, pieces)])
    return Packed(describe(name, text, public, hidden), public, hidden, pieces)


def describe(name: str, text: Text, public: Manifest, hidden: Manifest) -> Corpus:
    """A corpus as events name it."""
    sizes = {
        part: Part(documents=len(documents), bytes=sum(map(len, documents)))
        for part, documents in zip(PARTS, text, strict=True)
    }
    return Corpus(
        name=name,
        manifest=chunks.digest_of(public.encode()),
        hidden=chunks.digest_of(hidden.encode()),
        parts=sizes,
    )


def file_name(part: str) -> str:
    """The file of a part in its artifact."""
    return f"{part}.txt"


def _file(part: str, documents: list[bytes], pieces: dict[str, bytes]) -> File:
    data = SEPARATOR.join(documents)
    digests = []
    for piece in chunks.split(data, range(PIECE_BYTES, len(data), PIECE_BYTES)):
        digest = chunks.digest_of(piece)
        pieces[digest] = piece
        digests.append(digest)
    name = file_name(part)
    return File(name=name, bytes=len(data), sha256=chunks.digest_of(data), chunks=digests)


def documents_of(data: bytes) -> list[bytes]:
    """The documents of a part."""
    return data.split(SEPARATOR) if data else []


def require_sound(text: Text) -> None:
    """Refuse parts that `split` would not make of their documents. Raises errors.Invalid."""
    documents = [document for part in text for document in part]
    for document in documents:
        try:
            characters = len(document.decode())
        except UnicodeDecodeError as error:
            raise errors.Invalid(f"a document is no UTF-8 text: {error}") from error
        if characters < DOCUMENT_CHARS_MIN:
            raise errors.Invalid(
                f"a document has {characters} characters, fewer than {DOCUMENT_CHARS_MIN}"
            )
    if split(documents) != text:
        raise errors.Invalid("these documents are not in their order, or not in their parts")
