"""Changes to a checkpoint folder, each drawn from a random generator that Hypothesis or atheris owns."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz.folders import Folder, from_tensors, join, split, tensors
from zoo.artifact.files import MANIFEST

CONFIG, WEIGHTS = "config.json", "model.safetensors"
BROKEN = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    struct.error,
)  # no longer a safetensors file
NUMBERS = (0, -1, 1, 2, 3, 8, 16, 127, 255, 256, 4096, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 10**30,
           10**400, 0.0, -0.0, 0.5, 1.5, -1.0, 1e-45, 1e-38, 1e-30, 1e-6, 1e6, 1e29, 1e38, 1e308)  # fmt: skip
# float32, as a scale must be before any arithmetic sees it
SCALES = (2.0**-122, 2.0**-100, 1.5 * 2.0**-64, 2.0**-33, 2.0**-31, 1.75 * 2.0**-20, 2.0**-10, 0.375, 1.0, 3.0,
          1.25 * 2.0**10, 2.0**20, 2.0**30, 2.0**64, 2.0**99)  # fmt: skip
NAMES = ("class", "None", "forward", "training", "__class__", "__init__", "_modules", "_parameters", "self", "image",
         "dequantize", "graph", "code", "state_dict", "eval", "0", "1x", "a b", "a.b", ".", "..", "../x",
         "/etc/passwd", "conv.weight", "fc.bias", "stem.requantize", "os", "os.system", "torch", "x" * 199, "x" * 300,
         "", "\0", "ß", "\ud800", "input", "lambda: 0", "x;import os", "x\nimport os", "_", "__", "relu", "getattr",
         "Tensor", "_Tensor_")  # fmt: skip
PATTERNS = (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\0\0\0\0", b"\1\0\0\0",
            b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff\xff\xff\xff", b"\0\0\x80\x3f", b"\x99\x76\x96\x7e")  # fmt: skip
TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL", "F8_E4M3",
         "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64", "PICKLE")  # fmt: skip
OPERATIONS = ("input", "conv2d", "linear", "add", "mul", "cat", "mean", "avg_pool", "max_pool", "flatten", "slice",
              "table", "requantize", "eval", "call_function", "torch.load")  # fmt: skip
SEMANTICS = ("tflite", "float32", "floor", "int64", "_staircase")


def value(r: Random) -> Any:
    """Return a JSON value of any kind."""
    kind = r.randrange(8)
    if kind < 3:
        return r.choice(NUMBERS)
    if kind < 5:
        return r.choice((*NAMES, *OPERATIONS, *SEMANTICS))
    return r.choice((None, True, False, [], {}, [0], [1, 1], [0, 0, 0, 0], [4096] * 4, [[]], {"a": 1}, [1.0, 1.0],
                     {"__reduce__": ["os.system", "true"]}, {"_target_": "os.system"}, [None] * 3))  # fmt: skip


def _nodes(config: Any) -> list[Any]:
    found = config.get("nodes") if isinstance(config, dict) else None
    return found if isinstance(found, list) else []


def json_field(f: Folder, r: Random) -> None:
    """Replace, delete, add or move one value anywhere in a JSON file; mostly within the nodes."""
    name = r.choice((CONFIG, CONFIG, CONFIG, MANIFEST, "metrics.json"))
    root = f.json(name)
    here = _nodes(root) if name == CONFIG and r.randrange(4) else root
    for _ in range(r.randrange(1, 6)):
        if not isinstance(here, (dict, list)) or not here:
            break
        key: Any = r.randrange(len(here)) if isinstance(here, list) else r.choice(sorted(here))
        if isinstance(here[key], (dict, list)) and here[key] and r.randrange(4):
            here = here[key]
            continue
        action = r.randrange(6)
        if action < 3:
            here[key] = value(r)
        elif action == 3:
            del here[key]
        elif action == 4 and isinstance(here, dict):
            here[r.choice(NAMES)] = value(r)
        elif isinstance(here, list):
            here.insert(r.randrange(len(here) + 1), here[r.randrange(len(here))])
        break
    f.put(name, root)


def json_text(f: Folder, r: Random) -> None:
    """Break the text: duplicate keys, constants, depth, length, encodings."""
    name = r.choice((CONFIG, MANIFEST, "metrics.json"))
    text = f.content(name)
    kind = r.randrange(7)
    if kind == 0:
        text = text.replace(b"{", b'{"name": 1, "name": 2, ', 1)
    elif kind == 1:
        text = text.replace(b": 1", b": " + r.choice((b"NaN", b"Infinity", b"-Infinity", b"1e999", b"01", b"0x1")), 1)
    elif kind == 2:
        depth = r.choice((50, 900, 5000, 100_000))
        opened = r.choice((b"[", b'{"a":'))
        text = text.replace(
            b"{", b'{"deep": ' + opened * depth + b"1" + (b"]" if opened == b"[" else b"}") * depth + b", ", 1
        )
    elif kind == 3:
        text = text.replace(b": 1", b": " + b"1" * r.choice((100, 4400, 100_000)), 1)
    elif kind == 4:
        text = r.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b" " * 100_000)) + text
    elif kind == 5:
        text = text.decode("utf-8", "replace").encode("utf-16")
    else:
        text = r.choice((b"", b"null", b"[]", b"{}", b"1", b'""', b"{" + b'"a":1,' * 10))
    f.files[name] = text


def rename(f: Folder, r: Random) -> None:
    """Give a node another name everywhere, so that only the name itself can be refused."""
    config = f.json(CONFIG)
    nodes = [n for n in _nodes(config) if isinstance(n, dict) and isinstance(n.get("name"), str)]
    if not nodes:
        return
    old = r.choice(nodes)["name"]
    new = r.choice((*NAMES, *(f"{n['name']}.{s}" for n in nodes for s in ("weight", "x", "requantize"))))
    if r.randrange(2):
        new = old.rpartition(".")[0] + "." + new if "." in old else f"{new}.{old}"
    for node in nodes:
        node["name"] = new if node["name"] == old else node["name"]
        if isinstance(node.get("inputs"), list):
            node["inputs"] = [new if i == old else i for i in node["inputs"]]
    f.put(CONFIG, config)
    _tensor_names(f, lambda key: new + key[len(old) :] if key.startswith(old + ".") else key)


def _tensor_names(f: Folder, change: Callable[[str], str]) -> None:
    entries = tensors(f.content(WEIGHTS))
    f.files[WEIGHTS] = from_tensors({change(k): v for k, v in entries.items()})


def chain(f: Folder, r: Random) -> None:
    """Insert many nodes: none of them computes anything, all of them cost."""
    config = f.json(CONFIG)
    nodes = _nodes(config)
    if not nodes or not all(isinstance(n, dict) and isinstance(n.get("name"), str) for n in nodes):
        return
    place, count = r.randrange(1, len(nodes) + 1), r.choice((1, 3, 50, 1000, 4000, 5000))
    source = nodes[place - 1]
    kind = r.choice(("max_pool", "flatten", "cat", "mean", "mul") if count > 50 else ("max_pool", "add", "cat", "mul"))
    out = source.get("out") or nodes[0].get("out")
    made, last = [], source["name"]
    for i in range(count):
        node: dict[str, Any] = {"name": f"extra_{i}", "op": kind, "inputs": [last]}
        if kind == "max_pool":
            node["attrs"] = {"kernel_size": [1, 1], "stride": [1, 1], "padding": [0, 0]}
        elif kind in ("add", "mul"):
            node |= {"inputs": [last, last], "out": out}
        elif kind != "flatten":
            node["out"] = out
        if kind == "cat" and count <= 50:
            node["inputs"] = [last, last]
        made.append(node)
        last = node["name"]
    for node in nodes[place:]:
        if isinstance(node.get("inputs"), list):
            node["inputs"] = [last if i == source["name"] else i for i in node["inputs"]]
    nodes[place:place] = made
    f.put(CONFIG, config)


def cut(f: Folder, r: Random) -> None:
    """Drop the last nodes with their tensors: another tensor becomes the logits."""
    config = f.json(CONFIG)
    nodes = _nodes(config)
    if len(nodes) < 3:
        return
    keep = r.randrange(1, len(nodes))
    gone = {n["name"] for n in nodes[keep:] if isinstance(n, dict) and isinstance(n.get("name"), str)}
    config["nodes"] = nodes[:keep]
    shape = nodes[keep - 1].get("weight", {}) if isinstance(nodes[keep - 1], dict) else {}
    channels = shape["shape"][0] if isinstance(shape, dict) and shape.get("shape") else r.choice((1, 4, 8, 10, 16, 64))
    config |= {"labels": [], "num_classes": channels}
    f.put(CONFIG, config)
    entries = tensors(f.content(WEIGHTS))
    f.files[WEIGHTS] = from_tensors({k: v for k, v in entries.items() if k.rpartition(".")[0] not in gone})


def sizes(f: Folder, r: Random) -> None:
    """Ask for much memory or a negative picture: paddings, strides, windows, the picture itself."""
    config = f.json(CONFIG)
    many = r.choice((0, 1, 2, 3, 4, 7, 64, 1000, 4096))
    spots = [n["attrs"] for n in _nodes(config) if isinstance(n, dict) and isinstance(n.get("attrs"), dict)]
    if r.randrange(3) == 0 or not spots:
        shape = [r.choice((1, 3, 4096)), many, r.choice((1, 8, 28, 4096))]
        config["input_shape"] = shape
        if isinstance(config.get("preprocess"), dict):
            config["preprocess"] |= {"size": shape[1:], "mean": [0.0] * shape[0], "std": [1.0] * shape[0]}
    else:
        attrs = r.choice(spots)
        key = r.choice(sorted(attrs) or ["pad"])
        attrs[key] = [many] * r.choice((1, 2, 4)) if key != "groups" else many
    f.put(CONFIG, config)


def scales(f: Folder, r: Random) -> None:
    """Give tensors formats that hardly any arithmetic carries."""
    config = f.json(CONFIG)
    formats = [n["out"] for n in _nodes(config) if isinstance(n, dict) and isinstance(n.get("out"), dict)]
    for form in r.sample(formats, min(len(formats), r.choice((1, 1, 2, 50)))):
        key = r.choice(("scale", "scale", "zero_point", "qmin", "qmax", "bits", "signed"))
        if key == "bits":
            bits, signed = r.choice((2, 4, 8, 16)), r.choice((True, False))
            low = -(2 ** (bits - 1)) if signed else 0
            form |= {
                "bits": bits,
                "signed": signed,
                "qmin": low,
                "qmax": low + 2**bits - 1,
                "zero_point": r.choice((0, low)),
            }
        else:
            form[key] = r.choice(SCALES if key == "scale" and r.randrange(4) else NUMBERS)
    f.put(CONFIG, config)


def arithmetic(f: Folder, r: Random) -> None:
    """Take another semantics, and scales that carry another one if any."""
    config = f.json(CONFIG)
    config["semantics"] = r.choice([s for s in SEMANTICS if s != config.get("semantics")])
    f.put(CONFIG, config)
    for _ in range(r.randrange(4)):
        scales(f, r)


def wiring(f: Folder, r: Random) -> None:
    """Let a node read another tensor, whose shape need not suit it, or take another's place."""
    config = f.json(CONFIG)
    nodes = _nodes(config)
    place = r.randrange(1, len(nodes))
    reads = nodes[place]["inputs"]
    reads[r.randrange(len(reads))] = nodes[r.randrange(place)]["name"]
    if nodes[place]["op"] in ("add", "mul", "cat") and r.randrange(2):
        nodes[place]["op"] = r.choice(("add", "mul", "cat"))
    f.put(CONFIG, config)


