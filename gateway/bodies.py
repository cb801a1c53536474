"""From the bytes of a request to its struct, or to the refusal that existing clients know.

The refusals are those of the system the contract was recorded on (pydantic's types and words, the
messages and positions of Python's json module), so values are read as that system reads them:
`"8.0"` and `true` are integers, a list is no dictionary. On purpose there is more that is refused:
NaN, infinities and lone surrogates anywhere, and nesting beyond DEPTH_MAX.
"""

import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec
import orjson
from msgspec import inspect

from core import errors

DEPTH_MAX = 64
FAULTS_SHOWN_MAX = 20
SHOWN_CHARS_MAX = 64
INTEGER_DIGITS_MAX = 4_300
UNREADABLE = "There was an error parsing the body"
NOT_CALLED_JSON = "The body is not called JSON; send it with Content-Type: application/json"

T = TypeVar("T", bound=msgspec.Struct)
Loc: TypeAlias = tuple[str | int, ...]
Fault: TypeAlias = dict[str, object]
Reader: TypeAlias = Callable[[object, Loc, list[Fault]], object]
"""Reads one JSON value; where it does not fit, adds to the faults what is wrong with it."""


class BadRequest(errors.Invalid):
    """The request cannot be read as what it should be; `status` and `body` are its answer."""

    def __init__(self, status: int, detail: str | list[Fault]) -> None:
        super().__init__(detail if isinstance(detail, str) else str(detail))
        self.status = status
        self.body = _to_text({"detail": detail}).encode()


def parse(raw: bytes, content_type: str | None, kind: type[T], *, as_recorded: bool = True) -> T:
    """Read a request's body. Raises BadRequest, and nothing else whatever the bytes.

    `as_recorded`: what is not called JSON is refused in the words that existing clients know.
    """
    form = _form(kind)
    if not raw:
        if form.requires_nothing:
            return kind()
        raise BadRequest(422, [_fault("missing", ("body",), "Field required", None)])
    if content_type != "application/json" and not _is_json(content_type or ""):
        fault = _no_object(_text_of(raw), ("body",))
        if not as_recorded:
            fault["msg"] = NOT_CALLED_JSON
        raise BadRequest(422, [fault])
    return _fill(kind, form, _load(raw), "body")


def parse_query(query: Mapping[str, str], kind: type[T]) -> T:
    """Read a request's query, its fields as texts. Raises BadRequest."""
    values: dict[str, object] = dict(query)
    faults = list(itertools.islice(_unclean(values, ("query",)), FAULTS_SHOWN_MAX))
    if faults:
        raise BadRequest(422, faults)
    return _fill(kind, _form(kind), values, "query")


def _fill(kind: type[T], form: "_Form", value: object, where: str) -> T:
    faults: list[Fault] = []
    filled = form.read(value, (where,), faults)
    if faults:
        raise BadRequest(422, faults)
    assert isinstance(filled, kind), "a form fills its own kind"
    for name, fault_of in form.rules:
        text = getattr(filled, name)
        reason = None if text is None else fault_of(text)
        if reason is not None:
            raise BadRequest(400, reason)
    return filled


# ── bytes to values ──

_to_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

# Every digit as "0": then a run of 19 digits, the shortest that may not fit into 64 bits, is found
# by one fast search.
_DIGITS_ALIKE = bytes.maketrans(b"123456789", b"000000000")
_LONG_RUN = b"0" * 19


@functools.lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    """Whether it is application/json or application/*+json, parameters aside."""
    main, _, sub = content_type.partition(";")[0].strip().lower().partition("/")
    return main == "application" and "/" not in sub and (sub == "json" or sub.endswith("+json"))


def _text_of(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadRequest(400, UNREADABLE) from None


def _load(raw: bytes) -> object:
    """The value of a JSON text: finite, without lone surrogates, at most DEPTH_MAX deep."""
    if _LONG_RUN not in raw.translate(_DIGITS_ALIKE):
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass
        else:
            _require_shallow(raw, value)
            return value
    return _load_exactly(raw)


def _load_exactly(raw: bytes) -> object:
    """As `_load`, for what orjson refuses (UTF-16, a BOM, faults) or rounds (long integers)."""
    try:
        value = json.loads(raw)
    except json.JSONDecodeError as error:
        fault = _fault("json_invalid", ("body", error.pos), "JSON decode error", {})
        raise BadRequest(422, [{**fault, "ctx": {"error": error.msg}}]) from None
    except (ValueError, RecursionError):  # not its encoding, thousands of digits or levels
        raise BadRequest(400, UNREADABLE) from None
    _require_shallow(raw, value)
    faults = list(itertools.islice(_unclean(value, ("body",)), FAULTS_SHOWN_MAX))
    if faults:
        raise BadRequest(422, faults)
    return value


def _require_shallow(raw: bytes, value: object) -> None:
    if raw.count(b"[") + raw.count(b"{") > DEPTH_MAX and _is_deep(value):
        raise BadRequest(
            400,
            f"The body is nested more than {DEPTH_MAX} levels deep, the most that is taken; "
            "send it flatter",
        )


def _is_deep(value: object) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEPTH_MAX):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
    return bool(level)


