"""Bodies: what existing clients are told, byte for byte, and what is refused on purpose."""
# ruff: noqa: E501  recorded answers stand on one line

import json
import math
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import bodies, schemas
from gateway.schemas import (
    ClaimRequest,
    CompleteRequest,
    EnqueueRequest,
    ExpandRequest,
    HeartbeatRequest,
    RegisterRequest,
    ThinkRequest,
)

JSON = "application/json"
POSTS: list[type[schemas.Request]] = [
    ExpandRequest,
    RegisterRequest,
    HeartbeatRequest,
    EnqueueRequest,
    ClaimRequest,
    CompleteRequest,
    ThinkRequest,
    schemas.JoinRequest,
    schemas.CancelRequest,
    schemas.SweepRequest,
    schemas.Nothing,
]


def refusal(
    raw: bytes | str, kind: type[schemas.Request], content_type: str | None = JSON
) -> tuple[int, str]:
    """Status and body of the refusal of a body that must be refused."""
    with pytest.raises(bodies.BadRequest) as refused:
        bodies.parse(raw.encode() if isinstance(raw, str) else raw, content_type, kind)
    return refused.value.status, refused.value.body.decode()


def fault(raw: str, kind: type[schemas.Request]) -> dict[str, Any]:
    """The one thing that is wrong with a body."""
    status, body = refusal(raw, kind)
    assert status == 422, body
    (only,) = json.loads(body)["detail"]
    assert isinstance(only, dict)
    return only


# (what is sent, how it is read, what is wrong with it), as recorded
RECORDED = [
    (
        '{"parent_id":"root-math","name":"x","description":null}',
        ExpandRequest,
        '{"type":"string_type","loc":["body","description"],"msg":"Input should be a valid string","input":null}',
    ),
    (
        "{}",
        ExpandRequest,
        '{"type":"missing","loc":["body","parent_id"],"msg":"Field required","input":{}},{"type":"missing","loc":["body","name"],"msg":"Field required","input":{}}',
    ),
    (
        '{"parent_id":"root-math","name":5}',
        ExpandRequest,
        '{"type":"string_type","loc":["body","name"],"msg":"Input should be a valid string","input":5}',
    ),
    (
        '{"worker_id":"w-4bbdc3-1"}',
        RegisterRequest,
        '{"type":"missing","loc":["body","hostname"],"msg":"Field required","input":{"worker_id":"w-4bbdc3-1"}}',
    ),
    (
        '{"worker_id":"w","hostname":"h","capabilities":null}',
        RegisterRequest,
        '{"type":"dict_type","loc":["body","capabilities"],"msg":"Input should be a valid dictionary","input":null}',
    ),
    (
        '{"worker_id":"w","hostname":"h","capabilities":[]}',
        RegisterRequest,
        '{"type":"dict_type","loc":["body","capabilities"],"msg":"Input should be a valid dictionary","input":[]}',
    ),
    (
        '{"worker_id":7,"hostname":"h"}',
        RegisterRequest,
        '{"type":"string_type","loc":["body","worker_id"],"msg":"Input should be a valid string","input":7}',
    ),
    (
        '{"worker_id":"w","capabilities":null}',
        HeartbeatRequest,
        '{"type":"dict_type","loc":["body","capabilities"],"msg":"Input should be a valid dictionary","input":null}',
    ),
    (
        '{"worker_id":"w","status":null}',
        HeartbeatRequest,
        '{"type":"string_type","loc":["body","status"],"msg":"Input should be a valid string","input":null}',
    ),
    (
        '{"topic":"p","priority":7.5}',
        EnqueueRequest,
        '{"type":"int_from_float","loc":["body","priority"],"msg":"Input should be a valid integer, got a number with a fractional part","input":7.5}',
    ),
    (
        '{"topic":"p","priority":"x"}',
        EnqueueRequest,
        '{"type":"int_parsing","loc":["body","priority"],"msg":"Input should be a valid integer, unable to parse string as an integer","input":"x"}',
    ),
    (
        '{"topic":"p","priority":null}',
        EnqueueRequest,
        '{"type":"int_type","loc":["body","priority"],"msg":"Input should be a valid integer","input":null}',
    ),
    (
        '{"topic":"p","priority":"٨"}',
        EnqueueRequest,
        '{"type":"int_parsing","loc":["body","priority"],"msg":"Input should be a valid integer, unable to parse string as an integer","input":"٨"}',
    ),
    (
        '{"topic":"p","priority":""}',
        EnqueueRequest,
        '{"type":"int_parsing","loc":["body","priority"],"msg":"Input should be a valid integer, unable to parse string as an integer","input":""}',
    ),
    (
        '{"topic":"p","priority":[5]}',
        EnqueueRequest,
        '{"type":"int_type","loc":["body","priority"],"msg":"Input should be a valid integer","input":[5]}',
    ),
    (
        '{"topic":"p","priority":1e20}',
        EnqueueRequest,
        '{"type":"int_parsing_size","loc":["body","priority"],"msg":"Unable to parse input string as an integer, exceeded maximum size","input":1e+20}',
    ),
    (
        '{"topic":null}',
        EnqueueRequest,
        '{"type":"string_type","loc":["body","topic"],"msg":"Input should be a valid string","input":null}',
    ),
    (
        "{}",
        EnqueueRequest,
        '{"type":"missing","loc":["body","topic"],"msg":"Field required","input":{}}',
    ),
    (
        "{bad",
        EnqueueRequest,
        '{"type":"json_invalid","loc":["body",1],"msg":"JSON decode error","input":{},"ctx":{"error":"Expecting property name enclosed in double quotes"}}',
    ),
    (
        '{"topic":"p"} x',
        EnqueueRequest,
        '{"type":"json_invalid","loc":["body",14],"msg":"JSON decode error","input":{},"ctx":{"error":"Extra data"}}',
    ),
    (
        "",
        EnqueueRequest,
        '{"type":"missing","loc":["body"],"msg":"Field required","input":null}',
    ),
    (
        "[]",
        EnqueueRequest,
        '{"type":"model_attributes_type","loc":["body"],"msg":"Input should be a valid dictionary or object to extract fields from","input":[]}',
    ),
    (
        '"x"',
        EnqueueRequest,
        '{"type":"model_attributes_type","loc":["body"],"msg":"Input should be a valid dictionary or object to extract fields from","input":"x"}',
    ),
    (
        "null",
        EnqueueRequest,
        '{"type":"model_attributes_type","loc":["body"],"msg":"Input should be a valid dictionary or object to extract fields from","input":null}',
    ),
    (
        "{}",
        ClaimRequest,
        '{"type":"missing","loc":["body","worker_id"],"msg":"Field required","input":{}}',
    ),
    (
        '{"worker_id":1}',
        ClaimRequest,
        '{"type":"string_type","loc":["body","worker_id"],"msg":"Input should be a valid string","input":1}',
    ),
    (
        "{}",
        ThinkRequest,
        '{"type":"missing","loc":["body","node_id"],"msg":"Field required","input":{}},{"type":"missing","loc":["body","prompt"],"msg":"Field required","input":{}}',
    ),
]


