"""`/docs`: the OpenAPI document as one page to read, whole in itself.

It is made of the very document that `/openapi.json` serves, so the two cannot differ. Nothing is
loaded from anywhere and no script runs, and the answer's policy forbids both.
"""

import html
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple, TypeAlias

Json: TypeAlias = dict[str, Any]

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Words(NamedTuple):
    """A heading in both languages."""

    en: str
    ar: str


TITLE = Words("Aghsan", "أغصان")
TYPES = Words("Types", "الأنواع")
PARAMETERS = Words("Parameters", "المعاملات")
BODY = Words("Body", "المتن")
ANSWER = Words("Answer", "الجواب")
REFUSALS = Words("Refusals", "الرفض")
CONTENTS = Words("Contents", "المحتويات")
OPTIONAL_BODY = Words("may be left out", "يجوز تركه")
GROUPS = {
    "network": Words("The nine routes of the network", "مسارات الشبكة التسعة"),
    "more": Words("More of the network", "مسارات أخرى للشبكة"),
    "pages": Words("Beside the network", "إلى جانب الشبكة"),
}
"""What the tags of the document are called; one that is not here goes by its own name."""

_BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "minLength": "length ≥",
    "maxLength": "length ≤",
    "minItems": "items ≥",
    "maxItems": "items ≤",
    "pattern": "matches",
    "format": "format",
}
_TREE = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 22V12M12 14 5 7M12 12l7-6"/>'
    '<circle cx="5" cy="6" r="2.4" fill="var(--get)"/>'
    '<circle cx="19" cy="5" r="2.4" fill="var(--post)"/>'
    '<circle cx="12" cy="9" r="2.4" fill="var(--gold)"/></svg>'
)


class Operation(NamedTuple):
    """A method of a path, as the document describes it."""

    method: str
    path: str
    told: Json

    @property
    def anchor(self) -> str:
        """Where it stands on the page."""
        return str(self.told["operationId"])


def render(document: Json) -> bytes:
    """The page of an OpenAPI document."""
    groups = _grouped(document)
    schemas: Json = document["components"]["schemas"]
    sections = "".join(
        _section(tag, _words_of(tag), "".join(_operation(one, schemas) for one in operations))
        for tag, operations in groups.items()
    )
    types = "".join(_type(name, schema) for name, schema in schemas.items())
    version = html.escape(str(document["info"]["version"]))
    style = resources.files("gateway").joinpath("docs.css").read_text("utf-8")
    page = f"""<!doctype html>
<html lang="en" dir="ltr">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE.en} · {TITLE.ar} {version}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">{_both(CONTENTS)}</a>
<header>
<h1>{_TREE}{_both(TITLE)}</h1>
<span class="quiet">{version} · <a href="/openapi.json">openapi.json</a></span>
</header>
<div class="layout">
{_contents(groups)}
<main id="main">
{sections}{_section("types", TYPES, types)}</main>
</div>
</body>
</html>
"""
    return page.encode()


def _grouped(document: Json) -> dict[str, list[Operation]]:
    groups: dict[str, list[Operation]] = {}
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            tag = (told.get("tags") or ["pages"])[0]
            groups.setdefault(tag, []).append(Operation(method, path, told))
    return groups


def _words_of(tag: str) -> Words:
    return GROUPS.get(tag, Words(tag, tag))


def _both(words: Words) -> str:
    arabic = f'<span lang="ar" dir="rtl">{html.escape(words.ar)}</span>'
    return f"<span>{html.escape(words.en)}</span> {arabic}"


def _contents(groups: dict[str, list[Operation]]) -> str:
    parts = [f'<nav aria-label="{CONTENTS.en} {CONTENTS.ar}">']
    for tag, operations in groups.items():
        rows = "".join(
            f'<li><a href="#{html.escape(one.anchor)}">{_method(one.method)}'
            f"<code>{_breakable(_short(one.path))}</code></a></li>\n"
            for one in operations
        )
        parts.append(f"<h2>{_both(_words_of(tag))}</h2>\n<ul>\n{rows}</ul>")
    parts.append(f'<h2><a href="#types">{_both(TYPES)}</a></h2>\n</nav>')
    return "\n".join(parts)


def _short(path: str) -> str:
    return path.removeprefix("/api/v1/network")


def _breakable(path: str) -> str:
    return html.escape(path).replace("/", "<wbr>/")


def _method(method: str) -> str:
    name = html.escape(method)
    return f'<span class="method {name}">{name.upper()}</span>'


def _section(anchor: str, words: Words, content: str) -> str:
    return f'<section id="{html.escape(anchor)}">\n<h2>{_both(words)}</h2>\n{content}</section>\n'


# ── one operation ──


