"""Recipe -> model -> data -> steps -> checkpoint -> evaluation of what was saved -> record."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from zoo import __version__, ranks
from zoo.artifact import checkpoint, files
from zoo.artifact.card import render_card
from zoo.context import Context, Images
from zoo.data import DataConfig, Split, class_names, find_reader, load_split, require_apart
from zoo.errors import GraphError, RecipeError
from zoo.evaluation import Scores, predict
from zoo.graph.fold import clone
from zoo.graph.trace import trace
from zoo.integer.cost import activation_bytes, macs
from zoo.integer.program import Program
from zoo.integer.shapes import classes
from zoo.paths import output_dir, run_place
from zoo.place import held
from zoo.preprocess import Preprocess
from zoo.progress import bar
from zoo.recipe import Recipe, content_hash, ends_in_float, make_step
from zoo.recipe_file import yaml_text
from zoo.resolve import build
from zoo.results import (
    Calibration,
    EvalData,
    Git,
    Machine,
    Parent,
    Record,
    paired_interval,
    plain,
    write_record,
    write_text,
)
from zoo.train.log import csv_text
from zoo.weights import ModelConfig, build_model, find_builder, load_weights


@dataclass(frozen=True)
class Run:
    """What a run made: the record, and the folder of the checkpoint."""

    record: Record
    folder: Path


def run(fields: dict[str, Any], *, output: Path | None = None, command: str = "") -> Run:
    """Execute a resolved recipe and return its record; the checkpoint lies in ``<output>/<name>/checkpoint``,
    that of another seed than 0 in ``<output>/<name>/seed<n>/checkpoint``.

    Accuracy is measured on networks loaded back from the saved checkpoint, never on the objects in memory.
    """
    recipe = Recipe.parse(fields)
    require_integers(recipe)
    configure(recipe)
    root = Path(output) if output else output_dir()
    with held(root / run_place(recipe.name, recipe.seed) / ".work"):
        return _run(recipe, fields, root, command)


def _run(recipe: Recipe, fields: dict[str, Any], root: Path, command: str) -> Run:
    git = git_state()
    model_config = build(ModelConfig, recipe.model, "model")
    data_config = build(DataConfig, recipe.data, "data")
    preprocess = Preprocess.from_dict(dict(model_config.preprocess))
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    state, source = load_weights(model_config)
    model = build_model(model_config, state)
    calibration = load_split(data_config, "calibration", recipe.images)
    test = load_split(data_config, "test", recipe.test_limit)
    check_classes(model, test, preprocess)
    labels = class_names(model_config.labels) if model_config.labels else ()
    if labels and len(labels) != len(test.classes):
        raise RecipeError(f"model.labels: {model_config.labels} names {len(labels)} classes, {test.name} has "
                          f"{len(test.classes)}; name another list, or none")  # fmt: skip
    if not plain(test.name):
        raise RecipeError(f"data: {test.name!r} cannot be part of a record's file name; use letters, digits, _ . and -")
    require_apart(calibration, test)
    text = yaml_text(fields)
    seconds["load"] = round(time.perf_counter() - started, 2)

    images = Images(calibration.images, preprocess, calibration.labels)
    place = root / run_place(recipe.name, recipe.seed)
    _, program, semantics, context = execute(recipe, model, images, seconds, place / ".work", git.text())
    folder = place / "checkpoint"
    config = describe(recipe, model_config, program, semantics, preprocess, source, calibration, fields)
    started = time.perf_counter()
    scratch = folder.with_name("unverified")
    try:
        checkpoint.save(scratch, program, config, recipe=text, metrics={}, card="")
        loaded = checkpoint.read(scratch)
        scores = {
            "float": predict(model, test, preprocess, "float"),
            "fake": predict(loaded.network(), test, preprocess, "fake-quantized"),
            "integer": predict(loaded.network(integer=True), test, preprocess, "integer"),
        }
        seconds["evaluate"] = round(time.perf_counter() - started, 2)
        record = make_record(
            recipe, fields, config, scores, test, calibration, source, scratch, state or model.state_dict(), seconds,
            command, context.log, git_since(git),
        )  # fmt: skip
        metrics = record.to_dict()
        card = render_card(metrics, loaded.config)
        checkpoint.save(folder, program, config, recipe=text, metrics=metrics, card=card)
    finally:
        remove(scratch)
    # the record comes last: a run that has one is never made again
    if context.curves:
        write_text((root / record.file).with_suffix(".csv"), csv_text(context.curves))
    write_record(record, root)
    remove(*context.kept)
    return Run(record, folder)


def require_integers(recipe: Recipe) -> None:
    """Raise RecipeError for steps that end in no integer network, or train the float network it is compared with."""
    names = [step.name for step in recipe.steps]
    if names[-1] != "integerize":
        raise RecipeError("recipe.steps: the last step must be integerize, so that a checkpoint can be written")
    if "train" in names[: names.index("quantize") if "quantize" in names else 0]:
        raise RecipeError(
            "recipe.steps: train before quantize would train the float network that the result is "
            "compared with; train it by a recipe of its own (docs/write_a_recipe.md, section 2)"
        )


def configure(recipe: Recipe) -> None:
    """Make the run repeatable: seed, thread count, deterministic kernels, TF32 off; join the other processes."""
    ranks.start()
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    # nothing here reads memory that it has not written, so torch need not fill it first
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def check_classes(model: nn.Module, test: Split, preprocess: Preprocess) -> None:
    """Refuse a data set whose classes or colours are not the network's."""
    with torch.no_grad():
        width = model(preprocess.batch(test.images[:1])).shape[1]
    if width != len(test.classes):
        raise RecipeError(
            f"data: {test.name} has {len(test.classes)} classes, the model's weights know {width}; choose the data set "
            "the weights were trained for"
        )


