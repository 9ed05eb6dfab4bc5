"""Packets across the borders between parts, within a process or between two."""

from .chain import Chain, Ends, close
from .links import Discard, Inbox, Outbox, ProcessOutbox
from .replay import Backlog
from .upstream import upstream_links

__all__ = ["Backlog", "Chain", "Discard", "Ends", "Inbox", "Outbox", "ProcessOutbox", "close", "upstream_links"]
