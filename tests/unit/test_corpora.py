"""What a folder of text becomes: documents, parts, two artifacts; and what is refused, and why."""

import os
from pathlib import Path

import pytest

from cli import corpus
from core import chunks, corpora, errors
from core import texts as folders
from tests import texts


def documents(count: int) -> list[bytes]:
    return [texts.document(number).encode() for number in range(count)]


def test_the_same_documents_make_the_same_artifacts_in_whatever_order_they_come() -> None:
    whole = documents(60)
    one = corpora.pack("a", corpora.split(whole))
    other = corpora.pack("a", corpora.split([*reversed(whole), whole[3]]))
    assert one.corpus == other.corpus
    assert one.corpus.parts["hidden"].documents >= 3
    assert sum(part.documents for part in one.corpus.parts.values()) == 60


def test_no_byte_of_a_hidden_document_is_in_what_agents_read() -> None:
    packed = texts.packed()
    text = corpora.split(documents(60))
    public = b"".join(
        packed.pieces[digest] for file in packed.public.files for digest in file.chunks
    )
    assert text.hidden
    assert not any(document in public for document in text.hidden)
    assert all(document in public for document in (*text.training, *text.validation))


def test_each_part_reads_back_as_its_documents() -> None:
    packed, text = texts.packed(), corpora.split(documents(60))
    files = [*packed.public.files, *packed.hidden.files]
    for file, part in zip(files, text, strict=True):
        data = b"".join(packed.pieces[digest] for digest in file.chunks)
        assert corpora.documents_of(data) == part
        assert chunks.digest_of(data) == file.sha256


def test_documents_in_other_parts_than_their_digests_say_are_not_sound() -> None:
    text = corpora.split(documents(60))
    corpora.require_sound(text)
    moved = text._replace(training=text.training[1:], hidden=[*text.hidden, text.training[0]])
    with pytest.raises(errors.Invalid, match="not in their parts"):
        corpora.require_sound(moved)
    with pytest.raises(errors.Invalid, match="no UTF-8"):
        corpora.require_sound(text._replace(training=[b"\xff" * 300, *text.training]))


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ([], "no document of 200 characters"),
        (documents(1), "only 1 document"),
        (documents(2) * 5, "only 2 document"),
        (documents(8), "too little"),
        ([b"%08d" % one + b"x" * 2**20 for one in range(65)], "at most 67108864"),
    ],
    ids=["empty", "one", "two", "little", "much"],
)
def test_what_makes_no_corpus_is_refused_with_what_is_needed(
    whole: list[bytes], words: str
) -> None:
    with pytest.raises(errors.Invalid, match=words):
        corpora.split(whole)


def test_files_become_documents_and_what_is_none_is_named_with_its_place(tmp_path: Path) -> None:
    text = texts.document(1)
    (tmp_path / "plain.txt").write_text(text, encoding="utf-8")
    (tmp_path / "again.txt").write_bytes(text.replace("\n", "\r\n").encode())
    (tmp_path / "notepad.txt").write_text(texts.document(2), encoding="utf-16")
    (tmp_path / "short.txt").write_text("قصير", encoding="utf-8")
    (tmp_path / "broken.txt").write_bytes(text.encode()[:301] + b"\xff" + text.encode()[301:])
    (tmp_path / "zeros.bin").write_bytes(b"abc\0" * 100)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text(texts.document(3), encoding="utf-8")
    found = folders.read(tmp_path)
    assert sorted(found.documents) == sorted([text.encode(), texts.document(2).encode()])
    assert (found.files, found.short, found.duplicates) == (6, 1, 1)
    reasons = {one.path.name: one.reason for one in found.skipped}
    assert reasons.keys() == {"broken.txt", "zeros.bin"}
    assert "byte 30" in reasons["broken.txt"]
    assert "character 3 is a zero" in reasons["zeros.bin"]


def test_text_of_an_older_windows_is_read_in_the_encoding_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(texts.document(1).encode("windows-1256"))
    assert folders.read(tmp_path).documents == []
    assert folders.read(tmp_path, "windows-1256").documents == [texts.document(1).encode()]
    with pytest.raises(errors.Invalid, match="no encoding is called 'wingdings'"):
        folders.read(tmp_path, "wingdings")


@pytest.mark.parametrize(
    ("content", "is_arabic"),
    [
        (texts.document(1).encode("windows-1256"), True),
        (f"Windows 95\n{texts.document(2)}".encode("windows-1256"), True),
        (texts.document(1).encode("iso-8859-6"), False),
        (texts.document(1).encode()[:301] + b"\xff" + texts.document(1).encode()[301:], False),
        ("Всё, что написано по-русски, не арабский текст. ".encode("windows-1251") * 9, False),
        ("Größe und Maß, für später aufgehoben. ".encode("latin-1") * 9, False),
        (bytes(range(1, 256)) * 4, False),
    ],
    ids=["Arabic", "with Latin", "ISO", "broken UTF-8", "Russian", "German", "no text"],
)
def test_a_file_that_is_not_utf_8_says_by_which_option_it_may_be_read(
    tmp_path: Path, content: bytes, is_arabic: bool
) -> None:
    (tmp_path / "old.txt").write_bytes(content)
    ((_, reason, _),) = folders.read(tmp_path).skipped
    assert "it is not UTF-8 (byte" in reason
    assert "`--encoding" in reason
    assert ("likely windows-1256" in reason) == is_arabic
    assert ("`--encoding windows-1256`" in reason) == is_arabic
    ((_, reason, _),) = folders.read(tmp_path, "ascii").skipped
    assert reason.startswith("it is no ascii text (byte")


def test_files_of_which_the_same_is_to_be_said_are_told_of_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts.write(tmp_path, 60)
    for number in range(5):
        old = texts.document(1).encode("windows-1256")
        (tmp_path / f"old{number}.txt").write_bytes(old)
    (tmp_path / "zeros.bin").write_bytes(b"abc\0" * 100)
    corpus.read(tmp_path, "utf-8")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    names = ", ".join(str(tmp_path / f"old{number}.txt") for number in range(3))
    assert told[0].startswith(f"skipped 5 files alike: {names} and 2 more. Of the first: ")
    assert told[0].count("--encoding windows-1256") == 1
    assert told[1].startswith(f"skipped {tmp_path / 'zeros.bin'}: character 3 is a zero")


def test_more_text_than_a_corpus_has_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts.write(tmp_path, 5)
    monkeypatch.setattr(corpora, "CORPUS_BYTES_MAX", 2_000)
    with pytest.raises(errors.Invalid, match="more than 2000 bytes of text"):
        folders.read(tmp_path)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is readable to root"
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    texts.write(tmp_path, 3)
    (tmp_path / "closed.txt").write_text("x")
    (tmp_path / "closed.txt").chmod(0)
    with pytest.raises(errors.Invalid, match=r"closed\.txt cannot be read"):
        folders.read(tmp_path)