@pytest.mark.parametrize(("sent", "kind", "faults"), RECORDED)
def test_a_refusal_reads_as_it_was_recorded(
    sent: str, kind: type[schemas.Request], faults: str
) -> None:
    assert refusal(sent, kind) == (422, f'{{"detail":[{faults}]}}')


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "text/json", "json"])
def test_a_body_that_is_not_called_json_is_refused_as_recorded(content_type: str | None) -> None:
    assert refusal('{"topic":"p"}', EnqueueRequest, content_type) == (
        422,
        (
            '{"detail":[{"type":"model_attributes_type","loc":["body"],"msg":"Input should be a valid '
            'dictionary or object to extract fields from","input":"{\\"topic\\":\\"p\\"}"}]}'
        ),
    )


def test_a_form_is_refused_as_recorded() -> None:
    status, body = refusal("topic=p", EnqueueRequest, "application/x-www-form-urlencoded")
    assert status == 422
    assert body.endswith('"input":"topic=p"}]}')


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-8",
        "application/x+json",
        "Application/JSON",
        "application/json;charset=latin-1",
        "application/ld+json ; a=b",
    ],
)
def test_every_kind_of_json_is_taken(content_type: str) -> None:
    raw = '{"topic":"مرحبا"}'.encode()
    assert bodies.parse(raw, content_type, EnqueueRequest).topic == "مرحبا"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"topic":"\xff"}',
        b'{"topic":"p","x":"\xc3\x28"}',
        b'{"task_id":"t","worker_id":"w","metrics":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001,
        b'{"topic":"p","priority":' + b"9" * 5_000 + b"}",
        b"[" * 100_000,
    ],
    ids=["not UTF-8", "not UTF-8 in a field nobody asks for", "deep", "digits", "open"],
)
def test_a_body_beyond_reading_is_a_400_as_recorded(raw: bytes) -> None:
    expected = (400, '{"detail":"There was an error parsing the body"}')
    assert refusal(raw, EnqueueRequest) == expected
    assert refusal(raw, CompleteRequest) == expected


