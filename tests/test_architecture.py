"""The shape of the package: imports go downwards, transport is in three files, the gradient wall in one."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pipeflow"
FLOORS = [  # within a floor, a module may import only those written before it
    "packet late drift noise pixels points options units traffic pulse meeting claim heap",
    "flow.step flow.actnorm flow.conv1x1 flow.coupling flow.squeeze flow.split flow.prior flow",
    "precision glow passage part objective grid placement world decode folder published sources data own optimizer "
    "average",
    "work graphs staging link learner engine backlog stop watch stage pipelined cost measure balance board metrics "
    "model sheet",
    "chain ledger schedule pipeline forecast crew sentence plain checkpoint saver config state survey resume join "
    "start rejoin",
    "phase record fault planned outlook",
    "trained score upstream pictures trainer train evaluate sample story figures page report tables chart plan",
]
HEIGHT = {name: height for height, name in enumerate(" ".join(FLOORS).split())}
TRANSPORT = {"world.py", "link.py", "engine.py"}


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


@every_file
def test_imports_go_downwards(file):
    module = module_name(FILES[file])
    assert module == "" or module in HEIGHT, f"{file} is on no floor: give it one in this test and in the design."
    if file.endswith("__init__.py"):
        return
    upwards = [other for other in package_modules(imports_of(file)) if HEIGHT.get(other, len(HEIGHT)) >= HEIGHT[module]]
    assert not upwards, f"{file} imports {upwards}, not below it."


@every_file
def test_only_three_files_know_torch_distributed(file):
    assert file in TRANSPORT or not uses_torch_distributed(TREES[file])


def test_the_gradient_wall_is_in_one_place():
    assert [file for file, tree in TREES.items() if attributes(tree) & {"detach", "detach_"}] == ["packet.py"]


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
        ("from ..packet import Packet", {"packet"}),
        ("from .. import packet, Glow", {"packet", ""}),
        ("import pipeflow.model as m", {"model"}),
        ("from pipeflow.flow import Step, prior", {"flow", "flow.prior"}),
        ("import torch, math", set()),
    ],
)
def test_the_floor_rule_sees_every_form(source, modules):
    assert package_modules(imported(ast.parse(source), "flow.split")) == modules
