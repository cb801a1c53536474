"""The page made of the OpenAPI document."""

import html.parser
import re
from collections.abc import Iterator
from typing import Any

import pytest

from gateway import docs, openapi
from tests.unit.test_openapi import ROUTES

VOID = frozenset({"meta", "br", "wbr", "link", "img", "input"})
SVG_EMPTY = frozenset({"path", "circle"})


class Page(html.parser.HTMLParser):
    """A page taken apart: ids, links, attributes, texts; what is not closed properly fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_EMPTY | VOID, tag
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.links.append(value or "")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document(ROUTES, "1.2.3")


@pytest.fixture(scope="module")
def raw(document: dict[str, Any]) -> str:
    return docs.render(document).decode()


@pytest.fixture(scope="module")
def page(raw: str) -> Page:
    return Page(raw)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def article(raw: str, anchor: str) -> str:
    """The text of one article."""
    found = re.search(rf'<article id="{anchor}">.*?</article>', raw, re.DOTALL)
    assert found, anchor
    return Page(found[0]).text


def test_every_operation_is_there_with_its_path_parameters_and_answers(
    document: dict[str, Any], raw: str
) -> None:
    for path, operation in operations(document):
        text = article(raw, operation["operationId"])
        assert path in text
        for parameter in operation.get("parameters", []):
            assert parameter["name"] in text
        assert all(status in text for status in operation["responses"])


def test_a_body_is_shown_field_by_field_with_what_is_needed(raw: str) -> None:
    text = article(raw, "network_training_enqueue_post")
    assert "topic *" in text
    assert '"dual" "evolver" "reinventor"' in text
    assert "default 5 · Brought into 1..10; higher runs earlier." in text
    assert "number ≥ 0.1 ≤ 86400 or null" in text


def test_every_type_is_there_with_all_its_fields(document: dict[str, Any], raw: str) -> None:
    for name, schema in document["components"]["schemas"].items():
        text = article(raw, f"type-{name}")
        assert all(field in text for field in schema["properties"])


def test_every_link_leads_somewhere_on_the_page_or_to_the_document(page: Page) -> None:
    anchors = {f"#{one}" for one in page.ids}
    assert set(page.links) <= anchors | {"/openapi.json"}
    assert len(set(page.ids)) == len(page.ids)


def test_nothing_is_loaded_and_no_script_runs(raw: str, page: Page) -> None:
    tags = {tag for tag, _, _ in page.attributes}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "form"})
    assert {name for _, name, _ in page.attributes}.isdisjoint({"src", "srcset", "style"})
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import", raw)


def test_headings_are_in_both_languages(page: Page) -> None:
    for words in (docs.TITLE, docs.TYPES, docs.PARAMETERS, docs.BODY, docs.ANSWER, docs.REFUSALS):
        assert f"{words.en} {words.ar}" in page.text
    for words in docs.GROUPS.values():
        assert words.ar in page.text
    assert ("span", "lang", "ar") in page.attributes


def test_words_of_the_document_cannot_become_markup(document: dict[str, Any]) -> None:
    hostile = '<script>alert("x")</script>'
    operation = {
        "summary": hostile,
        "operationId": "a",
        "tags": [hostile],
        "parameters": [
            {"name": hostile, "in": hostile, "required": False, "schema": {"enum": [hostile]}}
        ],
        "responses": {"200": {"description": hostile, "content": {hostile: {}}}},
    }
    text = docs.render({**document, "paths": {f"/{hostile}": {"get": operation}}}).decode()
    assert "<script" not in text
    assert Page(text).text.count(hostile) >= 5