def _operation(one: Operation, schemas: Json) -> str:
    anchor, summary = html.escape(one.anchor), html.escape(str(one.told.get("summary", "")))
    name = f'<a href="#{anchor}"><code>{_breakable(one.path)}</code></a>'
    parts = [
        f'<article id="{anchor}">',
        f"<h3>{_method(one.method)}{name} <small>{summary}</small></h3>",
        *_parameters(one.told.get("parameters", [])),
        *_body(one.told.get("requestBody"), schemas),
        *_answers(one.told["responses"], schemas),
        "</article>\n",
    ]
    return "\n".join(parts)


def _parameters(parameters: list[Json]) -> Iterator[str]:
    if parameters:
        rows = [
            _row(one["name"], one["schema"], needed=one["required"], note=f"in {one['in']}")
            for one in parameters
        ]
        yield f"<h4>{_both(PARAMETERS)}</h4>\n{_table(rows)}"


def _body(body: Json | None, schemas: Json) -> Iterator[str]:
    if body is None:
        return
    for media_type, content in body["content"].items():
        left_out = "" if body.get("required") else f" <small>({_both(OPTIONAL_BODY)})</small>"
        yield (
            f"<h4>{_both(BODY)} <code>{html.escape(media_type)}</code> "
            f"{_shape(content['schema'])}{left_out}</h4>"
        )
        name = _referred(content["schema"])
        if name in schemas:
            yield _fields(schemas[name])


def _answers(responses: Json, schemas: Json) -> Iterator[str]:
    refusals = []
    for status, response in responses.items():
        if not status.startswith("2"):
            refusals.append(_refusal(status, response))
            continue
        for media_type, content in response["content"].items():
            schema = content.get("schema")
            shape = f" {_shape(schema)}" if schema else ""
            yield (
                f"<h4>{_both(ANSWER)} <code>{html.escape(status)}</code> "
                f"<code>{html.escape(media_type)}</code>{shape}</h4>"
            )
            if schema and _referred(schema) in schemas:
                yield _fields(schemas[_referred(schema)])
    if refusals:
        yield f'<h4>{_both(REFUSALS)}</h4>\n<ul class="refusals">\n{"".join(refusals)}</ul>'


def _refusal(status: str, response: Json) -> str:
    shapes = "".join(f" {_shape(one['schema'])}" for one in response["content"].values())
    words = html.escape(str(response["description"]))
    return f"<li><code>{html.escape(status)}</code> {words}{shapes}</li>\n"


# ── types ──


def _type(name: str, schema: Json) -> str:
    words = str(schema.get("description", ""))
    described = f"<p>{html.escape(words)}</p>\n" if words else ""
    return (
        f'<article id="type-{html.escape(name)}">\n<h3><code>{html.escape(name)}</code></h3>\n'
        f"{described}{_fields(schema)}</article>\n"
    )


def _fields(schema: Json) -> str:
    needed = set(schema.get("required", ()))
    properties: Json = schema.get("properties", {})
    return _table([_row(name, one, needed=name in needed) for name, one in properties.items()])


def _table(rows: list[str]) -> str:
    return f"<table><tbody>\n{''.join(rows)}</tbody></table>\n" if rows else ""


def _row(name: str, schema: Json, *, needed: bool, note: str = "") -> str:
    star = ' <abbr class="needed" title="required">*</abbr>' if needed else ""
    notes = [html.escape(note)] if note else []
    if "default" in schema:
        notes.append(f"default <code>{_literal(schema['default'])}</code>")
    if schema.get("description"):
        notes.append(html.escape(str(schema["description"])))
    return (
        f'<tr><th scope="row"><code>{html.escape(name)}</code>{star}</th>'
        f"<td>{_shape(schema)}</td><td>{' · '.join(notes)}</td></tr>\n"
    )


def _referred(schema: Json) -> str:
    """The name of the type that a schema refers to, or nothing."""
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _shape(schema: Json) -> str:
    """The type of a schema in a few words, with its bounds and links to other types."""
    if name := _referred(schema):
        return f'<a href="#type-{html.escape(name)}"><code>{html.escape(name)}</code></a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_shape(one) for one in schema[key])
    if "enum" in schema:
        return " ".join(f"<code>{_literal(one)}</code>" for one in schema["enum"])
    if "const" in schema:
        return f"<code>{_literal(schema['const'])}</code>"
    kind = schema.get("type", "any")
    if kind == "array" and "items" in schema:
        return f"list of {_shape(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_shape(schema['additionalProperties'])}"
    bounds = [f"{sign} {_literal(schema[key])}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([html.escape(str(kind)), *bounds])


def _literal(value: object) -> str:
    return html.escape(json.dumps(value, ensure_ascii=False), quote=False)
