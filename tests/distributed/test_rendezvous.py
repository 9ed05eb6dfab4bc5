"""Processes that meet in a store which remembers others must not take their word."""

import threading
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from pipeflow.distributed.rendezvous import meet

SOON = timedelta(seconds=20)


def together(store, size, delays=None):
    """`meet` in as many threads as there are processes: the names that they got."""
    names = [""] * size

    def come(rank):
        threading.Event().wait((delays or {}).get(rank, 0))
        names[rank] = meet(store, rank, size, SOON)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return names


@pytest.mark.parametrize("late", [None, 0, 1, 2])
def test_every_meeting_has_a_name_of_its_own(late):
    store, seen = HashStore(), set()
    for _ in range(3):
        names = together(store, 3, {late: 0.3})
        assert len(set(names)) == 1 and names[0] and not seen & set(names)
        seen |= set(names)


def test_the_word_of_one_who_is_gone_is_not_taken():
    store = HashStore()
    with pytest.raises(TimeoutError, match="not all of 2 processes came within 0 s"):
        meet(store, 1, 2, timedelta(seconds=0.1))
    with pytest.raises(TimeoutError):
        meet(store, 0, 2, timedelta(seconds=0.3))
    assert len(set(together(store, 2))) == 1
