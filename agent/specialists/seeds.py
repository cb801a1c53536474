"""Seeds for every random draw, derived by hashing so that no two draws share a stream."""

import hashlib

import torch


def derive(*parts: str | int) -> int:
    """A 63-bit seed: SHA-256 of the parts (node, split, seed, step, ...), cut to 63 bits."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """A private CPU generator seeded by `derive(*parts)`."""
    return torch.Generator().manual_seed(derive(*parts))
