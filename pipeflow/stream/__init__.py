"""Packets across the borders between parts, within a process or between two."""

from .chain import Chain, Links, close
from .links import Discard, Inbox, Outbox
from .replay import ReplayOutbox, abort, aborted_if_lost, with_replay
from .upstream import upstream_links

__all__ = [
    "Chain",
    "Discard",
    "Inbox",
    "Links",
    "Outbox",
    "ReplayOutbox",
    "abort",
    "aborted_if_lost",
    "close",
    "upstream_links",
    "with_replay",
]
