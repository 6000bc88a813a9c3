"""The rules of the repository that a machine can check."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p for folder in ("zoo", "evaluate", "tests") for p in (ROOT / folder).rglob("*.py"))


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs a git checkout: an unpacked sdist has no list of tracked files")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_is_long() -> None:
    assert len(SOURCES) > 20
    assert [p.name for p in SOURCES if len(p.read_text(encoding="utf-8").splitlines()) > 400] == []


def test_no_catch_all_modules() -> None:
    assert {p.stem for p in SOURCES} & {"utils", "util", "helpers", "common", "misc", "base"} == set()


def test_every_module_postpones_annotations() -> None:
    code = [p for p in SOURCES if p.name != "__init__.py"]
    assert [str(p.relative_to(ROOT)) for p in code if "from __future__ import annotations" not in p.read_text()] == []


def test_recipes_hold_no_python() -> None:
    assert [p.name for p in (ROOT / "recipes").rglob("*") if p.is_file() and p.suffix not in (".yaml", ".md")] == []


def test_sources_never_unpickle() -> None:
    bad = re.compile(r"torch\.load\(|pickle\.load|import pickle|allow_pickle=True|\beval\(|\bexec\(")
    found = [p.name for p in SOURCES if p.parts[-2] != "tests" and bad.search(re.sub(r"\.eval\(", "", p.read_text()))]
    assert [name for name in found if not name.startswith("test_")] == []


def test_tracked_files_are_small() -> None:
    sizes = {p.relative_to(ROOT): p.stat().st_size for p in tracked()}
    assert {name: n for name, n in sizes.items() if n > 8 * 2**20} == {}
    assert sum(sizes.values()) <= 30 * 2**20


def test_no_path_of_a_machine_and_no_package_address() -> None:
    path = re.compile(r"(?<![\w.])/(?:work|root|tmp|home)/[A-Za-z]")
    address = re.compile(r"https?://\S+\.(?:whl|deb|tgz)|--(?:extra-)?index-url")
    texts = {".py", ".md", ".toml", ".yaml", ".txt", ".json", ".csv"}
    bad = []
    for file in tracked():
        if file.suffix in texts or file.name == "run":
            text = file.read_text(encoding="utf-8")
            bad += [f"{file.name}: {m[0]}" for m in (*path.finditer(text), *address.finditer(text))]
    assert [b for b in bad if not b.startswith("test_layout.py")] == []


def test_every_requirement_is_pinned_with_a_hash() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [s for s in text.replace("\\\n", " ").splitlines() if s.strip() and not s.startswith("#")]
    assert len(lines) > 50
    assert [s.split(" ")[0] for s in lines if not re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", s)] == []
    pinned = {s.split("==")[0] for s in lines}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(r'^\s+"([A-Za-z0-9_-]+)>=', project, flags=re.MULTILINE)
    assert len(needed) > 15 and {n.lower().replace("_", "-") for n in needed} <= pinned


def test_import_is_light() -> None:
    code = (
        "import sys; import zoo\n"
        "print(*sorted({'torch', 'timm', 'hydra', 'numpy', 'pyarrow', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_readme_and_ci_run_the_same_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python3 -m venv .*$", readme, flags=re.MULTILINE)
    assert len(commands) == 2
    assert sum("-m zoo.run recipe=" in c for c in commands) == 1
    assert sum(c.endswith("-m pytest -n 2 --dist loadfile") for c in commands) == 1
    assert all("--require-hashes -r constraints.txt" in c for c in commands)
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md"), *ROOT.glob("benchmarks/*.md")])


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them of its headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8"))
    places = [(page.parent / name if name else page, anchor) for name, anchor in links]
    assert [place for place, _ in places if not place.exists()] == []
    assert [anchor for place, anchor in places if anchor and anchor not in headings(place)] == []


def test_wheel_holds_the_package_recipes_and_results(tmp_path: Path) -> None:
    if find_spec("hatchling") is None:
        pytest.skip("needs hatchling, the build backend: install constraints.txt")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("lowbit_zoo-")
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"zoo/_recipes/{p.relative_to(ROOT / 'recipes').as_posix()}" for p in (ROOT / "recipes").rglob("*.yaml")}
    records = {f"zoo/_results/{p.relative_to(ROOT / 'results').as_posix()}" for p in (ROOT / "results").rglob("*.json")}
    assert {"zoo/__init__.py", "zoo/py.typed", "zoo/native/kernels.cpp"} | recipes | records <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"zoo"}