def test_bytes_that_are_no_text_are_refused_whatever_they_are_called() -> None:
    assert refusal(b"\xff\xfe\x00", EnqueueRequest, "text/plain")[0] == 400


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_of_unicode_are_taken(encoding: str) -> None:
    raw = '{"topic":"ش"}'.encode(encoding)
    assert bodies.parse(raw, JSON, EnqueueRequest).topic == "ش"


@pytest.mark.parametrize(
    ("sent", "priority"),
    [
        ("0", 1),
        ("-5", 1),
        ("11", 10),
        ("1000000", 10),
        ("8.0", 8),
        ("true", 1),
        ("false", 1),
        ("1" + "0" * 30, 10),
        ("-1" + "0" * 30, 1),
        ("9e17", 10),
        ('"8"', 8),
        ('" 8 "', 8),
        ('"8.0"', 8),
        ('"+8"', 8),
        ('"-8"', 1),
        ('"0008"', 8),
        ('"1_0"', 10),
        (f'"{"9" * 40}"', 10),
    ],
)
def test_a_priority_is_understood_and_brought_into_bounds(sent: str, priority: int) -> None:
    raw = f'{{"topic":"p","priority":{sent}}}'.encode()
    assert bodies.parse(raw, JSON, EnqueueRequest).priority == priority


@pytest.mark.parametrize("sent", ["5.", ".0", "1e3", "0x8", "_8", "8_", "1__0", "+-8", "8\\u0000"])
def test_what_only_resembles_an_integer_is_refused(sent: str) -> None:
    assert fault(f'{{"topic":"p","priority":"{sent}"}}', EnqueueRequest)["type"] == "int_parsing"


def test_an_integer_of_thousands_of_digits_in_a_text_is_refused() -> None:
    sent = f'{{"topic":"p","priority":"{"9" * 4_301}"}}'
    assert fault(sent, EnqueueRequest)["type"] == "int_parsing_size"


def test_the_last_of_equal_keys_wins_and_other_keys_are_ignored() -> None:
    request = bodies.parse(b'{"topic":5,"x":[{}],"topic":"b"}', JSON, EnqueueRequest)
    assert request == EnqueueRequest(topic="b")


def test_null_is_taken_only_where_the_contract_says() -> None:
    assert bodies.parse(b'{"topic":"p","node_id":null}', JSON, EnqueueRequest).node_id is None
    sent = b'{"task_id":"t","worker_id":"w","artifact_name":null,"artifact_payload":null}'
    request = bodies.parse(sent, JSON, CompleteRequest)
    assert (request.artifact_name, request.artifact_payload) == (None, None)
    assert fault('{"task_id":"t","worker_id":"w","metrics":null}', CompleteRequest)["loc"] == [
        "body",
        "metrics",
    ]


def test_an_empty_payload_is_not_a_missing_one() -> None:
    sent = b'{"task_id":"t","worker_id":"w","artifact_payload":{ }}'
    assert bodies.parse(sent, JSON, CompleteRequest).artifact_payload == msgspec.Raw(b"{}")


def test_an_object_is_kept_compact_and_unescaped() -> None:
    sent = b'{"worker_id":"w","hostname":"h","capabilities":{ "\\u0634" : [1, null, {"a": 1.50}] }}'
    kept = bodies.parse(sent, JSON, RegisterRequest).capabilities
    assert bytes(kept) == '{"ش":[1,null,{"a":1.5}]}'.encode()


@pytest.mark.parametrize("number", ["18446744073709551616", "-9223372036854775809", "1" * 300])
def test_an_integer_of_more_than_64_bits_survives_in_an_object(number: str) -> None:
    sent = f'{{"task_id":"t","worker_id":"w","metrics":{{"n":[{number}]}}}}'.encode()
    kept = bytes(bodies.parse(sent, JSON, CompleteRequest).metrics)
    assert kept == f'{{"n":[{number}]}}'.encode()


# ── better on purpose ──


