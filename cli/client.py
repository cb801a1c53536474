"""Asks a server over HTTP, for the people's verbs; refusals become the errors they were."""

import base64
import contextlib
import http.client
import json
import socket
import ssl
import urllib.parse
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import msgspec

from core import errors

PREFIX = "/api/v1/network"
NO_NODE = ("target node not found", "parent not found")
"""As the nine routes say it."""
CONNECT_SECONDS_MAX = 5.0
ANSWER_SECONDS_MAX = 30.0
ANSWER_BYTES_MAX = 256 * 1024 * 1024

T = TypeVar("T")
Values = dict[str, msgspec.Raw]


class _Fault(msgspec.Struct):
    """One entry of a validation error."""

    msg: str = ""
    loc: list[str | int] = []


class Answer:
    """JSON values by name, each as the very bytes that came."""

    def __init__(self, values: Values, source: str) -> None:
        self._values = values
        self._source = source

    def read(self, key: str, kind: type[T]) -> T:
        """A value as a struct. Raises AghsanError when it is missing or of another shape."""
        try:
            return msgspec.json.decode(self._values[key], type=kind)
        except KeyError:
            raise errors.AghsanError(
                f"{self._source} answered without {key!r}; is it an Aghsan server, and as new as "
                "this program?"
            ) from None
        except msgspec.MsgspecError as error:
            raise errors.AghsanError(
                f"{self._source} answered a {key} that this program cannot read ({error}); "
                "--json shows it as it is, and equal versions on both sides should agree"
            ) from error

    def optional(self, key: str, kind: type[T]) -> T | None:
        """A value as a struct, or None where it is null or missing."""
        if bytes(self._values.get(key, b"null")) == b"null":
            return None
        return self.read(key, kind)

    def inside(self, key: str) -> "Answer":
        """The values of an object in it."""
        return Answer(self.read(key, Values), self._source)

    def one(self, key: str) -> str:
        """A value as JSON text."""
        return bytes(self.read(key, msgspec.Raw)).decode()

    def following(self) -> str | None:
        """Where the next page begins, or None on the last."""
        return self.optional("next", str)

    def page(self) -> str:
        """Everything but the `status` as one JSON object, in the server's order."""
        kept = {key: value for key, value in self._values.items() if key != "status"}
        return msgspec.json.encode(kept).decode()


class _Asked(NamedTuple):
    """One request; `advice` is what to do when its outcome is not known."""

    method: str
    path: str
    content: bytes | None
    headers: dict[str, str]
    advice: str
    prefix: str = PREFIX

    @property
    def doubt(self) -> str:
        if self.method == "GET":
            return f"; {self.advice}"
        return f". What it did is not known: {self.advice}"

    @property
    def is_keyed(self) -> bool:
        return "Idempotency-Key" in self.headers


