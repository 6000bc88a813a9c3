"""A test hub, checkpoints small enough to publish often, and a user at the command line."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from zoo.artifact import checkpoint
from zoo.data import DataConfig, load_split
from zoo.hub.rescore import recipe_of, top1
from zoo.paths import results_dir
from zoo.resolve import build

ROOT = Path(__file__).resolve().parents[2]
WRITER, SECOND, READER, STRANGER = (
    "hf_writer-of-org", "hf_second-writer", "hf_reader-of-org", "hf_writer-elsewhere",
)  # fmt: skip
NAME = "resnet8_fashion_w4a8"


def plain_environment() -> dict[str, str]:
    """Return the environment without what points to another hub, cache or token."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("ZOO_", "HF_"))}


@dataclass
class Server:
    """The test hub from outside."""

    url: str

    def ask(self, path: str, value: Any = None) -> Any:
        data = None if value is None else json.dumps(value).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(self.url + path, data), timeout=60) as answer:
            return json.load(answer)

    def fault(self, *rules: dict[str, Any], date: str = "") -> None:
        """Set the faults, none by default, and empty the log."""
        self.ask("/_test/faults", {"rules": [{"times": 1} | rule for rule in rules], "date": date})

    def put(self, repo: str, **files: bytes | None) -> None:
        """Commit files behind the client's back; ``__`` in a name stands for a dot."""
        plain = {n.replace("__", "."): None if d is None else base64.b64encode(d).decode() for n, d in files.items()}
        self.ask("/_test/put", {"repo": repo, "files": plain})

    def log(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("/_test/log")
        return found

    def repo(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] = self.ask("/_test/repos")
        return found.get(name)


@dataclass
class Done:
    """How a command ended."""

    rc: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of a refusal."""
        assert self.rc == 2, (self.rc, self.out, self.err)
        assert self.err.startswith("error: ") and self.err.count("\n") == 1, self.err
        return self.err


@dataclass
class User:
    """A person at the command line, with caches and an index of their own."""

    server: Server
    home: Path
    driver: subprocess.Popen[str]
    seen: list[str] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.server.url, "HF_HOME": str(self.home / "hf"), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0",
            "ZOO_CACHE": str(self.home / "zoo"), "ZOO_INDEX": str(self.home / "index.json"), "HF_TOKEN": WRITER,
            "ZOO_HUB": "", "no_proxy": "127.0.0.1,localhost", "TMPDIR": str(self.home),
        } | more  # fmt: skip

    def run(self, module: str, *arguments: str, options: dict[str, Any] | None = None, **more: str) -> Done:
        """Run a command line of ours in a forked child."""
        request = {"module": module, "arguments": arguments, "environment": self.environment(**more)} | (options or {})
        assert self.driver.stdin is not None and self.driver.stdout is not None
        self.driver.stdin.write(json.dumps(request) + "\n")
        self.driver.stdin.flush()
        done = Done(**json.loads(self.driver.stdout.readline()))
        self.seen.append(done.out + done.err)
        return done

    def process(self, *words: str, **more: str) -> Done:
        """Run any command in a process of its own."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("ZOO_", "HF_"))} | self.environment(
            **more
        )
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        self.seen.append(done.stdout + done.stderr)
        return Done(done.returncode, done.stdout, done.stderr)

    def cold(self) -> User:
        """The same person at another machine: empty caches, the same index."""
        other = self.home / f"cold{len(list(self.home.iterdir()))}"
        other.mkdir()
        if (self.home / "index.json").is_file():
            (other / "index.json").write_bytes((self.home / "index.json").read_bytes())
        return User(self.server, other, self.driver, self.seen)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    ready = tmp_path_factory.mktemp("hub") / "port"
    process = subprocess.Popen([sys.executable, "-m", "tests.hubserver", str(ready)], cwd=ROOT)
    try:
        while not ready.is_file():
            assert process.poll() is None, "the hub did not start"
            time.sleep(0.05)
        yield Server(f"http://127.0.0.1:{ready.read_text()}")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def driver() -> Iterator[subprocess.Popen[str]]:
    environment = plain_environment() | {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hub.driver"], cwd=ROOT, env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="session")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded images, which need not be decoded for every publication."""
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture
def user(server: Server, driver: subprocess.Popen[str], decoded: Path, tmp_path: Path) -> Iterator[User]:
    server.fault()
    person = User(server, tmp_path, driver)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "data").symlink_to(decoded)
    yield person
    server.fault()
    shown = "".join(person.seen) + "".join(
        p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file() and "blobs" not in p.parts
    )
    assert not any(token in shown for token in (WRITER, SECOND, READER, STRANGER)), "a token was printed or written"
    assert "sig=" not in shown, "a signed address was printed or written"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two shipped checkpoints under one name, their record cut down to 40 test images."""
    found = {}
    for version, shipped in (("first", NAME), ("second", "resnet8_fashion_w4a4")):
        read = checkpoint.read(results_dir() / shipped / "checkpoint")
        fields = yaml.safe_load(read.recipe) | {"name": NAME, "test_limit": 40}
        read = checkpoint.Checkpoint(
            read.program, read.config | {"name": NAME}, read.card, read.hashes, yaml.safe_dump(fields),
            read.metrics | {"recipe": NAME, "data": dict(read.metrics["data"])},
        )  # fmt: skip
        recipe = recipe_of(read, Path("test"))
        images = load_split(build(DataConfig, recipe.data, "data"), "test", recipe.test_limit)
        net = read.network(integer=True)
        data = {"name": images.name, "n": 40, "subset": images.subset, "fingerprint": images.fingerprint}
        score = top1(net, images, net.preprocess, "test")
        metrics = read.metrics | {"data": data, "top1": score}
        found[version] = tmp_path_factory.mktemp(version) / NAME
        checkpoint.save(found[version], read.program, read.config, recipe=read.recipe, metrics=metrics, card="x")
    return found
