"""The import law: imports go down only, an __init__ defines nothing, no extra is needed to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jaxseq"
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = {"typing": 0, "precision": 1, "ops": 2, "layers": 3, "cores": 4, "encoders": 5, "decoders": 5, "models": 6}
LEVELS |= {
    "testing": 7,
    "pipelines": 8,
    "doctor": 9,
    "__main__": 9,
    "xla_flags": 0,
    "malloc": 0,
    "files": 0,
    "terminal": 0,
    "launch": 1,
}
SIDE_ROOMS = {"decoding", "training", "data", "analysis", "distribution"}
"""They import typing, precision, ops and plotting, and never one another; pipelines puts them together."""

LEAVES = {"plotting", "weights"}
"""They import nothing of the package but typing and files."""

# What a room may take from outside the package and the standard library, where the design says so.
OUTSIDE = {
    "typing": {"jax", "jaxtyping"},
    "precision": {"jax"},
    "ops": {"jax", "jaxtyping", "numpy"},
    "plotting": {"matplotlib", "numpy"},
    "weights": {"jaxtyping", "ml_dtypes", "numpy", "safetensors"},
    "data": {"PIL", "babel", "jaxtyping", "num2words", "numpy", "skimage", "sklearn", "tokenizers"},
}
EXTRAS = ["PIL", "babel", "matplotlib", "num2words", "sacrebleu", "safetensors", "skimage", "sklearn"]
EXTRAS += ["faster_coco_eval", "pycocotools", "tensorboardX", "tokenizers", "torch", "wandb"]
DEVELOPMENT = ["beartype", "hypothesis", "pytest", "mypy", "ruff"]


def name_of(path: Path) -> str:
    """The file below jaxseq/, for test ids."""
    return str(path.relative_to(PACKAGE))


def room_of(path: Path) -> str:
    """The first folder or file name below jaxseq/; the package's own __init__ has the name ''."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(tree: ast.AST, path: Path) -> set[str]:
    """Full names of all modules imported anywhere in a file, inside functions too."""
    package = ["jaxseq", *path.relative_to(PACKAGE).parent.parts]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def allowed(room: str, other: str) -> bool:
    """Whether a file of one room may import from another."""
    if room in ("", other):
        return True
    if room in LEAVES:
        return other in ("typing", "files")
    if room in SIDE_ROOMS:
        return other in LEAVES or LEVELS.get(other, 9) <= LEVELS["ops"]
    if other == "weights" and room == "encoders":
        return True
    if other in LEAVES | SIDE_ROOMS:
        return LEVELS[room] >= LEVELS["pipelines"]
    return LEVELS.get(other, 9) < LEVELS[room]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_only(path):
    room = room_of(path)
    assert room == "" or room in LEVELS or room in SIDE_ROOMS | LEAVES, f"a room the design does not know: {room}"
    for name in imported(ast.parse(path.read_text()), path):
        parts = name.split(".")
        if parts[0] == "jaxseq" and len(parts) > 1:
            assert allowed(room, parts[1]), f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_takes_from_outside_only_what_it_may(path):
    if room_of(path) in OUTSIDE:
        outside = {name.split(".")[0] for name in imported(ast.parse(path.read_text()), path)}
        outside -= {"jaxseq", *sys.stdlib_module_names, "pydoc_data"}
        assert outside <= OUTSIDE[room_of(path)]


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=name_of)
def test_a_folders_init_hands_names_on_and_defines_nothing(path):
    root = path.parent == PACKAGE  # whose subpackages are imported on first use
    names = {"__all__", "__version__"} if root else {"__all__"}
    for node in ast.parse(path.read_text()).body:
        if root and isinstance(node, ast.FunctionDef):
            assert node.name in {"__getattr__", "__dir__"}
        elif isinstance(node, ast.Assign):
            assert {getattr(target, "id", None) for target in node.targets} <= names
        elif isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant) or (
                root and ast.unparse(node) in ("set_xla_flags()", "set_malloc_options()")
            )
        else:
            assert isinstance(node, ast.Import | ast.ImportFrom), ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_annotations_are_left_to_be_checked(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.module == "__future__")


def test_every_module_imports_without_extras_and_development_tools():
    code = f"""
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS + DEVELOPMENT!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocked())
import jaxseq
names = [module.name for module in pkgutil.walk_packages(jaxseq.__path__, "jaxseq.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(FILES) - 1


def test_data_needs_no_jax():
    code = "import sys, jaxseq.data; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
