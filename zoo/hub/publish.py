"""Publish a checkpoint: load it back and score it again, one commit, verify what arrived, then a tag that never moves.

Whatever breaks off before the tag leaves no release, and the same command again completes it.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import signing
from zoo.artifact import checkpoint, files
from zoo.artifact.card import Published, render_card
from zoo.artifact.checkpoint import Checkpoint
from zoo.errors import ArtifactError, HubError, ModelError
from zoo.hub import index
from zoo.hub.client import Hub
from zoo.hub.dequantize import write_timm
from zoo.hub.fetch import check_published, fetch_text, manifest_files, open_hub
from zoo.hub.index import Entry, File
from zoo.hub.names import TAG, Address, parse
from zoo.hub.refusals import Altered, Missing, Tokenless, TooLarge
from zoo.hub.rescore import check_accuracy, images_of, recipe_of, top1
from zoo.recipe import Recipe
from zoo.results import dump

_DATASETS = {
    "cifar10": "uoft-cs/cifar10", "imagenet": "ILSVRC/imagenet-1k", "fashion-mnist": "zalando-datasets/fashion_mnist",
    "fashion-mnist-5k": "zalando-datasets/fashion_mnist",
}  # fmt: skip
_SPLIT = re.compile(r"-(?:train|test|val[0-9]*|calib[0-9]*)(?:-held-out)?\Z")
_OF_A_MACHINE = re.compile(r"(?<![\w.:/*}])(?:/[\w.~-]+/|[A-Z]:\\|~/)\S*")
_LOSS = 1.0  # points of accuracy: more says that the network in timm is another one
_OWN_WORDS = re.compile(r" (?:output|hub\.\w+)=\S+")


@dataclass(frozen=True)
class Options:
    """Where to publish: ``repo`` an address without version; ``tag`` v1, v2 ... (default: the next free one).

    ``dry_run`` does everything but write, ``private`` is for a new repository, ``timm`` adds the float weights,
    ``sign`` is a PEM file with the private key to sign the checkpoint with.
    """

    repo: str
    tag: str = ""
    dry_run: bool = False
    private: bool = False
    timm: bool = False
    sign: str = ""

    def __post_init__(self) -> None:
        """Refuse an address with a version, and a tag of another form."""
        if "@" in self.repo:
            raise ValueError(f"repo must have no version, got {self.repo!r}; use tag=v1")
        if self.tag and not TAG.match(self.tag):
            raise ValueError(f"tag must be v1, v2 ..., got {self.tag!r}")


@dataclass(frozen=True)
class Released:
    """What is published: ``new`` is False if it had been before, ``index`` is the file that says so."""

    name: str
    entry: Entry
    new: bool
    index: Path | None
    dry: bool = False


def check_access(options: Options) -> Address:
    """Return the address if the hub answers and knows who we are; HubError otherwise. Before a long run.

    A dry run needs no token, but none that the hub refuses. A key that cannot sign raises ArtifactError.
    """
    address = parse(options.repo)
    if options.sign:
        signing.public(options.sign)
    try:
        open_hub(address).user()
    except Tokenless:
        if not options.dry_run:
            raise
    return address


def publish(source: Path, options: Options, say: Callable[[str], None] = print) -> Released:
    """Publish a checkpoint folder and put it into the index.

    Raises ArtifactError for a folder that is altered, unmeasured, or scores otherwise than its record says; HubError
    when the hub cannot be reached or refuses, when someone publishes at the same time, when the tag exists with another
    content, and when the hub gives back other bytes than were sent.
    """
    address = check_access(options)
    hub, repo = open_hub(address), address.repo
    with tempfile.TemporaryDirectory(prefix="zoo-publish-") as scratch:
        draft = _Draft(source, Path(scratch), options, address)
        parent = hub.head(repo)
        tags = hub.tags(repo) if parent is not None else {}
        numbers = [int(tag[1:]) for tag in tags if TAG.match(tag)]
        last, following = f"v{max(numbers, default=0)}", f"v{max(numbers, default=0) + 1}"
        tag = options.tag or (last if last in tags and draft.published(hub, last, tags[last]) else following)
        if tag in tags:
            if not draft.published(hub, tag, tags[tag]):
                raise HubError(f"{repo}@{tag}: exists with another content, and versions never move; leave tag= out")
            say(f"{repo}@{tag}: this content is published already, commit {tags[tag]}")
            return draft.release(tag, tags[tag], new=False, dry=options.dry_run)
        wanted = draft.hashes(tag)
        say(f"{repo}@{tag}: {len(wanted)} files, {sum(f.size for f in wanted.values()):,} bytes, on top of "
            f"{(parent or 'nothing')[:12]}, at {hub.label}")  # fmt: skip
        if options.dry_run:
            say("\n".join(f"  {file.size:>12,}  {file.sha256[:12]}  {name}" for name, file in sorted(wanted.items())))
            say("dry run: nothing was sent")
            return draft.release(tag, parent or "", new=True, dry=True)
        if parent is None:
            hub.create(repo, private=options.private)
            parent = hub.head(repo)
        commit = _commit(hub, tag, draft, parent or "")
        check_published(hub, repo, commit, wanted)
        if not draft.endorsed(hub, tag, commit):
            raise HubError(f"{repo}@{commit[:12]}: the signature that arrived does not hold; publish again")
        hub.tag(repo, tag, commit)
        return draft.release(tag, commit, new=True, dry=False)


def _commit(hub: Hub, tag: str, draft: _Draft, parent: str) -> str:
    """Return the commit that holds exactly these files, made now or by a run that broke off after it."""
    repo, wanted = draft.address.repo, draft.hashes(tag)
    if parent and draft.published(hub, tag, parent):
        return parent
    before = _listed(hub, repo, parent) if parent else {}
    if parent and not before and _has(hub, repo, parent, "config.json"):
        raise HubError(f"{repo}: holds another kind of model, which would be lost; choose another repository")
    paths = draft.paths(tag) | draft.signature(tag)
    # the hub refuses a commit that deletes what someone else deleted before
    delete = {name for name in set(before) - set(wanted) if _has(hub, repo, parent, name)}
    if parent and files.SIGNATURE not in paths and _has(hub, repo, parent, files.SIGNATURE):
        delete.add(files.SIGNATURE)
    return hub.commit(repo, paths, sorted(delete), parent, f"{tag}: {len(paths)} files")


def _listed(hub: Hub, repo: str, commit: str) -> dict[str, str]:
    """Return the checkpoint's files at a commit, manifests included, with their sha256; none where there is none."""
    found: dict[str, str] = {}
    for manifest in (files.MANIFEST, f"timm/{files.MANIFEST}"):
        prefix = manifest.removesuffix(files.MANIFEST)
        try:
            path = fetch_text(hub, repo, commit, manifest)
        except Missing:
            continue
        listed = manifest_files(path, f"{repo}@{commit[:12]}", manifest)
        found |= {prefix + name: file.sha256 for name, file in listed.items()} | {manifest: files.sha256(path)}
    return found