def _unclean(value: object, loc: Loc) -> Iterator[Fault]:
    """What JSON or UTF-8 cannot say, wherever it is."""
    match value:
        case float() if not math.isfinite(value):
            shown = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            yield _fault("finite_number", loc, "Input should be a finite number", shown)
        case str() if not _is_unicode(value):
            yield _not_unicode(value, loc)
        case dict():
            for key, child in value.items():
                if not _is_unicode(key):
                    yield _not_unicode(key, loc)
                yield from _unclean(child, (*loc, _showable(key)))
        case list():
            for index, child in enumerate(value):
                yield from _unclean(child, (*loc, index))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _showable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _not_unicode(text: str, loc: Loc) -> Fault:
    words = "Input should be a valid string, unable to parse raw data as a unicode string"
    return _fault("string_unicode", loc, words, _showable(text))


# ── values to fields ──


def _fault(
    name: str, loc: Loc, words: str, value: object, ctx: Mapping[str, object] | None = None
) -> Fault:
    fault: Fault = {"type": name, "loc": loc, "msg": words, "input": value}
    if ctx is not None:
        fault["ctx"] = ctx
    return fault


def _no_object(value: object, loc: Loc) -> Fault:
    words = "Input should be a valid dictionary or object to extract fields from"
    return _fault("model_attributes_type", loc, words, value)


def _text(value: object, loc: Loc, faults: list[Fault]) -> object:
    if not isinstance(value, str):
        faults.append(_fault("string_type", loc, "Input should be a valid string", value))
    return value


def _short(length_max: int) -> Reader:
    def short(value: object, loc: Loc, faults: list[Fault]) -> object:
        if isinstance(value, str) and len(value) > length_max:
            words = f"String should have at most {length_max} characters"
            shown = f"{value[:SHOWN_CHARS_MAX]}…"
            faults.append(_fault("string_too_long", loc, words, shown, {"max_length": length_max}))
        return _text(value, loc, faults)

    return short


def _object(value: object, loc: Loc, faults: list[Fault]) -> object:
    if isinstance(value, dict):
        return msgspec.Raw(compact(value))
    faults.append(_fault("dict_type", loc, "Input should be a valid dictionary", value))
    return None


def _truth(value: object, loc: Loc, faults: list[Fault]) -> object:
    """Only true and false: what else might be meant by them is not for a guess."""
    if not isinstance(value, bool):
        faults.append(_fault("bool_type", loc, "Input should be a valid boolean", value))
    return value


def compact(value: object) -> bytes:
    """The compact UTF-8 JSON of a clean value, integers of any size as they are."""
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer of more than 64 bits
        return _to_text(value).encode()


def _nullable(read: Reader) -> Reader:
    def nullable(value: object, loc: Loc, faults: list[Fault]) -> object:
        return None if value is None else read(value, loc, faults)

    return nullable


def _choice(values: tuple[object, ...]) -> Reader:
    quoted = [repr(value) for value in values]
    expected = " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)

    def choice(value: object, loc: Loc, faults: list[Fault]) -> object:
        if isinstance(value, str) and value in values:
            return value
        words = f"Input should be {expected}"
        faults.append(_fault("literal_error", loc, words, value, {"expected": expected}))
        return None

    return choice