def execute(
    recipe: Recipe,
    model: nn.Module,
    images: Images,
    seconds: dict[str, float],
    work: Path | None = None,
    code: str = "unknown",
) -> tuple[fx.GraphModule, Program, str, Context]:
    """Run the steps in order and return the integer graph, its Program, its semantics, and the context with the logs.

    ``work`` is where a step keeps what lets an interrupted run go on, ``code`` the commit that such a run names.
    """
    # a copy: the trace shares its tensors with a network that is the caller's
    parent = clone(trace(model, images.at(slice(0, 1))))
    with torch.no_grad():
        logits = parent(images.at(slice(0, 1)))
    if logits.dim() != 2:
        raise GraphError(f"{type(model).__name__}: gives {['N', *logits.shape[1:]]}, a classifier gives [N, classes]; "
                         "pool and flatten")  # fmt: skip
    parent = parent.to(memory_format=torch.channels_last)
    context = Context(recipe.quant, images, parent, recipe.seed, recipe.budget, bar, work=work, code=code)
    add_teacher(recipe, context)
    net = parent
    for i, step in enumerate(recipe.steps):
        started = time.perf_counter() + context.earlier
        net = take(recipe, i, net, context)
        seconds[f"{i}-{step.name}"] = round(time.perf_counter() + context.earlier - started, 2)
    ranks.leave()
    return net, net.meta["program"], net.meta["semantics"], context


