"""Files of tensors, read with care: what a header claims is checked before anything is made.

Format: https://github.com/huggingface/safetensors
"""

import hashlib
import io
import json
import math
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from core import errors

if TYPE_CHECKING:
    import torch

HEADER_BYTES_MAX = 1024 * 1024
DIMENSIONS_MAX = 8
READ_BYTES = 1024 * 1024

WIDTHS = dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1)
WIDTHS |= dict.fromkeys(("I16", "U16", "F16", "BF16"), 2)
WIDTHS |= dict.fromkeys(("I32", "U32", "F32"), 4)
WIDTHS |= dict.fromkeys(("I64", "U64", "F64"), 8)
"""Bytes of a number, by the names of safetensors."""


class Tensor(NamedTuple):
    """Where a tensor's bytes lie in its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def listed(blob: bytes) -> list[Tensor]:
    """The tensors of a file whose header keeps every promise. Raises errors.ArtifactError."""
    return _listed(io.BytesIO(blob))


def listed_of_file(path: Path, header_bytes_max: int = HEADER_BYTES_MAX) -> list[Tensor]:
    """`listed` of a file on disk, of which no more than the header is read."""
    try:
        with path.open("rb") as file:
            return _listed(file, header_bytes_max)
    except OSError as error:
        raise _unreadable(path, error) from error


def load(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a file. Raises errors.ArtifactError."""
    import safetensors.torch  # an agent's own process hashes weights, and holds no torch

    listed_of_file(path)
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise errors.ArtifactError(f"{path.name} cannot be read: {error}") from error


def weights_sha256(blob: bytes) -> str:
    """The hash of a model: its tensors by name, with type, shape and bytes, however laid out.

    Raises errors.ArtifactError for bytes that are no safetensors.
    """
    return _weights_sha256(io.BytesIO(blob))


def weights_sha256_of_file(path: Path) -> str:
    """`weights_sha256` of a file. Raises errors.ArtifactError."""
    try:
        with path.open("rb") as file:
            return _weights_sha256(file)
    except OSError as error:
        raise _unreadable(path, error) from error


def _weights_sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    for tensor in sorted(_listed(file)):
        if not tensor.name.isprintable():
            # Such a name could pass for the end of another tensor, or have no bytes at all.
            raise errors.ArtifactError(f"{tensor.name[:80]!a} is no name of a tensor")
        digest.update(f"{tensor.name}\x1f{tensor.dtype}\x1f{tensor.shape}\x1e".encode())
        file.seek(tensor.start)
        left = tensor.end - tensor.start
        while left and (piece := file.read(min(left, READ_BYTES))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> errors.ArtifactError:
    return errors.ArtifactError(f"{path.name} cannot be read: {error.strerror}")


def _listed(file: BinaryIO, header_bytes_max: int = HEADER_BYTES_MAX) -> list[Tensor]:
    size = file.seek(0, os.SEEK_END)
    if size < 8:
        raise errors.ArtifactError("the weights are no safetensors: fewer than 8 bytes")
    file.seek(0)
    (header_bytes,) = struct.unpack("<Q", file.read(8))
    if header_bytes > min(header_bytes_max, size - 8):
        raise errors.ArtifactError(
            f"the weights are no safetensors: a header of {header_bytes} bytes is claimed"
        )
    try:
        header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        found = [_tensor(name, about, 8 + header_bytes) for name, about in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise errors.ArtifactError(f"the weights are no safetensors: {error}") from error
    at = 8 + header_bytes
    for tensor in sorted(found, key=lambda one: (one.start, one.end)):
        claimed = math.prod(tensor.shape) * WIDTHS[tensor.dtype]
        if tensor.start != at or tensor.end - tensor.start != claimed:
            raise errors.ArtifactError(
                f"the weights are no safetensors: {tensor.name[:80]} claims bytes it does not have"
            )
        at = tensor.end
    if at != size:
        raise errors.ArtifactError(
            f"the weights are no safetensors: {abs(size - at)} bytes are "
            + ("missing" if at > size else "of no tensor")
        )
    return found


def _tensor(name: str, about: dict[str, object], offset: int) -> Tensor:
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise ValueError(f"{name[:80]} has the unknown type {str(dtype)[:20]}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"{name[:80]} has no shape or no place")
    if len(shape) > DIMENSIONS_MAX or not all(_is_size(number) for number in (*shape, *offsets)):
        raise ValueError(f"{name[:80]} has an impossible shape or place")
    return Tensor(name, dtype, tuple(shape), offset + offsets[0], offset + offsets[1])


def _is_size(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**48
