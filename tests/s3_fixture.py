"""A server that speaks S3, for a module: `pytest_plugins = ["tests.s3_fixture"]`."""

import itertools
import logging
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from moto.server import ThreadedMotoServer

BUCKET = "artifacts"
_prefixes = itertools.count()
"""Of one process: all its servers hold the same objects."""


class S3:
    """A running server with an empty bucket; the environment says where it is."""

    def __init__(self, server: ThreadedMotoServer, origin: str) -> None:
        self._server = server
        self._origin = origin

    def make_bucket(self) -> None:
        self._ask("PUT", f"/{BUCKET}")

    def fresh(self) -> str:
        """A place that nothing was stored in yet."""
        return f"s3://{BUCKET}/test-{next(_prefixes)}"

    def put(self, url: str, name: str, data: bytes) -> None:
        """Write an object, whatever it holds."""
        self._ask("PUT", f"{url.removeprefix('s3:/')}/{name}", data)

    def stop(self) -> None:
        self._server.stop()

    def _ask(self, method: str, path: str, data: bytes = b"") -> None:
        request = urllib.request.Request(self._origin + path, data, method=method)
        urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def start_s3() -> Iterator[Callable[[], S3]]:
    """Starts servers that end with the module; the environment names the last one."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        started: list[S3] = []

        def start() -> S3:
            server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
            server.start()
            host, port = server.get_host_and_port()
            one = S3(server, f"http://{host}:{port}")
            started.append(one)
            for name, value in (
                ("AWS_ENDPOINT_URL", one._origin),
                ("AWS_ACCESS_KEY_ID", "key"),
                ("AWS_SECRET_ACCESS_KEY", "secret"),
                ("AWS_REGION", "us-east-1"),
            ):
                patch.setenv(name, value)
            one.make_bucket()
            return one

        yield start
        for one in started:
            one.stop()


@pytest.fixture(scope="module")
def s3(start_s3: Callable[[], S3]) -> S3:
    """A server for all tests of a module."""
    return start_s3()