class _NotReached(errors.Unavailable):
    """Nobody took the request, for the reason `why`."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(
            f"no server answers at {address} ({why}). Start one with `aghsan up`, or name another "
            "by --api or AGHSAN_API"
        )
        self.why = why


class Client:
    """One server. Raises errors.Unavailable when it does not answer, Refused when it will not."""

    def __init__(self, api: str, answer_seconds_max: float = ANSWER_SECONDS_MAX) -> None:
        self._answer_seconds_max = answer_seconds_max
        try:
            url = urllib.parse.urlsplit(api)
            port = url.port
        except ValueError:
            raise _not_an_address(api) from None
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise _not_an_address(api)
        self._secure = url.scheme == "https"
        self._host, self._port = url.hostname, port
        self._root = url.path.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "aghsan"}
        if url.username is not None:
            pair = (
                urllib.parse.unquote(url.username) + ":" + urllib.parse.unquote(url.password or "")
            )
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        # Shown in messages, so without the credentials.
        self.address = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}"

    def get(self, path: str, query: dict[str, str | int | None] | None = None) -> Answer:
        """Ask for something; `path` is below the prefix."""
        asked = {key: value for key, value in (query or {}).items() if value is not None}
        if asked:
            path += "?" + urllib.parse.urlencode(asked)
        return self._answer(_Asked("GET", path, None, {}, "ask again"), tries=2)

    def not_ready(self) -> list[str]:
        """Why the server cannot do its work; empty where it can, or does not say."""
        asked = _Asked("GET", "/readyz", None, {}, "ask again", prefix="")
        status, body = self._taken(asked, tries=2)
        if status != http.client.SERVICE_UNAVAILABLE:
            return []
        return Answer(_values(body) or {}, self.address).optional("reasons", list[str]) or []

    def require_node(self, node_id: str) -> None:
        """Tell a node of which there is nothing from one that is not there. Raises NotFound."""
        self.get(f"/nodes/{segment(node_id)}")

    def post(
        self, path: str, body: dict[str, object], *, advice: str, idempotency_key: str = ""
    ) -> Answer:
        """Ask to do something. With a key it is asked again when an answer breaks off.

        `advice` says what to do where it is not known whether it was done.
        """
        try:
            content = json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise errors.Invalid(
                "an argument is not UTF-8 text; check the terminal's encoding"
            ) from None
        headers = {"Content-Type": "application/json"}
        if idempotency_key:
            headers["Idempotency-Key"] = idempotency_key
        asked = _Asked("POST", path, content, headers, advice)
        return self._answer(asked, tries=2 if idempotency_key else 1)

    def _answer(self, asked: _Asked, *, tries: int) -> Answer:
        status, body = self._taken(asked, tries=tries)
        values = _values(body)
        if status == http.client.OK and values is not None:
            return Answer(values, self.address)
        raise self._refusal(status, values, asked)

    def _taken(self, asked: _Asked, *, tries: int) -> tuple[int, bytes]:
        """The status and the body of the answer. Raises Unavailable where none comes."""
        broken: Exception | None = None
        while True:
            tries -= 1
            try:
                return self._exchange(asked)
            except _NotReached as error:
                if broken is None or asked.method == "GET":
                    raise
                # Nobody is there any more, but the try before may have been heard.
                raise errors.Unavailable(
                    f"{self._broke_off(broken)}, and cannot be reached since ({error.why})"
                    + asked.doubt
                ) from error
            except TimeoutError:
                raise errors.Unavailable(
                    f"{self.address} took the request but did not answer within "
                    f"{self._answer_seconds_max:g} s{asked.doubt}"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                if not tries:
                    raise errors.Unavailable(self._broke_off(error) + asked.doubt) from error
                broken = error

    def _broke_off(self, error: Exception) -> str:
        return f"{self.address} broke off before its answer ({_reason(error)})"

    def _exchange(self, asked: _Asked) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=CONNECT_SECONDS_MAX)
        try:
            try:
                connection.connect()
            except (OSError, UnicodeError) as error:
                raise _NotReached(self.address, _reason(error)) from error
            connection.sock.settimeout(self._answer_seconds_max)
            headers = self._headers | asked.headers
            path = self._root + asked.prefix + asked.path
            connection.request(asked.method, path, asked.content, headers)
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES_MAX + 1)
            if len(body) > ANSWER_BYTES_MAX:
                raise errors.AghsanError(
                    f"{self.address} answered more than {ANSWER_BYTES_MAX} bytes; ask for less "
                    "(--limit)"
                )
            return response.status, body
        finally:
            connection.close()

    def _refusal(self, status: int, values: Values | None, asked: _Asked) -> errors.AghsanError:
        """The error that an answer other than 200 stands for."""
        words = _detail(values)
        if not words:
            return errors.AghsanError(
                f"{self.address} answered {status} to {asked.path} and nothing that Aghsan would "
                "say; is this the address of an Aghsan server?"
            )
        match status:
            case 400 if words.endswith("not found"):  # the nine routes know no 404
                return errors.NotFound(words)
            case 401 | 403:
                return errors.Refused(
                    f"{words}. Credentials go into the address: http://NAME:TOKEN@host:8000"
                )
            case 404 if words == "Not Found":
                return errors.NotFound(
                    f"{self.address} knows nothing under {asked.path}; is it as new as this "
                    "program?"
                )
            case 404:
                return errors.NotFound(words)
            case 409:
                return errors.Conflict(words)
            case 422:
                return errors.Invalid(words)
            case 429 | 502 | 503 | 504:
                if asked.is_keyed:
                    words = f"{words.rstrip('.')}. When it can, {asked.advice}"
                return errors.Unavailable(f"{self.address} cannot answer now: {words}")
            case _:
                return errors.Refused(words)


@contextlib.contextmanager
def naming(node_id: str) -> Iterator[None]:
    """Have a refusal say which node is not there: the nine routes do not name it."""
    try:
        yield
    except errors.NotFound as error:
        if node_id and str(error) in NO_NODE:
            raise errors.NotFound(
                f"there is no node {node_id}; `aghsan node ls` lists them"
            ) from error
        raise


def segment(identifier: str) -> str:
    """An id as part of a path. Raises errors.Invalid for one that cannot exist."""
    try:
        quoted = urllib.parse.quote(identifier, safe="")
    except UnicodeEncodeError:
        quoted = ""
    if quoted.strip(".") == "":
        raise errors.Invalid(f"{identifier!r} is no id; the `ls` commands list those there are")
    return quoted


def _not_an_address(api: str) -> errors.Invalid:
    return errors.Invalid(f"--api takes an address such as http://127.0.0.1:8000, not {api!r}")


def _values(body: bytes) -> Values | None:
    try:
        return msgspec.json.decode(body, type=Values)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _detail(values: Values | None) -> str:
    """The server's own words, a validation error's field by field."""

    try:
        raw = (values or {})["detail"]
        found = msgspec.json.decode(raw, type=str | list[_Fault])
    except (KeyError, msgspec.MsgspecError):
        return ""
    if isinstance(found, str):
        return found
    return "; ".join(
        ".".join(str(part) for part in fault.loc[1:]) + (": " if fault.loc[1:] else "") + fault.msg
        for fault in found
    )


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return f"nothing came back within {CONNECT_SECONDS_MAX:g} s"
        case ConnectionRefusedError():
            return "the connection was refused"
        case socket.gaierror() | UnicodeError():
            return "this host name is not known"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}"
        case ssl.SSLError():
            return "it does not speak https"
        case http.client.RemoteDisconnected():
            return "it closed the connection"
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return str(error) or type(error).__name__