@pytest.mark.parametrize(
    ("number", "shown"),
    [("NaN", "NaN"), ("Infinity", "Infinity"), ("-Infinity", "-Infinity"), ("1e400", "Infinity")],
)
@pytest.mark.parametrize(
    ("sent", "kind", "loc"),
    [
        ('{"topic":"p","priority":%s}', EnqueueRequest, ["priority"]),
        ('{"topic":"p","x":%s}', EnqueueRequest, ["x"]),
        ('{"worker_id":"w","capabilities":{"a":%s}}', HeartbeatRequest, ["capabilities", "a"]),
        (
            '{"task_id":"t","worker_id":"w","metrics":{"loss":[0,%s]}}',
            CompleteRequest,
            ["metrics", "loss", 1],
        ),
        (
            '{"task_id":"t","worker_id":"w","artifact_payload":{"a":{"b":%s}}}',
            CompleteRequest,
            ["artifact_payload", "a", "b"],
        ),
    ],
)
def test_a_number_that_is_none_is_refused_wherever_it_is(
    sent: str, kind: type[schemas.Request], loc: list[str | int], number: str, shown: str
) -> None:
    assert fault(sent % number, kind) == {
        "type": "finite_number",
        "loc": ["body", *loc],
        "msg": "Input should be a finite number",
        "input": shown,
    }


@pytest.mark.parametrize(
    "sent",
    [
        '{"topic":"\\ud800"}',
        '{"topic":"p","x":{"\\udfff":1}}',
        '{"topic":"p","x":["\\ud83d:\\ude80"]}',
        '{"topic":"p","node_id":"\\ude80\\ud83d"}',
    ],
)
def test_half_a_character_is_refused_wherever_it_is(sent: str) -> None:
    assert fault(sent, EnqueueRequest)["type"] == "string_unicode"


def test_half_a_character_in_raw_bytes_or_utf_16_is_refused() -> None:
    assert refusal(b'{"topic":"\xed\xa0\x80"}', EnqueueRequest)[0] == 422
    raw = '{"topic":"\ud800"}'.encode("utf-16", "surrogatepass")
    assert refusal(raw, EnqueueRequest)[0] == 422


def test_only_so_many_faults_are_told() -> None:
    status, body = refusal(f'{{"topic":[{",".join(["NaN"] * 500)}]}}', EnqueueRequest)
    assert (status, len(json.loads(body)["detail"])) == (422, bodies.FAULTS_SHOWN_MAX)


def nested(levels: int) -> bytes:
    """A completion that is so many levels deep."""
    inner = b"[" * (levels - 2) + b"]" * (levels - 2)
    return b'{"task_id":"t","worker_id":"w","metrics":{"a":%b}}' % inner


def test_a_body_may_be_so_deep_and_no_deeper() -> None:
    assert bodies.parse(nested(bodies.DEPTH_MAX), JSON, CompleteRequest).task_id == "t"
    status, body = refusal(nested(bodies.DEPTH_MAX + 1), CompleteRequest)
    assert status == 400
    assert "64 levels" in body


def test_many_brackets_side_by_side_are_not_depth() -> None:
    sent = b'{"task_id":"t","worker_id":"w","metrics":{"a":[%b]}}' % b",".join([b"[]"] * 1_000)
    assert bodies.parse(sent, JSON, CompleteRequest).task_id == "t"


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "..\\\\x",
        "/etc/passwd",
        ".",
        "..",
        "a\\u0000b",
        "a\\nb",
        "\\u2028",
        "ن" * 128,
    ],
)
def test_a_name_that_is_more_than_a_name_is_refused(name: str) -> None:
    sent = f'{{"task_id":"t","worker_id":"w","artifact_name":"{name}"}}'
    status, body = refusal(sent, CompleteRequest)
    assert status == 400
    assert "artifact_name" in json.loads(body)["detail"]


@pytest.mark.parametrize("name", ["", "model.json", "نموذج ٣.json", "...", "a..b", "C:", "ن" * 127])
def test_a_name_that_can_be_shown_is_taken(name: str) -> None:
    sent = f'{{"task_id":"t","worker_id":"w","artifact_name":"{name}"}}'.encode()
    assert bodies.parse(sent, JSON, CompleteRequest).artifact_name == name


# ── optional fields of an enqueue ──


def test_an_enqueue_may_say_how_it_wants_to_be_trained() -> None:
    sent = (
        b'{"topic":"p","role":"evolver","method":"full","budget_seconds":"2.5","seed":9,'
        b'"parents":["a","b"],"requires":{"device":"cuda","memory_gb":80}}'
    )
    assert bodies.parse(sent, JSON, EnqueueRequest) == EnqueueRequest(
        topic="p",
        role="evolver",
        method="full",
        budget_seconds=2.5,
        seed=9,
        parents=["a", "b"],
        requires=schemas.Requires(device="cuda", memory_gb=80.0),
    )


