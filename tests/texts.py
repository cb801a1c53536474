"""A builder of small corpora: documents of made-up sentences, some in Arabic, some in English."""

import random
from collections.abc import Iterable
from pathlib import Path

from core import chunks, corpora

_ARABIC = (
    "النهر الجبل الكتاب الشمس المدينة الطريق البحر الليل الشجرة المعلم يكتب يقرأ يمشي يرى يحمل"
    " يسأل يعرف ينتظر طويل قديم بعيد جميل هادئ صغير كبير في على من إلى عن مع"
)
_ENGLISH = (
    "the river mountain book sun city road sea night tree teacher writes reads walks sees carries"
    " asks knows waits long old distant quiet small great in on from to about with"
)


def document(number: int, characters: int = 600) -> str:
    """One document; every third is English."""
    draw = random.Random(number)
    words = (_ENGLISH if number % 3 == 0 else _ARABIC).split()
    text = f"{number}:"
    while len(text) < characters:
        text += " " + " ".join(draw.choice(words) for _ in range(draw.randint(4, 9))) + "."
    return text


def write(folder: Path, count: int = 60) -> Path:
    """A folder with so many documents, a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"وثيقة {number}.txt").write_text(document(number), encoding="utf-8")
    return folder


def packed(count: int = 60) -> corpora.Packed:
    """A corpus of so many documents."""
    split = corpora.split(document(number).encode() for number in range(count))
    return corpora.pack("صغير", split)


def unpack(folder: Path, *, hidden: bool = False, documents: Iterable[bytes] | None = None) -> Path:
    """A corpus as an agent has it, or, with its hidden part, as a judge."""
    one = packed() if documents is None else corpora.pack("a", corpora.split(documents))
    folder.mkdir(parents=True, exist_ok=True)
    manifests: list[chunks.Manifest] = [one.public, one.hidden] if hidden else [one.public]
    for manifest in manifests:
        for file in manifest.files:
            data = b"".join(one.pieces[digest] for digest in file.chunks)
            (folder / file.name).write_bytes(data)
    return folder
