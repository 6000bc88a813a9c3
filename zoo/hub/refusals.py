"""The refusals of a hub that callers tell apart; each is a HubError."""

from __future__ import annotations

from zoo.errors import HubError


class Missing(HubError):
    """The commit has no such file."""


class Unreachable(HubError):
    """No answer, or none was asked for: the cache is all there is."""


class Tokenless(HubError):
    """The hub was not asked: what was to be done needs a token, and there is none."""


class Passing(HubError):
    """The hub had a fault of its own (5xx), which may be over at the next try."""


class Altered(HubError):
    """A file arrived with another sha256, twice, or the hub has it in another size."""


class TooLarge(HubError):
    """The hub has more bytes under a name than any file of that kind has; they were not fetched."""
