"""Faults on demand, and the log of requests.

A fault is ``{match, kind, times, ...}``: ``match`` is a regular expression for ``METHOD PATH``, it strikes ``times``
matching requests after ``skip`` others. Kinds: ``status`` (answers it), ``cut`` (the body ends after ``bytes``),
``flip`` (one bit of the body's byte ``at``), ``delay`` (``seconds``), ``lost`` (does what was asked, answers 500),
``wait`` (until the test says go).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response, StreamingResponse


@dataclass
class Faults:
    """What is to go wrong, and what was asked for."""

    rules: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    date: str = ""

    def strike(self, line: str, kinds: tuple[str, ...]) -> dict[str, Any] | None:
        """Return the first fault of these kinds that hits this request, and count it."""
        for rule in self.rules:
            if rule["kind"] not in kinds or rule["times"] <= 0 or not re.search(rule["match"], line):
                continue
            if rule.get("skip", 0) > 0:
                rule["skip"] -= 1
                continue
            rule["times"] -= 1
            return rule
        return None


def spoil(response: Response, rule: dict[str, Any]) -> Response:
    """Return a response whose body is cut or altered, under the headers of the right one."""
    body = bytearray(response.body)
    if rule["kind"] == "flip" and body:
        body[rule.get("at", -1) % len(body)] ^= 1
        return Response(bytes(body), response.status_code, dict(response.headers))

    async def part() -> AsyncIterator[bytes]:
        yield bytes(body[: rule.get("bytes", len(body) // 2)])
        raise ConnectionAbortedError("as asked for")

    return StreamingResponse(part(), response.status_code, dict(response.headers))
