"""A strict reader of Prometheus' text format: what it takes, Prometheus takes.

https://prometheus.io/docs/instrumenting/exposition_formats/ and, for names,
https://prometheus.io/docs/practices/naming/
"""

import re
from typing import NamedTuple

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
NUMBER = r"[+-]?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|Inf)|NaN"
KINDS = frozenset({"counter", "gauge", "histogram", "summary"})
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}

_is_sample = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? ({NUMBER})").fullmatch
_labels = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"').findall
_escapes = re.compile(r"\\(.)").sub


class Family(NamedTuple):
    """What was said of one name."""

    kind: str
    help: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> dict[str, Family]:
    """All families by name. Asserts that the text keeps every rule."""
    assert text.endswith("\n")
    families: dict[str, Family] = {}
    lines = text.removesuffix("\n").split("\n")
    at = 0
    while at < len(lines):
        name, words = _comment("HELP", lines[at])
        named, kind = _comment("TYPE", lines[at + 1])
        assert name == named
        assert name not in families
        assert kind in KINDS
        at += 2
        family = families[name] = Family(kind, words, {})
        while at < len(lines) and not lines[at].startswith("#"):
            _take(family, name, lines[at])
            at += 1
        _require_conventions(name, family)
    return families


def _comment(keyword: str, line: str) -> tuple[str, str]:
    found = re.fullmatch(rf"# {keyword} ({NAME}) (.+)", line)
    assert found, line
    return found[1], found[2]


def _take(family: Family, name: str, line: str) -> None:
    found = _is_sample(line)
    assert found, line
    allowed = [name + suffix for suffix in SUFFIXES.get(family.kind, ("",))]
    assert found[1] in allowed, line
    pairs = [(key, _escapes(_unescaped, value)) for key, value in _labels(found[2] or "")]
    assert len({key for key, _ in pairs}) == len(pairs), line
    assert ("le" in dict(pairs)) == found[1].endswith("_bucket"), line
    identity = (found[1], tuple(sorted(pairs)))
    assert identity not in family.samples, line
    family.samples[identity] = float(found[3])


def _unescaped(found: re.Match[str]) -> str:
    return {"n": "\n"}.get(found[1], found[1])


def _require_conventions(name: str, family: Family) -> None:
    assert family.samples, name
    assert name.endswith("_total") == (family.kind == "counter"), name
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name), name
    assert all(value >= 0 for value in family.samples.values()), name
    if family.kind == "histogram":
        buckets = [
            (float(dict(labels)["le"]), value)
            for (sample, labels), value in family.samples.items()
            if sample == f"{name}_bucket"
        ]
        assert buckets == sorted(buckets)
        assert [value for _, value in buckets] == sorted(value for _, value in buckets)
        assert buckets[-1] == (float("inf"), family.samples[f"{name}_count", ()])
