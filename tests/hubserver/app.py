"""The routes. Paths are matched raw, because a revision may hold an encoded slash."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.hubserver.faults import Faults, spoil
from tests.hubserver.store import ACCOUNTS, Account, Blob, Repo, Store, lfs_by_name

Handler = Callable[..., Awaitable[Response]]
_ID = r"(?P<repo>[\w.-]+/[\w.-]+)"
_RELATIONS = ("finetune", "adapter", "merge", "quantized")


class Refusal(Exception):
    """An answer with an error's status; ``code`` is what the client tells the kinds of 404 apart by."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        more = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | headers
        self.response = JSONResponse({"error": message}, status, more)


class Hub:
    """An ASGI application; ``port`` is filled in when it listens."""

    def __init__(self) -> None:
        self.store, self.faults, self.port = Store(), Faults(), 0
        self.signatures: dict[str, str] = {}
        self.waiting: list[asyncio.Event] = []
        self.routes: list[tuple[str, re.Pattern[str], Handler]] = [
            (method, re.compile(pattern + r"\Z"), handler)
            for method, pattern, handler in (
                ("GET", "/api/whoami-v2", self.whoami),
                ("POST", "/api/repos/create", self.create),
                ("POST", "/api/validate-yaml", self.validate),
                ("GET", f"/api/models/{_ID}", self.info),
                ("GET", f"/api/models/{_ID}/revision/(?P<revision>[^/]+)", self.info),
                ("GET", f"/api/models/{_ID}/refs", self.refs),
                ("POST", f"/api/models/{_ID}/preupload/(?P<revision>[^/]+)", self.preupload),
                ("POST", f"/api/models/{_ID}/commit/(?P<revision>[^/]+)", self.commit),
                ("POST", f"/api/models/{_ID}/tag/(?P<revision>[^/]+)", self.tag),
                ("GET", f"/api/models/{_ID}/tree/(?P<revision>[^/]+)", self.tree),
                ("POST", f"/api/models/{_ID}/paths-info/(?P<revision>[^/]+)", self.paths_info),
                ("POST", r"/(?P<repo>[\w.-]+/[\w.-]+?)\.git/info/lfs/objects/batch", self.batch),
                ("PUT", r"/_store/(?P<sha256>\w+)", self.put),
                ("GET", r"/_store/(?P<sha256>\w+)", self.get),
                ("GET", rf"/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.resolve),
                ("HEAD", rf"/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.resolve),
                ("POST", "/_test/faults", self.set_faults),
                ("POST", "/_test/put", self.set_file),
                ("GET", "/_test/waiting", self.get_waiting),
                ("POST", "/_test/go", self.let_go),
                ("GET", "/_test/log", self.get_log),
                ("GET", "/_test/repos", self.get_repos),
            )
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        raw = scope["raw_path"].decode().partition("?")[0]
        line = f"{request.method} {unquote(raw)}"
        entry = {
            "method": request.method, "path": unquote(raw), "auth": "authorization" in request.headers,
            "range": request.headers.get("range", ""), "host": request.headers.get("host", "").partition(":")[0],
        }  # fmt: skip
        response = await self.answer(request, raw, line)
        if not raw.startswith("/_test/"):
            self.faults.log.append(entry | {"status": response.status_code})
        if self.faults.date:
            response.headers["Date"] = self.faults.date
        await response(scope, receive, send)

    async def answer(self, request: Request, raw: str, line: str) -> Response:
        if delay := self.faults.strike(line, ("delay",)):
            await asyncio.sleep(delay["seconds"])
        if self.faults.strike(line, ("wait",)):
            self.waiting.append(asyncio.Event())
            await self.waiting[-1].wait()
        if rule := self.faults.strike(line, ("status",)):
            return JSONResponse({"error": "as asked for"}, rule["status"], rule.get("headers"))
        found = ((h, m) for method, pattern, h in self.routes if method == request.method and (m := pattern.match(raw)))
        handler, match = next(found, (None, None))
        if handler is None or match is None:
            return JSONResponse({"error": "not found"}, 404)
        try:
            response = await handler(request, **{k: unquote(v) for k, v in match.groupdict().items()})
        except Refusal as refusal:
            return refusal.response
        if self.faults.strike(line, ("lost",)):
            return JSONResponse({"error": "as asked for"}, 500)
        rule = self.faults.strike(line, ("cut", "flip"))
        return spoil(response, rule) if rule else response

    # who asks, and what for

    def account(self, request: Request) -> Account | None:
        header = request.headers.get("authorization", "")
        if not header:
            return None
        account = ACCOUNTS.get(header.removeprefix("Bearer "))
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def repo(self, request: Request, name: str, *, write: bool = False) -> Repo:
        account, repo = self.account(request), self.store.repos.get(name)
        visible = repo is not None and (not repo.private or (account and account.member(name.split("/")[0])))
        if repo is None or not visible:
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        if write and not (account and account.writes(name.split("/")[0])):
            raise Refusal(403, "You don't have the rights to write here")
        return repo

    def files(self, repo: Repo, revision: str) -> tuple[str, dict[str, Blob]]:
        oid = repo.find(revision)
        if oid is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, repo.commits[oid]

    # the routes

    async def whoami(self, request: Request) -> Response:
        account = self.account(request)
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"name": org, "type": "org"} for org in account.orgs]
        token = {"displayName": "test", "role": account.role}
        return JSONResponse({"type": "user", "name": account.name, "orgs": orgs, "auth": {"accessToken": token}})

    async def create(self, request: Request) -> Response:
        fields, account = await request.json(), self.account(request)
        namespace = fields.get("organization") or (account.name if account else "")
        name = f"{namespace}/{fields['name']}"
        if account is None or not account.writes(namespace):
            raise Refusal(403 if account else 401, f"You don't have the rights to create a model under {namespace}")
        url = {"url": f"{self.url}/{name}", "name": name}
        if name in self.store.repos:
            return JSONResponse(url | {"error": "You already created this model repo"}, 409)
        self.store.create(name, bool(fields.get("private")) or fields.get("visibility") == "private")
        return JSONResponse(url)

    async def info(self, request: Request, repo: str, revision: str = "main") -> Response:
        found = self.repo(request, repo)
        oid, files = self.files(found, revision)
        siblings = [{"rfilename": name} for name in sorted(files)]
        return JSONResponse({"id": repo, "sha": oid, "private": found.private, "siblings": siblings, "tags": []})

    async def refs(self, request: Request, repo: str) -> Response:
        found = self.repo(request, repo)

        def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in refs.items()]

        return JSONResponse(
            {"branches": listed("heads", found.branches), "tags": listed("tags", found.tags), "converts": []}
        )

    async def preupload(self, request: Request, repo: str, revision: str) -> Response:
        _, files = self.files(self.repo(request, repo, write=True), revision)
        modes = [
            {
                "path": f["path"], "uploadMode": "lfs" if lfs_by_name(f["path"], f["size"]) else "regular",
                "shouldIgnore": False, "oid": files[f["path"]].etag if f["path"] in files else None,
            }
            for f in (await request.json())["files"]
        ]  # fmt: skip
        return JSONResponse({"files": modes})

    async def batch(self, request: Request, repo: str) -> Response:
        found = self.repo(request, repo, write=True)
        held = {blob.sha256 for files in found.commits.values() for blob in files.values()}
        objects = []
        for wanted in (await request.json())["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in held:
                href = f"{self.url}/_store/{wanted['oid']}?sig={self.sign(wanted['oid'])}"
                entry["actions"] = {"upload": {"href": href}}
            objects.append(entry)
        return JSONResponse({"transfer": "basic", "objects": objects})

    def sign(self, sha256: str) -> str:
        return self.signatures.setdefault(sha256, secrets.token_hex(16))

    def check_signature(self, request: Request, sha256: str) -> None:
        if "authorization" in request.headers:
            raise Refusal(400, "the storage takes no credentials")
        if request.query_params.get("sig") != self.signatures.get(sha256, ""):
            raise Refusal(403, "wrong signature")

    async def put(self, request: Request, sha256: str) -> Response:
        self.check_signature(request, sha256)
        data = await request.body()
        if Blob(data, True).sha256 != sha256:
            raise Refusal(400, "the content has another sha256")
        self.store.objects[sha256] = data
        return Response(status_code=200)

    async def get(self, request: Request, sha256: str) -> Response:
        self.check_signature(request, sha256)
        return ranged(request, self.store.objects[sha256], {"ETag": f'"{sha256}"'})

    async def commit(self, request: Request, repo: str, revision: str) -> Response:
        found = self.repo(request, repo, write=True)
        head, files = self.files(found, revision)
        files = dict(files)
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header" and value.get("parentCommit") not in (None, head):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            if key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.store.objects:
                    raise Refusal(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = Blob(self.store.objects[value["oid"]], True)
            elif key == "deletedFile":
                if value["path"] not in files:
                    raise Refusal(404, f"{value['path']} does not exist", "EntryNotFound")
                del files[value["path"]]
        oid = found.add(files, revision)
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}"})

    async def tag(self, request: Request, repo: str, revision: str) -> Response:
        found = self.repo(request, repo, write=True)
        oid, _ = self.files(found, revision)
        name = (await request.json())["tag"]
        if name in found.tags:
            raise Refusal(409, f"Tag reference {name} already exists")
        found.tags[name] = oid
        return JSONResponse({})

    async def tree(self, request: Request, repo: str, revision: str) -> Response:
        _, files = self.files(self.repo(request, repo), revision)
        return JSONResponse([listed(name, blob) for name, blob in sorted(files.items())])

    async def paths_info(self, request: Request, repo: str, revision: str) -> Response:
        _, files = self.files(self.repo(request, repo), revision)
        wanted = parse_qs((await request.body()).decode()).get("paths", [])
        return JSONResponse([listed(name, files[name]) for name in wanted if name in files])

    async def resolve(self, request: Request, repo: str, revision: str, path: str) -> Response:
        oid, files = self.files(self.repo(request, repo), revision)
        if path not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": oid})
        blob = files[path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob.etag}"'}
        if blob.lfs:
            # another name of this machine, so that the client sees another host
            to = f"http://localhost:{self.port}/_store/{blob.sha256}?sig={self.sign(blob.sha256)}"
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data)), "Location": to}
            return Response(status_code=302, headers=headers)
        if request.method == "HEAD":
            return Response(headers=headers | {"Content-Length": str(len(blob.data))})
        return ranged(request, blob.data, headers)

    async def validate(self, request: Request) -> Response:
        text = (await request.json())["content"]
        parts = text.split("---\n")
        fields = yaml.safe_load(parts[1]) if text.startswith("---\n") and len(parts) > 2 else {}
        wrong = []
        if not re.fullmatch(r"[a-z0-9.-]+", str(fields.get("license", "other"))):
            wrong.append("license must be an identifier in lower case")
        if fields.get("base_model_relation", "quantized") not in _RELATIONS:
            wrong.append("base_model_relation is unknown")
        for entry in fields.get("model-index", []):
            for result in entry["results"]:
                complete = {"type", "name"} <= set(result["dataset"]) and result["task"]["type"]
                if not complete or not all({"type", "value"} <= set(m) for m in result["metrics"]):
                    wrong.append("model-index is incomplete")
        return JSONResponse({"errors": [{"message": text} for text in wrong], "warnings": []}, 400 if wrong else 200)

    # what tests ask for

    async def set_faults(self, request: Request) -> Response:
        fields = await request.json()
        self.faults.rules, self.faults.date = fields["rules"], fields.get("date", "")
        self.faults.log.clear()
        return JSONResponse({})

    async def set_file(self, request: Request) -> Response:
        """Commit a file behind the client's back (``data`` null deletes it), or with ``create`` make a repository."""
        fields = await request.json()
        repo = self.store.repos.get(fields["repo"]) or self.store.create(fields["repo"], False)
        files = dict(repo.commits[repo.branches["main"]])
        for name, data in fields["files"].items():
            files.pop(name, None)
            if data is not None:
                content = base64.b64decode(data)
                files[name] = Blob(content, lfs_by_name(name, len(content)))
                self.store.objects[files[name].sha256] = content
        return JSONResponse({"oid": repo.add(files)})

    async def get_waiting(self, request: Request) -> Response:
        return JSONResponse(sum(not event.is_set() for event in self.waiting))

    async def let_go(self, request: Request) -> Response:
        for event in self.waiting:
            event.set()
        return JSONResponse({})

    async def get_log(self, request: Request) -> Response:
        return JSONResponse(self.faults.log)

    async def get_repos(self, request: Request) -> Response:
        return JSONResponse({
            name: {
                "head": repo.branches["main"], "tags": repo.tags, "commits": len(repo.commits), "private": repo.private,
                "files": {c: {n: b.sha256 for n, b in files.items()} for c, files in repo.commits.items()},
            }
            for name, repo in self.store.repos.items()
        })  # fmt: skip


def listed(name: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "oid": blob.git, "size": len(blob.data)}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return entry


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    match = re.match(r"bytes=(\d+)-(\d*)\Z", request.headers.get("range", ""))
    if not match:
        return Response(data, headers=headers)
    start, end = int(match[1]), int(match[2] or len(data) - 1)
    headers = headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
    return Response(data[start : end + 1], 206, headers)
