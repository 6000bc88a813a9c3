from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from zoo import download
from zoo.download import fetch
from zoo.errors import DataError

BODY = bytes(range(256)) * 9000
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """``/good`` serves the file; the other addresses fail in one way each."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.close_connection = True
        if self.path == "/absent":
            self.send_error(404)
        elif self.path == "/no-http":
            self.wfile.write(b"hello\r\n\r\n")
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/chunks-cut":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"ffff\r\n" + BODY[:100])
        elif self.path == "/reset":
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.flush()
            # closing with data unread and no linger makes the system send a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            self.connection.close()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY if self.path == "/good" else BODY[: len(BODY) // 2])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


def test_downloaded_once(server: str, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    assert fetch(f"{server}/good", SHA, path) == path
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    fetch(f"{server}/good", SHA, path)
    assert Handler.asked == ["/good"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_others_may_read_the_file(server: str, tmp_path: Path) -> None:
    assert fetch(f"{server}/good", SHA, tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_redirect_is_followed(server: str, tmp_path: Path) -> None:
    assert fetch(f"{server}/moved", SHA, tmp_path / "file").read_bytes() == BODY


def test_damaged_file_is_fetched_again(server: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(BODY[:-1])
    assert fetch(f"{server}/good", SHA, path).read_bytes() == BODY


def test_wrong_hash_is_refused_and_nothing_is_left(server: str, tmp_path: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(DataError, match=rf"/good: sha256 is {SHA[:12]}, expected 000000000000; .*try again$"):
        fetch(f"{server}/good", wrong, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["cut", "chunks-cut", "reset", "no-http"])
def test_broken_transfer_is_refused_and_nothing_is_left(server: str, tmp_path: Path, address: str) -> None:
    with pytest.raises(DataError, match=rf"/{address}: (sha256 is|no download \()") as caught:
        fetch(f"{server}/{address}", SHA, tmp_path / "file")
    assert "\n" not in str(caught.value) and "cannot be written" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_failed_download_keeps_what_was_there(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(DataError, match="sha256"):
        fetch(f"{server}/cut", SHA, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_absent_file_says_so(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/absent: no download \(HTTP 404 Not Found\)"):
        fetch(f"{server}/absent", SHA, tmp_path / "file")


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refused
        port = unused.getsockname()[1]
        with pytest.raises(DataError, match=r"no download \(.*\); go online, or set ZOO_MIRROR"):
            fetch(f"http://127.0.0.1:{port}/file", SHA, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_server_that_never_answers(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(DataError, match=r"no download \(.*timed out.*\)"):
            fetch(address, SHA, tmp_path / "file", timeout=0.2)


def test_address_without_scheme(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^example: no download \(unknown url type"):
        fetch("example", SHA, tmp_path / "file")


def test_disk_full(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdopen

    def full(handle: int, mode: str) -> Any:
        file = real(handle, mode)

        class Full:
            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, _: bytes) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    monkeypatch.setattr(download.os, "fdopen", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); free some space or set ZOO_"):
        fetch(f"{server}/good", SHA, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_no_write_permission(server: str, tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written"):
        fetch(f"{server}/good", SHA, tmp_path / "folder" / "file")
    assert Handler.asked == []