_INTEGER = re.compile(r"([+-]?)([0-9]+(?:_[0-9]+)*)(?:\.0+)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:_[0-9]+)*\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)


class _Unfit(Exception):
    """A value that is not of the type asked for: the fault's name and words."""


def _to_integer(value: object) -> int:
    match value:
        case bool() | int():
            return int(value)
        case float():
            if not value.is_integer():
                raise _Unfit(
                    "int_from_float",
                    "Input should be a valid integer, got a number with a fractional part",
                )
            if abs(value) >= 2**63:
                raise _too_large()
            return int(value)
        case str():
            return _integer_of(value)
        case _:
            raise _Unfit("int_type", "Input should be a valid integer")


def _integer_of(text: str) -> int:
    match = _INTEGER.fullmatch(text.strip())
    if match is None:
        raise _Unfit(
            "int_parsing",
            "Input should be a valid integer, unable to parse string as an integer",
        )
    digits = match[2].replace("_", "").lstrip("0")
    if len(digits) > INTEGER_DIGITS_MAX:
        raise _too_large()
    return int(f"{match[1]}{digits or '0'}")


def _too_large() -> _Unfit:
    return _Unfit(
        "int_parsing_size", "Unable to parse input string as an integer, exceeded maximum size"
    )


def _to_number(value: object) -> float:
    match value:
        case bool() | int() | float():
            number = value
        case str() if _NUMBER.fullmatch(value.strip()):
            number = float(value)
        case str():
            raise _Unfit(
                "float_parsing",
                "Input should be a valid number, unable to parse string as a number",
            )
        case _:
            raise _Unfit("float_type", "Input should be a valid number")
    try:
        result = float(number)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise _Unfit("finite_number", "Input should be a finite number")
    return result


def _list(read: Reader, length_max: int) -> Reader:
    def items(value: object, loc: Loc, faults: list[Fault]) -> object:
        if not isinstance(value, list):
            faults.append(_fault("list_type", loc, "Input should be a valid list", value))
            return None
        if len(value) > length_max:
            words = f"List should have at most {length_max} items, not {len(value)}"
            ctx = {"max_length": length_max, "actual_length": len(value)}
            faults.append(_fault("too_long", loc, words, value[:length_max], ctx))
            return None
        return [read(item, (*loc, index), faults) for index, item in enumerate(value)]

    return items


class _Bound(NamedTuple):
    least: float | None
    most: float | None

    def fault(self, number: float, value: object, loc: Loc) -> Fault | None:
        if self.least is not None and number < self.least:
            words = f"Input should be greater than or equal to {_figure(self.least)}"
            return _fault("greater_than_equal", loc, words, value, {"ge": self.least})
        if self.most is not None and number > self.most:
            words = f"Input should be less than or equal to {_figure(self.most)}"
            return _fault("less_than_equal", loc, words, value, {"le": self.most})
        return None


def _figure(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _numeric(convert: Callable[[object], float], bound: _Bound) -> Reader:
    def numeric(value: object, loc: Loc, faults: list[Fault]) -> object:
        try:
            number = convert(value)
        except _Unfit as unfit:
            name, words = unfit.args
            faults.append(_fault(name, loc, words, value))
            return None
        fault = bound.fault(number, value, loc)
        if fault is not None:
            faults.append(fault)
        return number

    return numeric


def _clamped(read: Reader, low: int, high: int) -> Reader:
    def clamped(value: object, loc: Loc, faults: list[Fault]) -> object:
        number = read(value, loc, faults)
        return min(max(number, low), high) if isinstance(number, int) else None

    return clamped


# ── fields to structs ──


class _Field(NamedTuple):
    name: str
    read: Reader
    required: bool


class _Form:
    """How to fill one kind of struct: its fields, read in order, and rules on the whole."""

    def __init__(self, kind: type[msgspec.Struct]) -> None:
        info = inspect.type_info(kind)
        assert isinstance(info, inspect.StructType)
        self._kind = kind
        self._fields = [_Field(f.encode_name, _reader(f.type), f.required) for f in info.fields]
        self._known = {field.name for field in self._fields} if info.forbid_unknown_fields else None
        self.requires_nothing = not any(field.required for field in self._fields)
        self.rules = [
            (field.name, extra["fault"])
            for field in info.fields
            if isinstance(field.type, inspect.Metadata)
            and (extra := field.type.extra) is not None
            and "fault" in extra
        ]

    def read(self, value: object, loc: Loc, faults: list[Fault]) -> object:
        """A Reader of this kind of struct."""
        if not isinstance(value, dict):
            faults.append(_no_object(value, loc))
            return None
        before, fields = len(faults), {}
        for name, read, required in self._fields:
            if name in value:
                fields[name] = read(value[name], (*loc, name), faults)
            elif required:
                faults.append(_fault("missing", (*loc, name), "Field required", value))
        if self._known is not None:
            self._refuse_unknown(value, loc, faults)
        return None if len(faults) > before else self._kind(**fields)

    def _refuse_unknown(self, value: Mapping[str, object], loc: Loc, faults: list[Fault]) -> None:
        assert self._known is not None
        known = ", ".join(field.name for field in self._fields) or "none"
        words = f"Extra inputs are not permitted; known here: {known}"
        for name in itertools.islice((n for n in value if n not in self._known), FAULTS_SHOWN_MAX):
            faults.append(_fault("extra_forbidden", (*loc, name), words, value[name]))


@functools.cache
def _form(kind: type[msgspec.Struct]) -> _Form:
    return _Form(kind)


def _reader(kind: inspect.Type) -> Reader:
    match kind:
        case inspect.Metadata(type=inner, extra=extra):
            read = _reader(inner)
            return _clamped(read, *extra["clamp"]) if extra and "clamp" in extra else read
        case inspect.UnionType(types=types):
            (inner,) = (one for one in types if not isinstance(one, inspect.NoneType))
            return _nullable(_reader(inner))
        case inspect.StrType(max_length=int(length_max)):
            return _short(length_max)
        case inspect.StrType():
            return _text
        case inspect.RawType():
            return _object
        case inspect.BoolType():
            return _truth
        case inspect.IntType(ge=least, le=most):
            return _numeric(_to_integer, _Bound(least, most))
        case inspect.FloatType(ge=least, le=most):
            return _numeric(_to_number, _Bound(least, most))
        case inspect.LiteralType(values=values):
            return _choice(values)
        case inspect.StructType(cls=cls):
            return _form(cls).read
        case inspect.ListType(item_type=item, max_length=int(length_max)):
            return _list(_reader(item), length_max)
        case _:
            raise AssertionError(f"no request holds a {type(kind).__name__}")


def prepare(kind: type[msgspec.Struct]) -> None:
    """Work out how this kind is read, before the first request."""
    _form(kind)