def tensor(f: Folder, r: Random) -> None:
    """Change the values, the type, the shape or the name of one tensor; offsets stay right."""
    entries = tensors(f.content(WEIGHTS))
    if not entries:
        return
    key = r.choice(sorted(entries))
    entry, data = entries[key]
    kind = r.randrange(6)
    if kind == 0:
        pattern = r.choice(PATTERNS)
        data = (pattern * (len(data) // 4 + 1))[: len(data)]
    elif kind == 1:
        entry["dtype"] = r.choice(TYPES)
    elif kind == 2:
        entry["shape"] = r.choice(([], [0], [len(data)], [*entry["shape"], 1], entry["shape"][::-1], [2**31, 2**31],
                                   [2**62, 4, 0], [-1], [1.0], "x", None, [1] * 100))  # fmt: skip
    elif kind == 3:
        data = bytes(r.randrange(256) for _ in range(min(len(data), 16))) + data[16:]
    elif kind == 4:
        entries.pop(key)
        key = r.choice((*NAMES, key + ".more", key.partition(".")[0]))
    else:
        entries[r.choice(NAMES)] = (dict(entry), data)
    entries[key] = (entry, data)
    f.files[WEIGHTS] = from_tensors(entries)


def header(f: Folder, r: Random) -> None:
    """Change the safetensors header, its length or the offsets."""
    fields, body = split(f.content(WEIGHTS))
    key = r.choice(sorted(fields))
    kind = r.randrange(7)
    if kind == 0:
        f.files[WEIGHTS] = join(fields, body, r.choice((0, 1, 7, 2**20, 100_000_001, 2**31, 2**63, 2**64 - 1)))
        return
    if kind == 1:
        a, b = r.choice(NUMBERS), r.choice(NUMBERS)
        fields[key] = {"dtype": "I8", "shape": [1], "data_offsets": [a, b]}
    elif kind == 2:
        fields["__metadata__"] = value(r)
    elif kind == 3:
        text = json.dumps(fields).encode().replace(b'"dtype"', b'"dtype": "F32", "dtype"', 1)
        f.files[WEIGHTS] = join(text, body)
        return
    elif kind == 4:
        f.files[WEIGHTS] = join(b"[" * r.choice((10, 1000, 100_000)), body)
        return
    elif kind == 5:
        fields[key] = value(r)
    else:
        body = body + b"\0" * 8 if r.randrange(2) else body[:-1]
    try:
        f.files[WEIGHTS] = join(fields, body)
    except ValueError:
        f.files[WEIGHTS] = join(b"{}", body)


def manifest(f: Folder, r: Random) -> None:
    """List other files, or give other sums."""
    found = f.json(MANIFEST)
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not files:
        return
    kind = r.randrange(4)
    if kind == 0:
        files[
            r.choice(("../outside", "/etc/hostname", "a/../../outside", "link", ".", "", "manifest.json", *NAMES))
        ] = r.choice(({"sha256": "0" * 64, "size": 1}, {}, None, {"sha256": None}))
    elif kind == 1:
        files.pop(r.choice(sorted(files)))
    elif kind == 2:
        files[r.choice(sorted(files))] = value(r)
    else:
        found["files"] = {f"extra/{i}": {} for i in range(r.choice((1, 1000)))} | files
    f.put(MANIFEST, found)


def special(f: Folder, r: Random) -> None:
    """Put a link, a pipe, a folder or nothing where a file should be, or a file that no one asked for beside them."""
    name = r.choice(sorted(f.files))
    kind = r.randrange(5)
    if kind == 0:
        f.files[name] = (
            "link",
            r.choice(("../outside", "/etc/hostname", "/dev/zero", "config.json", name, "/dev/stdin", "../..")),
        )
    elif kind == 1:
        f.files[name] = ("fifo", "")
    elif kind == 2:
        f.files[name] = ("folder", "")
    elif kind == 3:
        del f.files[name]
    else:
        # a pickle whose opcodes call os.system: found by nobody who does not unpickle
        f.files[r.choice(("pytorch_model.bin", "model.pt", "modeling.py", "sitecustomize.py", "conftest.py"))] = (
            b"cos\nsystem\n(S'echo pickled'\ntR."
        )


def blind(f: Folder, r: Random) -> None:
    """Flip, cut, double or insert bytes of any file."""
    name = r.choice(sorted(f.files))
    data = f.content(name)
    if not data:
        return
    place = r.randrange(len(data))
    kind = r.randrange(5)
    if kind == 0:
        data = data[:place] + bytes([data[place] ^ (1 << r.randrange(8))]) + data[place + 1 :]
    elif kind == 1:
        data = data[:place]
    elif kind == 2:
        data = data[:place] + bytes(r.randrange(256) for _ in range(4)) + data[place:]
    elif kind == 3:
        data = data[:place] + data[place + r.choice((1, 8, 100)) :]
    else:
        data = data + data
    f.files[name] = data


def text(f: Folder, r: Random) -> None:
    """Change what is only carried along: the card and the recipe's text."""
    name = r.choice(("README.md", "recipe.yaml"))
    f.files[name] = r.choice(
        (b"", b"\xff\xfe\0", b"a: &a [*a, *a]\n", b"!!python/object/apply:os.system ['true']\n", b"---\n" * 9)
    )


STRUCTURED = (json_field, json_field, json_text, rename, rename, chain, cut, sizes, scales, scales, arithmetic,
              wiring, tensor, tensor, header, text)  # fmt: skip

BLIND = (blind, manifest, special)


def mutate(f: Folder, r: Random) -> bool:
    """Change a folder in one to three ways; True when it was signed again, so that its content may be another's."""
    signed = bool(r.randrange(5))
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        change = r.choice(STRUCTURED) if signed and r.randrange(5) else r.choice(BLIND)
        with contextlib.suppress(*BROKEN):  # an earlier change left nothing of the kind that this one changes
            change(f, r)
        f.notes.append(change.__name__)
    if signed:
        f.sign()
    return signed
