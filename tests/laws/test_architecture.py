"""The shape of the package: who may import whom, where transport is, where the gradient wall is."""

import ast
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pipeflow"
# Besides errors, units and settings, which everybody may; across packages only what the package's __init__ offers.
MAY_IMPORT = {
    "flow": "",
    "data": "flow",
    "model": "flow data",
    "distributed": "",
    "stream": "flow distributed",
    "stage": "flow model stream distributed",
    "storage": "distributed",
    "config": "data model distributed stage storage",
    "planning": "flow data model distributed stage config",
    "training": "flow data model distributed stream stage storage config planning",
    "inference": "flow data model distributed stream storage config",
    "reporting": "flow model storage config planning",
}
TOP = {"train", "plan", "evaluate", "sample", "report", "cli", "errors", "units", "settings"}
EVERYBODY = {"errors", "units", "settings"}
TRANSPORT = ("distributed/", "stream/")


def module_name(path):
    """pipeflow/flow/step.py → flow.step, pipeflow/flow/__init__.py → flow, pipeflow/__init__.py → the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
MODULES = {module_name(path) for path in FILES.values()}
every_file = pytest.mark.parametrize("file", FILES)


def imported(tree, module="", is_package=False):
    """Absolute dotted names of all that a module imports, wherever in it: "torch.distributed", "pipeflow.flow.Step"."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ["pipeflow", *filter(None, module.split("."))] + ["__init__"] * is_package
            parts = (base[: -node.level] if node.level else []) + ([node.module] if node.module else [])
            names |= {".".join([*parts, alias.name]) for alias in node.names}
    return names


def imports_of(file):
    return imported(TREES[file], module_name(FILES[file]), file.endswith("__init__.py"))


def package_modules(names):
    """This package's modules behind dotted names: pipeflow.flow.Step → flow, pipeflow.flow.prior.x → flow.prior."""
    found = set()
    for name in names:
        head, *rest = name.split(".")
        while head == "pipeflow" and ".".join(rest) not in MODULES:
            rest.pop()
        found |= {".".join(rest)} if head == "pipeflow" else set()
    return found


def attribute_chains(tree):
    """Every dotted expression such as torch.distributed.send, from its longest form to its shortest."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def uses_torch_distributed(tree):
    return any(
        name == "torch.distributed" or name.startswith("torch.distributed.")
        for name in imported(tree) | attribute_chains(tree)
    )


def attributes(tree):
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def package_of(module):
    """flow.step → flow; train → the empty name; the package itself → the empty name."""
    return module.split(".")[0] if module.split(".")[0] in MAY_IMPORT else ""


def test_every_module_has_a_home():
    found = {path.split("/")[0].removesuffix(".py") for path in FILES}
    assert found == {*MAY_IMPORT, *TOP, "__init__"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_front_door_offers_what_is_there(package):
    front = importlib.import_module(f"pipeflow.{package}")
    assert not [name for name in getattr(front, "__all__", ()) if not hasattr(front, name)]


@every_file
def test_imports_keep_the_law(file):
    package = package_of(module_name(FILES[file]))
    if not package:
        return
    others = [name for name in imports_of(file) if name.startswith("pipeflow.") and package_of(name[9:]) != package]
    allowed = {*MAY_IMPORT[package].split(), *EVERYBODY}
    wrong = [name for name in others if name.split(".")[1] not in allowed or name.count(".") > 2]
    assert not wrong, f"{file} imports {wrong}: not below it, or past a front door."


def test_what_everybody_may_import_imports_nothing_of_the_package():
    assert not package_modules(set().union(*(imports_of(f"{name}.py") for name in EVERYBODY)))


@every_file
def test_only_two_packages_know_torch_distributed(file):
    assert file.startswith(TRANSPORT) or not uses_torch_distributed(TREES[file])


def test_the_gradient_wall_is_in_one_place():
    assert [file for file, tree in TREES.items() if attributes(tree) & {"detach", "detach_"}] == ["flow/packet.py"]


@every_file
def test_no_pickle(file):
    heads = {name.split(".")[0] for name in imports_of(file)}
    assert not heads & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    reached = imports_of(file) | attribute_chains(TREES[file])
    assert not reached & {"torch.load", "torch.save"}


@every_file
def test_files_have_an_idea_and_say_it(file):
    assert not set(file.removesuffix(".py").split("/")) & {"utils", "util", "helpers", "helper", "common", "misc"}
    assert ast.get_docstring(TREES[file])


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed",
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch import distributed as dist",
        "from torch.distributed import send",
        "from torch.distributed.tensor import DTensor",
        "def f():\n    import torch.distributed.nn",
        "import torch\ntorch.distributed.send(x, 1)",
        "import torch\nd = torch.distributed",
    ],
)
def test_the_transport_rule_sees_every_form(source):
    assert uses_torch_distributed(ast.parse(source))


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("from .step import Step", {"flow.step"}),
        ("from . import prior", {"flow.prior"}),
        ("from ..errors import LostError", {"errors"}),
        ("from .. import data, Glow", {"data", ""}),
        ("import pipeflow.model as m", {"model"}),
        ("from pipeflow.flow import Step, prior", {"flow", "flow.prior"}),
        ("import torch, math", set()),
    ],
)
def test_the_import_rule_sees_every_form(source, modules):
    assert package_modules(imported(ast.parse(source), "flow.split")) == modules
