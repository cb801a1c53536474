"""Which store holds the artifacts of a data directory."""

from pathlib import Path

from core import errors, platforms
from core.bus import Bus
from core.chunks import Booked, ChunkStore
from core.chunks_jetstream import JetStreamChunks
from core.chunks_s3 import S3Chunks, StagedChunks, require_url
from core.promises import Promises

BOUND_FILE = "artifacts"
"""In a data directory: the URL of S3 that it is bound to."""


def bound_to(data: Path) -> str:
    """Where a data directory keeps its artifacts: a URL, "" for CHUNKS.

    Raises errors.DataDirectoryError where that cannot be read.
    """
    try:
        return require_url((data / BOUND_FILE).read_text("utf-8").strip())
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError, errors.Invalid) as error:
        raise errors.DataDirectoryError(f"{data / BOUND_FILE} cannot be read: {error}") from error


def bind(data: Path, asked: str) -> str:
    """Bind a data directory to the store that is asked for, for good; "" is the one it has.

    Raises errors.DataDirectoryError where it is bound to another, errors.Invalid for no URL.
    """
    url = require_bindable(data, asked)
    if url and not bound_to(data):
        platforms.write_atomically(data / BOUND_FILE, f"{url}\n".encode())
    return url


def require_bindable(data: Path, asked: str) -> str:
    """Where a data directory would be bound to; nothing is changed. Raises as `bind`."""
    bound = bound_to(data)
    if not asked:
        return bound
    url = require_url(asked)
    if bound and bound != url:
        raise errors.DataDirectoryError(
            f"{data} keeps its artifacts in {bound}, and they would be missing in {url}; leave"
            " --artifacts out, or restore a backup into a new directory and start that with it"
        )
    return url


def store_of(
    fleet: Bus, url: str, promises: Promises | None = None, booked: Booked | None = None
) -> ChunkStore:
    """The store of artifacts, with promises where somebody sweeps it; `booked` hears what is put.

    Raises errors.Invalid for S3 without the package that speaks to it.
    """
    if not url:
        return JetStreamChunks(fleet, promises, booked)
    return StagedChunks(JetStreamChunks(fleet), S3Chunks(url), promises, booked)
