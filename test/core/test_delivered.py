from __future__ import annotations

from anomseg_ros.core.delivered import Delivered, deviations, losses

SHORT = Delivered("bag 'a'", "messages of '/t'", 12, 9, remedy="copy it again")
ROUNDED = Delivered("video 'v'", "frames", 20, 19, slack=2)
MORE = Delivered("bag 'a'", "messages of '/t'", 9, 12, remedy="copy it again")
SHORTER = Delivered("bag 'a'", "ms from first to last message", 3000, 2000, is_count=False)


def test_fewer_than_stated_is_a_loss_and_other_differences_are_deviations() -> None:
    same = Delivered("bag 'a'", "frames", 3, 3)
    everything = (SHORT, ROUNDED, MORE, SHORTER, same, SHORT)
    assert losses(everything) == ("bag 'a' states 12 messages of '/t', 9 could be read; copy it again",)
    assert deviations(everything) == (
        "video 'v' states 20 frames, 19 could be read",
        "bag 'a' states 9 messages of '/t', 12 could be read",
        "bag 'a' states 3000 ms from first to last message, 2000 could be read",
    )
