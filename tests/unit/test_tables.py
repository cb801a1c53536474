"""Tables: a digest that can be brought up to date a few rows at a time."""

import random

import msgspec

from core.projections.tables import Table


class Row(msgspec.Struct, frozen=True):
    value: int


def table(rows: dict[str, int]) -> Table[Row]:
    made: Table[Row] = Table("t")
    for key, value in rows.items():
        made.put(key, Row(value))
    return made


def test_a_slice_takes_no_more_rows_than_it_may_and_tells_how_many() -> None:
    one = table({f"k{n}": n for n in range(10)})
    assert [one.settle(4) for _ in range(4)] == [4, 4, 2, 0]
    one.put("k3", Row(33))
    one.put("k3", Row(34))
    assert one.settle(4) == 1


def test_rows_that_change_between_slices_are_digested_as_they_are_in_the_end() -> None:
    draw = random.Random(5)
    for _ in range(200):
        rows = {f"k{draw.randrange(20)}": draw.randrange(5) for _ in range(12)}
        one = table(rows)
        for _ in range(draw.randrange(40)):
            key, what = f"k{draw.randrange(20)}", draw.randrange(3)
            if what == 0:
                one.settle(draw.randrange(1, 4))
            elif what == 1 and key in rows:
                one.drop(key)
                del rows[key]
            else:
                rows[key] = draw.randrange(5)
                one.put(key, Row(rows[key]))
        assert one.digest() == table(rows).digest()


def test_tables_of_other_rows_or_names_have_other_digests() -> None:
    rows = {"a": 1, "b": 2}
    other: Table[Row] = Table("u")
    for key, value in rows.items():
        other.put(key, Row(value))
    digests = [table(rows), table({"a": 2, "b": 1}), table({"a": 1}), table({}), other]
    assert len({one.digest() for one in digests}) == 5