def test_null_leaves_what_has_no_default_of_its_own_to_the_server() -> None:
    sent = b'{"topic":"p","budget_seconds":null,"seed":null,"requires":null}'
    assert bodies.parse(sent, JSON, EnqueueRequest) == EnqueueRequest(topic="p")


@pytest.mark.parametrize(
    ("field", "name", "words"),
    [
        ('"role":"merge"', "literal_error", "Input should be 'dual', 'evolver' or 'reinventor'"),
        ('"role":null', "literal_error", "Input should be 'dual', 'evolver' or 'reinventor'"),
        (
            '"method":5',
            "literal_error",
            "Input should be 'auto', 'distill', 'full', 'lora', 'merge' or 'quantize'",
        ),
        ('"parents":"c"', "list_type", "Input should be a valid list"),
        (
            '"parents":["a","b","c","d","e"]',
            "too_long",
            "List should have at most 4 items, not 5",
        ),
        (
            '"budget_seconds":"x"',
            "float_parsing",
            "Input should be a valid number, unable to parse string as a number",
        ),
        ('"budget_seconds":[]', "float_type", "Input should be a valid number"),
        (
            '"budget_seconds":0.01',
            "greater_than_equal",
            "Input should be greater than or equal to 0.1",
        ),
        (
            '"budget_seconds":86401',
            "less_than_equal",
            "Input should be less than or equal to 86400",
        ),
        ('"budget_seconds":"1e999"', "finite_number", "Input should be a finite number"),
        (f'"budget_seconds":{"9" * 400}', "finite_number", "Input should be a finite number"),
        ('"seed":-1', "greater_than_equal", "Input should be greater than or equal to 0"),
        (
            '"seed":9223372036854775808',
            "less_than_equal",
            "Input should be less than or equal to 9223372036854775807",
        ),
    ],
)
def test_an_optional_field_is_refused_in_the_same_shape(field: str, name: str, words: str) -> None:
    told = fault(f'{{"topic":"p",{field}}}', EnqueueRequest)
    assert (told["type"], told["msg"]) == (name, words)
    assert told["loc"] == ["body", field.split('"')[1]]


def test_a_need_that_is_not_known_is_refused_instead_of_ignored() -> None:
    told = fault('{"topic":"p","requires":{"gpus":2}}', EnqueueRequest)
    assert (told["type"], told["loc"]) == ("extra_forbidden", ["body", "requires", "gpus"])


def test_an_id_or_name_has_an_end() -> None:
    sent = '{"worker_id":"%s"}'
    longest = "ع" * schemas.NAME_CHARS_MAX
    raw = (sent % longest).encode()
    assert bodies.parse(raw, JSON, schemas.ClaimRequest).worker_id == longest
    told = fault(sent % (longest + "ع"), schemas.ClaimRequest)
    assert (told["type"], told["loc"]) == ("string_too_long", ["body", "worker_id"])
    assert told["msg"] == f"String should have at most {schemas.NAME_CHARS_MAX} characters"


def test_beyond_the_nine_routes_a_body_that_is_not_called_json_is_told_how_to_be() -> None:
    with pytest.raises(bodies.BadRequest) as refused:
        bodies.parse(b'{"reason":"r"}', None, schemas.CancelRequest, as_recorded=False)
    (told,) = json.loads(refused.value.body)["detail"]
    assert (told["type"], told["loc"]) == ("model_attributes_type", ["body"])
    assert "Content-Type: application/json" in told["msg"]


def test_an_empty_body_is_enough_where_nothing_is_required() -> None:
    assert bodies.parse(b"", None, schemas.CancelRequest) == schemas.CancelRequest()


# ── queries ──


def test_a_query_is_read_as_a_body_is() -> None:
    query = {"status": "queued", "limit": " 7 "}
    assert bodies.parse_query(query, schemas.TasksQuery) == schemas.TasksQuery(
        status="queued", limit=7
    )


