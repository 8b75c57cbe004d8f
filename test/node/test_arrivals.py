"""Gaps in the numbers of a publisher."""

from __future__ import annotations

from typing import Any

import pytest

from anomseg_ros.node.arrivals import SequenceGaps


def numbered(number: int | None) -> dict[str, Any]:
    return {"publication_sequence_number": number}


@pytest.mark.parametrize(
    ("numbers", "gaps"),
    [
        ([7, 8, 9], [0, 0, 0]),
        ([7, 9, 14], [0, 1, 4]),
        ([7, 1, 3], [0, 0, 1]),  # the publisher was started again
        ([7, None, 9], [0, 0, 0]),
    ],
)
def test_gaps_are_counted(numbers: list[int | None], gaps: list[int]) -> None:
    sequence = SequenceGaps()
    assert [sequence.before(numbered(number)) for number in numbers] == gaps


def test_gaps_of_several_publishers_are_unknown() -> None:
    sequence = SequenceGaps()
    assert sequence.before(numbered(5)) == 0
    sequence.has_one_publisher = False
    assert [sequence.before(numbered(number)) for number in (1000, 6, 1001)] == [0, 0, 0]
    sequence.has_one_publisher = True
    assert [sequence.before(numbered(number)) for number in (9, 11)] == [0, 1]
    assert sequence.before(None) == 0