def _has(hub: Hub, repo: str, commit: str, name: str) -> bool:
    try:
        if hub.size(repo, commit, name) is None:
            hub.download(repo, commit, name)
    except Missing:
        return False
    return True


def _arrived(hub: Hub, repo: str, commit: str, wanted: Mapping[str, File]) -> bool:
    try:
        check_published(hub, repo, commit, wanted)
    except (Altered, Missing):
        return False
    return True


class _Draft:
    """A checkpoint that was loaded back and scored again, ready to be written for one tag or another."""

    def __init__(self, source: Path, scratch: Path, options: Options, address: Address) -> None:
        self.source, self.scratch, self.options, self.address = source, scratch, options, address
        self.read = checkpoint.read(source)
        self.name = str(self.read.config["name"])
        if not self.read.metrics:
            raise ArtifactError(f"{source}: its accuracy was never measured; make it with python -m zoo.run")
        recipe = recipe_of(self.read, source)
        self.metrics = self.read.metrics | {"command": _OWN_WORDS.sub("", str(self.read.metrics.get("command", "")))}
        if found := _OF_A_MACHINE.search(self.read.recipe + json.dumps(self.metrics, ensure_ascii=False)):
            raise ArtifactError(f"{source}: names a path of this machine, {found[0][:60]!r}; run the recipe with a "
                                "$VARIABLE in its place")  # fmt: skip
        try:
            images = images_of(recipe, self.read)
            check_accuracy(self.read, images)
            self.timm: Path | None = None
            timm_top1 = None
            if options.timm:
                self.timm = scratch / "timm"
                net = write_timm(self.timm, recipe, self.read)
                timm_top1 = top1(net, images, self.read.network().preprocess, f"score {self.name} in timm")
                if timm_top1 < self.metrics["top1"] - _LOSS:
                    raise HubError(f"{self.name}: in timm it scores {timm_top1:.2f} %, in integers "
                                   f"{self.metrics['top1']:.2f} %: its steps rely on ranges that timm does not have; "
                                   "leave timm=true out")  # fmt: skip
        except KeyError as error:
            raise ArtifactError(f"{source / 'metrics.json'}: field {error} is missing; run the recipe again") from None
        self.card = _facts(address, recipe, self.read, timm_top1)

    def build(self, tag: str) -> Path:
        """Write the checkpoint for a tag and return its folder; the same content gives the same bytes."""
        folder = self.scratch / tag
        if not folder.is_dir():
            held = {name: self.read.hashes[name] for name in ("config.json", "recipe.yaml")}
            card = render_card(self.metrics, self.read.config, held, Published(tag=tag, **self.card))

            def fill(temporary: Path) -> None:
                for name in ("model.safetensors", "config.json", "recipe.yaml"):
                    shutil.copyfile(self.source / name, temporary / name)
                (temporary / "metrics.json").write_text(dump(self.metrics, "metrics.json", indent=1), encoding="utf-8")
                (temporary / "README.md").write_text(card, encoding="utf-8")

            files.write_folder(folder, fill, "set TMPDIR to another place")
        return folder

    def paths(self, tag: str) -> dict[str, Path]:
        """Return the files to publish by their names there, without the signature."""
        places = {"": self.build(tag)} | ({"timm/": self.timm} if self.timm else {})
        found = {prefix + p.relative_to(d).as_posix(): p for prefix, d in places.items() for p in d.rglob("*")}
        return {name: path for name, path in found.items() if path.is_file() and name != files.SIGNATURE}

    def hashes(self, tag: str) -> dict[str, File]:
        """Return the hashes and sizes of the files to publish, without the signature: each signing makes another."""
        return {name: File(files.sha256(path), path.stat().st_size) for name, path in self.paths(tag).items()}

    def signature(self, tag: str) -> dict[str, Path]:
        """Sign the checkpoint, but not ``timm/``, where that is asked for, and return the signature by its name."""
        key = self.options.sign
        return {files.SIGNATURE: signing.sign(self.build(tag), key)} if key else {}

    def endorsed(self, hub: Hub, tag: str, commit: str) -> bool:
        """Tell whether a commit holds a signature by our key over this very content, where one is asked for."""
        if not self.options.sign:
            return True
        half = self.scratch / "public.pem"
        half.write_text(signing.public(self.options.sign), encoding="ascii")
        try:
            held = fetch_text(hub, self.address.repo, commit, files.SIGNATURE)
            signing.verify(self.build(tag), half, held)
        except (Missing, TooLarge, ArtifactError):
            return False
        return True

    def published(self, hub: Hub, tag: str, commit: str) -> bool:
        """Tell whether a commit holds this very content."""
        repo, wanted = self.address.repo, self.hashes(tag)
        same = _listed(hub, repo, commit) == {name: file.sha256 for name, file in wanted.items()}
        return same and _arrived(hub, repo, commit, wanted) and self.endorsed(hub, tag, commit)

    def release(self, tag: str, commit: str, *, new: bool, dry: bool) -> Released:
        """Put the release into the index, where the index is ours to write."""
        data = self.metrics["data"]
        entry = Entry(
            self.address.repo, tag, commit, dict(sorted(self.hashes(tag).items())), self.metrics["bits"],
            self.metrics["semantics"], data["name"], data["n"], self.metrics["top1"], self.metrics["float_top1"],
            self.metrics["weights_bytes"],
        )  # fmt: skip
        path = None if dry else index.add(self.name, entry, index.writable_path())
        return Released(self.name, entry, new, path, dry)


def _facts(address: Address, recipe: Recipe, read: Checkpoint, timm_top1: float | None) -> dict[str, Any]:
    # cifar100-test, cifar10-c-test and imagenette-val are other data sets
    dataset = _DATASETS.get(_SPLIT.sub("", str(read.metrics["data"]["name"])))
    weights = recipe.model.get("weights") or {}
    sources = [s for s in weights.get("sources", ()) if s.get("kind") == "hub"]
    if not read.config["license"] or read.config["license"] == "unknown":
        raise ModelError(f"{recipe.name}: the licence of the float parent is not stated; set model.license")
    return {
        "repo": address.repo,
        "datasets": (dataset,) if dataset else (),
        "base_model": str(sources[0]["repo_id"]) if sources else "", "timm_top1": timm_top1,
    }  # fmt: skip