@pytest.mark.parametrize(
    ("query", "name", "field"),
    [
        ({"limit": "x"}, "int_parsing", "limit"),
        ({"limit": "0"}, "greater_than_equal", "limit"),
        ({"limit": "1001"}, "less_than_equal", "limit"),
        ({"status": "nope"}, "literal_error", "status"),
        ({"node_id": "\udcff"}, "string_unicode", "node_id"),
    ],
)
def test_a_query_is_refused_in_the_same_shape(query: dict[str, str], name: str, field: str) -> None:
    with pytest.raises(bodies.BadRequest) as refused:
        bodies.parse_query(query, schemas.TasksQuery)
    (told,) = json.loads(refused.value.body)["detail"]
    assert (told["type"], told["loc"]) == (name, ["query", field])


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (schemas.TasksQuery, "status, node_id, closed, newest, after, limit"),
        (schemas.NoQuery, "none"),
    ],
)
def test_a_parameter_that_is_not_known_is_refused_and_those_known_are_named(
    kind: type[schemas.Query], known: str
) -> None:
    with pytest.raises(bodies.BadRequest) as refused:
        bodies.parse_query({"at": "7"}, kind)
    (told,) = json.loads(refused.value.body)["detail"]
    assert (told["type"], told["loc"], told["input"]) == ("extra_forbidden", ["query", "at"], "7")
    assert told["msg"].endswith(f"known here: {known}")


def test_the_queries_of_the_nine_routes_ignore_what_they_do_not_know() -> None:
    assert bodies.parse_query({"x": "1"}, schemas.Nothing) == schemas.Nothing()


# ── whatever is sent ──

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
any_json = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
)
field_names = st.sampled_from(
    sorted({field.name for kind in POSTS for field in msgspec.structs.fields(kind)})
)
names = field_names | st.text(max_size=3)
near_requests = st.dictionaries(names, any_json, max_size=8)
surprises = st.sampled_from(
    ["NaN", "1e999", '"\\ud800"', "{", "]", "\x00", "9" * 20, "-", ",", '"']
)
raw_bodies = (
    st.binary(max_size=80)
    | near_requests.map(lambda value: json.dumps(value).encode())
    | near_requests.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-16"))
    | st.tuples(near_requests.map(json.dumps), st.integers(0, 200), surprises).map(
        lambda parts: (parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]).encode()
    )
)


@given(raw_bodies, st.sampled_from(POSTS), st.sampled_from([JSON, JSON, JSON, "text/plain", None]))
def test_nothing_that_is_sent_raises_anything_but_a_refusal(
    raw: bytes, kind: type[schemas.Request], content_type: str | None
) -> None:
    refused: bodies.BadRequest | None = None
    try:
        request = bodies.parse(raw, content_type, kind)
    except bodies.BadRequest as error:
        refused = error
    if refused is None:
        assert isinstance(request, kind)
        msgspec.json.encode(request)
    else:
        assert refused.status in (400, 422)
        assert orjson.loads(refused.body)["detail"]


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), any_json, max_size=5))
def test_an_object_is_kept_as_it_was_sent(metrics: dict[str, Any]) -> None:
    sent = {"task_id": "t", "worker_id": "w", "metrics": metrics}
    request = bodies.parse(json.dumps(sent).encode(), JSON, CompleteRequest)
    assert _exactly(json.loads(bytes(request.metrics))) == _exactly(metrics)


@given(st.text('0123456789.eE+-[]{},:" \n', max_size=30).map(str.encode))
def test_the_fast_reader_agrees_with_the_exact_one(raw: bytes) -> None:
    assert _outcome(bodies._load, raw) == _outcome(bodies._load_exactly, raw)


def _outcome(load: Any, raw: bytes) -> object:
    try:
        return _exactly(load(raw))
    except bodies.BadRequest as refused:
        return refused.status, refused.body


def _exactly(value: object) -> object:
    """A value that equals another only where numbers are of the same kind as well."""
    if isinstance(value, dict):
        return {key: _exactly(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_exactly(child) for child in value]
    if isinstance(value, float):
        return "float", value, math.copysign(1.0, value)
    return type(value).__name__, value


@pytest.mark.parametrize("value", ["1", "0", '"true"', "null", "[]"])
def test_what_is_neither_true_nor_false_is_refused(value: str) -> None:
    wrong = fault(f'{{"dry_run":{value}}}', schemas.SweepRequest)
    assert (wrong["type"], wrong["loc"]) == ("bool_type", ["body", "dry_run"])


def test_a_misspelt_dry_run_is_no_sweep() -> None:
    assert fault('{"dryrun":true}', schemas.SweepRequest)["type"] == "extra_forbidden"
    assert bodies.parse(b'{"dry_run":true}', JSON, schemas.SweepRequest).dry_run is True