def take(recipe: Recipe, position: int, net: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Return what the step at this position makes of a graph."""
    context.position = position
    made: fx.GraphModule = make_step(recipe.steps[position], f"recipe.steps[{position}]")(net, context)
    return made


def add_teacher(recipe: Recipe, context: Context) -> None:
    """Load the network that the recipe names as a teacher, and log where its weights come from.

    Raises RecipeError for a teacher of other classes or another preprocessing, or without weights.
    """
    if recipe.teacher is None:
        return
    config = build(ModelConfig, recipe.teacher, "teacher")
    if config.weights is None:
        raise RecipeError(f"teacher: {config.name} has no weights; train it first, or name another model")
    if config.preprocess != recipe.model["preprocess"]:
        raise RecipeError(f"teacher: {config.name} and the model see differently preprocessed images; make them equal")
    state, source = load_weights(config)
    example = context.calibration.at(slice(0, 1))
    teacher = trace(build_model(config, state), example)
    with torch.no_grad():
        widths = [net(example).shape[1] for net in (teacher, context.parent)]
    if widths[0] != widths[1]:
        raise RecipeError(f"teacher: {config.name} knows {widths[0]} classes, the model {widths[1]}; choose another")
    context.teacher = teacher
    context.log["teacher"] = {"model": config.name} | source


def bits_label(program: Program) -> str:
    """Return ``W4A8``: the bits of most weights, and of what most layers between the first and the last multiply."""
    sizes: dict[int, int] = {}
    acts: dict[int, int] = {}
    for node in program.nodes[1:-1]:
        if node.weight is not None:
            sizes[node.weight.bits] = sizes.get(node.weight.bits, 0) + program.tensors[f"{node.name}.weight"].numel()
            bits = program.format_of(node.inputs[0]).bits
            acts[bits] = acts.get(bits, 0) + (node.inputs[0] != program.nodes[0].name)
    weight = max(sizes, key=lambda b: sizes[b]) if sizes else 8
    return f"W{weight}A{max(acts, key=lambda b: acts[b]) if acts else 8}"


def quantization_config(program: Program, semantics: str) -> dict[str, Any]:
    """Return the summary other tools look for: weight formats with the names of their nodes."""
    groups: dict[str, dict[str, Any]] = {}
    for node in program.nodes:
        if node.weight is not None:
            scheme = {
                "num_bits": node.weight.bits, "type": "int", "symmetric": node.weight.symmetric, "dynamic": False,
                "strategy": "channel" if node.weight.per_channel else "tensor",
            }  # fmt: skip
            # scales are those of the integers, which these make of codes
            later = {"mid_rise": node.weight.mid_rise, "shift": node.weight.shift}
            scheme |= {key: value for key, value in later.items() if value}
            levels = "_mid_rise" if node.weight.mid_rise else ""
            group = groups.setdefault(f"group_w{node.weight.bits}{levels}", {"targets": [], "weights": scheme})
            group["targets"].append(node.name)
    return {
        "quant_method": "lowbit-zoo", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": groups, "ignore": [], "bn_folded": True, "rounding": semantics,
        "packing": {"word": "int32", "bit_order": "lsb-first", "encoding": "offset-binary"},
    }  # fmt: skip


def describe(
    recipe: Recipe, model: ModelConfig, program: Program, semantics: str, preprocess: Preprocess,
    source: dict[str, Any], calibration: Split, fields: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Return config.json without the nodes: no timestamps, no machine, no paths."""
    labels = class_names(model.labels) if model.labels else ()
    return {
        "name": recipe.name,
        "architecture": model.name,
        "license": model.license,
        "num_classes": classes(program),
        "semantics": semantics,
        "preprocess": preprocess.to_dict(),
        "labels": list(labels),
        "quantization_config": quantization_config(program, semantics),
        "provenance": {
            "base_model": source, "recipe_sha256": content_hash(fields), "code_version": __version__,
            "seed": recipe.seed,
            "calibration": {
                "dataset": calibration.name, "n": len(calibration), "fingerprint": calibration.fingerprint,
            },
        },
    }  # fmt: skip


def make_record(
    recipe: Recipe, fields: dict[str, Any], config: dict[str, Any], scores: dict[str, Scores], test: Split,
    calibration: Split, source: dict[str, Any], folder: Path, state: dict[str, torch.Tensor],
    seconds: dict[str, float], command: str, log: dict[str, Any], git: Git,
) -> Record:  # fmt: skip
    """Return the record of a run."""
    drop, low, high = paired_interval(scores["float"].correct, scores["integer"].correct)
    weights = folder / "model.safetensors"
    program = checkpoint.read(folder).program
    return Record(
        recipe=recipe.name, recipe_sha256=content_hash(fields), model=str(recipe.model["name"]),
        bits=bits_label(program), semantics=config["semantics"], budget=recipe.budget,
        data=EvalData(test.name, len(test), test.subset or "full", test.fingerprint),
        calibration=Calibration(calibration.name, len(calibration), calibration.fingerprint), seed=recipe.seed,
        top1=scores["integer"].top1, top1_fake=scores["fake"].top1,
        agreement=100.0 * float((scores["fake"].choice == scores["integer"].choice).mean()),
        float_top1=scores["float"].top1, drop=drop, drop_interval=(low, high),
        weights_bytes=weights.stat().st_size,
        float_bytes=sum(t.numel() * t.element_size() for t in state.values() if t.is_floating_point()),
        artifact_sha256=files.sha256(weights),
        parent=Parent(str(source.get("source", "unknown")), str(source.get("sha256", ""))),
        seconds=seconds, versions=versions(), git=git,
        machine=Machine(cpu_name(), torch.get_num_threads(), accelerator(recipe)),
        command=command, steps=tuple(json.dumps({s.name: s.settings}, sort_keys=True) if s.settings else s.name
                                     for s in recipe.steps),
        notes=tuple(f"{k}: {json.dumps(v, sort_keys=True)}" for k, v in sorted(log.items())),
        logits_sha256=scores["integer"].logits_sha256, macs=macs(program), activation_bytes=activation_bytes(program),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions that a number may depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "zoo": __version__}
    for package in ("torch", "torchvision", "timm", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def cpu_name() -> str:
    """Return the processor's name with the instruction set torch uses, and AMX where bfloat16 is multiplied with it."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
        flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        pass
    return ", ".join([name, torch.backends.cpu.get_cpu_capability(), *(["AMX"] if "amx_bf16" in flags.split() else [])])


def accelerator(recipe: Recipe) -> str:
    """Return the name of the GPU that trains, empty where none does."""
    trains = any(step.name == "train" for step in recipe.steps)
    return torch.cuda.get_device_name() if trains and torch.cuda.is_available() else ""


def git_state() -> Git:
    """Return the commit of the code, or ``unknown`` outside a checkout."""
    root = Path(__file__).resolve().parent.parent

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (root / ".git").exists():
        return Git("unknown", False)
    changed = ask("status", "--porcelain", "--untracked-files=normal", "--", "zoo", "recipes")
    return Git(ask("rev-parse", "HEAD") or "unknown", changed is None or changed != "")


def git_since(start: Git) -> Git:
    """Return the state of the code at the start of a run, as changed where it is another one now."""
    return start if git_state() == start else Git(start.commit, True)


def remove(*folders: Path) -> None:
    """Delete scratch folders."""
    import shutil

    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def dry(fields: dict[str, Any]) -> Recipe:
    """Check a recipe without running it: no weight is fetched, no image read, no network made."""
    recipe = Recipe.parse(fields)
    if not ends_in_float(fields):
        require_integers(recipe)
    for part, fields_of in {"model": recipe.model, "teacher": recipe.teacher}.items():
        if fields_of is not None:
            config = build(ModelConfig, fields_of, part)
            find_builder(config, part)
            if config.labels is not None:
                class_names(config.labels)
    find_reader(build(DataConfig, recipe.data, "data"))
    return recipe
