"""``python -m tests.hubserver READY_FILE``: listen on a free port of 127.0.0.1 and write its number to the file."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import uvicorn

from tests.hubserver.app import Hub


def main(ready: Path) -> None:
    hub = Hub()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        hub.port = listening.getsockname()[1]
        ready.with_suffix(".tmp").write_text(str(hub.port))
        os.replace(ready.with_suffix(".tmp"), ready)
        settings = uvicorn.Config(hub, log_level="critical", lifespan="off", date_header=False, access_log=False)
        uvicorn.Server(settings).run(sockets=[listening])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
