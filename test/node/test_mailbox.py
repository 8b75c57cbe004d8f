from __future__ import annotations

import threading
import time

from anomseg_ros.node.mailbox import Mailbox, Turns


def test_put_replaces_older_item_and_reports_drop() -> None:
    mailbox: Mailbox[int] = Mailbox()
    assert [mailbox.put(item) for item in (1, 2, 3)] == [False, True, True]
    assert mailbox.take() == 3


def test_take_waits_for_put() -> None:
    mailbox: Mailbox[int] = Mailbox()
    taken: list[int | None] = []
    taker = threading.Thread(target=lambda: taken.append(mailbox.take()))
    taker.start()
    assert not taken
    assert not mailbox.put(7)
    taker.join(5)
    assert taken == [7]


def test_close_wakes_taker_and_reports_dropped_item() -> None:
    mailbox: Mailbox[int] = Mailbox()
    taken: list[int | None] = []
    taker = threading.Thread(target=lambda: taken.append(mailbox.take()))
    taker.start()
    assert not mailbox.close()
    taker.join(5)
    assert taken == [None]
    assert mailbox.put(1)

    other: Mailbox[int] = Mailbox()
    other.put(1)
    assert other.close() and other.take() is None


def test_every_item_is_taken_or_reported_dropped() -> None:
    mailbox: Mailbox[int] = Mailbox()
    taken: list[int] = []

    def take_all() -> None:
        while (item := mailbox.take()) is not None:
            taken.append(item)

    taker = threading.Thread(target=take_all)
    taker.start()
    dropped = sum(mailbox.put(item) for item in range(5000)) + mailbox.close()
    taker.join(5)
    assert len(taken) + dropped == 5000
    assert taken == sorted(taken)


def always_full(names: str, count: int) -> list[str]:
    """Take `count` items from mailboxes that share turns and are filled again at once; return whose they were."""
    turns, taken = Turns(), []
    mailboxes = {name: Mailbox[int](turns) for name in names}

    def take_all(name: str) -> None:
        while mailboxes[name].take() is not None:
            taken.append(name)
            if len(taken) < count:
                mailboxes[name].put(0)

    first: Mailbox[int] = Mailbox(turns)
    first.put(0)
    assert first.take() == 0  # the turn is taken until all takers wait
    takers = [threading.Thread(target=take_all, args=(name,)) for name in names]
    for name, taker in zip(names, takers, strict=True):
        mailboxes[name].put(0)
        taker.start()
        while mailboxes[name] not in turns.takers:
            time.sleep(0.001)
    first.release()
    for taker in takers:
        taker.join(0.5)
    for mailbox in mailboxes.values():
        mailbox.close()
    for taker in takers:
        taker.join(5)
    return taken


def test_turns_rotate_among_mailboxes() -> None:
    assert "".join(always_full("abc", 300))[:300] == "abc" * 100


def test_close_wakes_taker_while_other_mailbox_has_turn() -> None:
    turns = Turns()
    stuck, other = Mailbox[int](turns), Mailbox[int](turns)
    stuck.put(1)
    other.put(2)
    assert stuck.take() == 1
    taken: list[int | None] = []
    taker = threading.Thread(target=lambda: taken.append(other.take()))
    taker.start()
    assert other.close()
    taker.join(5)
    assert taken == [None]
    # Closing the one that has the turn does not end it: its frame is still in the engine.
    stuck.close()
    third = Mailbox[int](turns)
    third.put(3)
    assert turns.next() is None
    stuck.release()
    assert third.take() == 3


def test_taker_gets_newest_item_when_its_turn_begins() -> None:
    turns = Turns()
    busy, waiting = Mailbox[int](turns), Mailbox[int](turns)
    busy.put(0)
    busy.take()
    taken: list[int | None] = []
    taker = threading.Thread(target=lambda: taken.append(waiting.take()))
    taker.start()
    assert [waiting.put(item) for item in (1, 2, 3)] == [False, True, True]
    busy.release()
    taker.join(5)
    assert taken == [3]
