"""The contract of ARCHITECTURE.md, held: imports point down, core imports stay light, public names are documented."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "reward_forcing"
FILES = sorted(PACKAGE.rglob("*.py"))
NO_SIDEWAYS = (1, 3)
EXTRAS = ["cv2", "fastapi", "lmdb", "lpips", "matplotlib", "peft", "playwright", "ray", "tensorboard"]
EXTRAS += ["timm", "torchao", "torchvision", "uvicorn", "wandb", "webdataset"]


def read_layers() -> dict[str, int]:
    """Part -> layer number, from the table in ARCHITECTURE.md; a remark at a line's end has several words."""
    rows = re.findall(r"^L(\d)  (.+)$", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        group: int(number)
        for number, row in rows
        for group in re.split(r"\s{2,}", row.strip())
        if re.fullmatch(r"\w+", group)
    }


LAYERS = read_layers()


def imports_of(source: str, module: str) -> Iterator[str]:
    """Every `reward_forcing` module or name that `source`, found at the dotted path `module`, imports anywhere."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "reward_forcing")
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            if base.split(".")[0] == "reward_forcing":
                yield from (f"{base}.{alias.name}" for alias in node.names)


def dotted(path: Path) -> str:
    """The module name of a file below `src/`; a package counts as its `__init__`, so that relative imports resolve."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def broken_edges(source: str, module: str) -> list[str]:
    """The imports of `source` that point up, or sideways where the layers forbid it."""
    part = module.split(".")[1]
    broken = []
    for target in imports_of(source, module):
        other = target.split(".")[1] if target.count(".") else ""
        if other not in LAYERS or part not in LAYERS or other == part:
            continue
        up = LAYERS[other] > LAYERS[part]
        sideways = LAYERS[other] == LAYERS[part] and LAYERS[part] in NO_SIDEWAYS
        names_a_network = part == "rollout" and re.match(r"reward_forcing\.models\.(wan_dit|denoiser)", target)
        if up or sideways or names_a_network or (part, other) == ("server", "cli"):
            broken.append(f"{module} imports {target}")
    return broken


def documented_methods(sources: list[str]) -> dict[str, set[str]]:
    """Class name -> its methods with a docstring, its own and those of its bases within `sources`."""
    classes = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    own = {node.name: {item.name for item in functions(node) if ast.get_docstring(item)} for node in classes}
    bases = {node.name: [name_of(base) for base in node.bases] for node in classes}

    def inherited(name: str) -> set[str]:
        return own.get(name, set()).union(*(inherited(base) for base in bases.get(name, []) if base != name))

    return {name: inherited(name) for name in own}


def functions(node: ast.ClassDef | ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions that stand directly in a class or module."""
    return [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]


def name_of(base: ast.expr) -> str:
    """`Stage` for the bases `Stage`, `stage.Stage` and `Stage[Settings]`."""
    return ast.unparse(base.value if isinstance(base, ast.Subscript) else base).split(".")[-1]


def undocumented(source: str, documented: dict[str, set[str]]) -> list[str]:
    """Public functions, classes and methods of `source` without a docstring of their own or of the base they follow."""
    module = ast.parse(source)
    missing = [item.name for item in functions(module) if item.name[0] != "_" and not ast.get_docstring(item)]
    for node in (item for item in module.body if isinstance(item, ast.ClassDef) and item.name[0] != "_"):
        missing += [] if ast.get_docstring(node) else [node.name]
        public = {item.name for item in functions(node) if item.name[0] != "_"}
        missing += [f"{node.name}.{name}" for name in sorted(public - documented[node.name])]
    return missing


def test_the_table_places_every_part() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__", "__main__"}
    assert parts <= LAYERS.keys(), f"not in the table of ARCHITECTURE.md: {sorted(parts - LAYERS.keys())}"
    assert LAYERS["flow"] == 0
    assert LAYERS["server"] == 5


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_point_down(path: Path) -> None:
    assert broken_edges(path.read_text(encoding="utf-8"), dotted(path)) == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import reward_forcing.streaming.session", "reward_forcing.models.text"),
        ("from ..rollout import noise", "reward_forcing.models.text"),
        ("from .. import training", "reward_forcing.streaming.__init__"),
        ("def f():\n    from reward_forcing import rewards", "reward_forcing.data.scenes"),
        ("from reward_forcing.models.wan_dit import WanDiT", "reward_forcing.rollout.rollout"),
        ("from reward_forcing import cli", "reward_forcing.server.app"),
    ],
)
def test_a_forbidden_import_is_found(source: str, module: str) -> None:
    assert len(broken_edges(source, module)) == 1


def test_public_names_have_docstrings() -> None:
    sources = {dotted(path): path.read_text(encoding="utf-8") for path in FILES}
    documented = documented_methods(list(sources.values()))
    missing = [f"{module}: {name}" for module, source in sources.items() for name in undocumented(source, documented)]
    assert missing == []


def test_a_missing_docstring_is_found_unless_a_base_has_it() -> None:
    base = "class Base:\n    'B.'\n    def b(self):\n        'b.'\n"
    source = "class A(Base[int]):\n    'A.'\n    def b(self): ...\n    def c(self): ...\n    def _d(self): ...\n"
    source += "def e(): ...\n"
    assert undocumented(source, documented_methods([base, source])) == ["e", "A.c"]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter after `code`, with its output."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_importing_the_package_and_the_command_loads_no_torch_and_no_extra() -> None:
    done = run_python("import sys, reward_forcing, reward_forcing.cli.main\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "diffusers", "transformers", *EXTRAS}


def test_every_core_module_imports_where_no_extra_is_installed() -> None:
    parts = [path for path in FILES if LAYERS.get(dotted(path).split(".")[1], 0) <= 3]
    modules = [dotted(path).removesuffix(".__init__") for path in parts]
    blocked = f"import sys\nfor name in {EXTRAS}: sys.modules[name] = None\n"  # None makes an import fail
    done = run_python(blocked + "\n".join(f"import {module}" for module in modules))
    assert done.returncode == 0, done.stderr
