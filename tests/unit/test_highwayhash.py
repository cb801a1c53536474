"""The hash of the stored blocks, against the vectors of its authors."""

import random

import numpy as np
import pytest

from core import highwayhash

# highwayhash_test.cc: of 0, 1, 2, ... bytes that count up, under a key that counts up.
VECTORS = """
907A56DE22C26E53 7EAB43AAC7CDDD78 B8D0569AB0B53D62 5C6BEFAB8A463D80 F205A46893007EDA
2B8A1668E4A94541 BD4CCC325BEFCA6F 4D02AE1738F59482 E1205108E55F3171 32D2644EC77A1584
F6E10ACDB103A90B C3BBF4615B415C15 243CC2040063FA9C A89A58CE65E641FF 24B031A348455A23
40793F86A449F33B CFAB3489F97EB832 19FE67D2C8C5C0E2 04DD90A69C565CC2 75D9518E2371C504
38AD9B1141D3DD16 0264432CCD8A70E0 A9DB5A6288683390 D7B05492003F028C 205F615AEA59E51E
EEE0C89621052884 1BFC1A93A7284F4F 512175B5B70DA91D F71F8976A0A2C639 AE093FEF1F84E3E7
22CA92B01161860F 9FC7007CCF035A68 A0C964D9ECD580FC 2C90F73CA03181FC 185CF84E5691EB9E
4FC1F5EF2752AA9B F5B7391A5E0A33EB
"""
EXPECTED = VECTORS.split()
KEY = bytes(range(32))


def test_the_hashes_are_those_of_the_reference() -> None:
    starts, lengths = np.zeros(len(EXPECTED), np.int64), np.arange(len(EXPECTED))
    hashes = highwayhash.hash_pieces(KEY, bytes(range(64)), starts, lengths)
    assert [f"{one:016X}" for one in hashes.tolist()] == EXPECTED


@pytest.mark.parametrize("pieces", [1, 3, 5_000])
def test_a_piece_hashes_alike_alone_and_among_others(pieces: int) -> None:
    chance = random.Random(pieces)
    buffer = chance.randbytes(20_000)
    starts = np.array([chance.randrange(10_000) for _ in range(pieces)])
    lengths = np.array([chance.choice((0, 7, 40, 500, 9_000)) for _ in range(pieces)])
    together = highwayhash.hash_pieces(KEY, buffer, starts, lengths)
    for at in chance.sample(range(pieces), min(pieces, 50)):
        piece = buffer[starts[at] : starts[at] + lengths[at]]
        alone = highwayhash.hash_pieces(KEY, piece, np.array([0]), np.array([len(piece)]))
        assert alone.tolist() == [together[at]]


def test_nothing_hashes_to_nothing() -> None:
    none = np.array([], np.int64)
    assert highwayhash.hash_pieces(KEY, b"", none, none).tolist() == []
