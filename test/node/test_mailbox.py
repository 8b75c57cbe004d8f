from __future__ import annotations

import threading

from anomseg_ros.node.mailbox import Mailbox


def test_the_newest_wins_and_drops_are_counted() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for item in (1, 2, 3):
        mailbox.put(item)
    assert mailbox.take() == 3
    assert mailbox.dropped == 2


def test_take_waits_for_put() -> None:
    mailbox: Mailbox[int] = Mailbox()
    taken: list[int | None] = []
    taker = threading.Thread(target=lambda: taken.append(mailbox.take()))
    taker.start()
    assert not taken
    mailbox.put(7)
    taker.join(5)
    assert taken == [7] and mailbox.dropped == 0


def test_close_wakes_the_taker_and_counts_what_was_left() -> None:
    mailbox: Mailbox[int] = Mailbox()
    taken: list[int | None] = []
    taker = threading.Thread(target=lambda: taken.append(mailbox.take()))
    taker.start()
    mailbox.close()
    taker.join(5)
    assert taken == [None]
    mailbox.put(1)
    assert mailbox.dropped == 1

    other: Mailbox[int] = Mailbox()
    other.put(1)
    other.close()
    assert other.take() is None and other.dropped == 1


def test_nothing_is_lost_without_being_counted() -> None:
    mailbox: Mailbox[int] = Mailbox()
    taken: list[int] = []

    def take_all() -> None:
        while (item := mailbox.take()) is not None:
            taken.append(item)

    taker = threading.Thread(target=take_all)
    taker.start()
    for item in range(5000):
        mailbox.put(item)
    mailbox.close()
    taker.join(5)
    assert len(taken) + mailbox.dropped == 5000
    assert taken == sorted(taken)
