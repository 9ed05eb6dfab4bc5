"""The documents are true where a test can see it: links resolve, commands parse, and what is named exists."""

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from pipeflow.config import parse_resume
from tests.laws.test_architecture import MAY_IMPORT

ROOT = Path(__file__).parents[2]
README, INDEX = ROOT / "README.md", ROOT / "docs" / "README.md"
PAGES = {page.relative_to(ROOT).as_posix(): page for page in [README, *sorted((ROOT / "docs").rglob("*.md"))]}
TEXTS = {name: page.read_text(encoding="utf-8") for name, page in PAGES.items()}
SOURCES = {
    path.relative_to(ROOT).as_posix(): path
    for folder in ("pipeflow", "tests", "configs", "launch", "examples", "benchmarks", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".md", ".yaml", ".sh", ".sbatch") and not {"fixtures", "results"} & set(path.parts)
}
FILES = {path.name for path in SOURCES.values()}
every_page = pytest.mark.parametrize("name", PAGES)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


def prose(text):
    """A page without its code blocks."""
    return FENCE.sub("", text)


def links(text):
    """Targets of all links and pictures, also of `[name]: target`."""
    text = re.sub(r"`[^`\n]*`", "", prose(text))
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[\w+\]: (\S+)$", text, re.MULTILINE)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text):
    """Commands of a page, in code blocks and in code spans, each as words; continued lines are joined."""
    blocks = [body for kind, body in FENCE.findall(text) if kind != "python"]
    blocks += INDENTED.findall(prose(text)) + re.findall(r"`([^`\n]+)`", prose(text))
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            if re.match(r"\s*(?:\S*/)?(?:python3?|torchrun|pytest|launch/\S+|sbatch)\s", command):
                yield shlex.split(command, comments=True)


COMMANDS = [(name, words) for name, text in TEXTS.items() for words in commands(text) if "…" not in words]


def named(*heads):
    """The commands of these programs, as parameters of a test."""
    found = [
        pytest.param(words, id=f"{name}: {' '.join(words)}"[:90]) for name, words in COMMANDS if head(words) in heads
    ]
    return pytest.mark.parametrize("words", found)


def head(words):
    return Path(words[0]).name.replace("python3", "python")


class Parsed(BaseException):
    """Ends a command when it has read its options; args: options, and words that are left."""


def parse(module, words):
    """Parses the words of a command with the command's own parser, and goes no further."""
    if module == "pipeflow.train":
        parse_settings(words)
    elif module in ("pipeflow.plan", "pipeflow.evaluate", "pipeflow.sample", "pipeflow.report"):
        read = argparse.ArgumentParser.parse_known_args

        def read_and_stop(self, *args, **kwargs):
            raise Parsed(*read(self, *args, **kwargs))

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as parsed:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", read_and_stop)
            importlib.import_module(module).main(words)
        left = parsed.value.args[1]
        if module == "pipeflow.plan":
            parse_settings(left)
        else:
            assert not left
    elif module.startswith("benchmarks."):
        importlib.import_module(module)
        known = "".join(path.read_text() for name, path in SOURCES.items() if name.startswith("benchmarks/"))
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in known] == []
    else:
        assert module in ("venv", "pytest"), f"python -m {module} is none of our commands"


def parse_settings(words):
    if words != ["--help"]:
        parse_resume(words)


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 120


@every_page
def test_links_resolve(name):
    for link in links(TEXTS[name]):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        assert target.exists(), f"{name} links to {link}, which is not there"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{name} links to {link}: no such heading"


def test_every_page_can_be_reached_from_the_index():
    reached, todo = set(), [INDEX]
    while todo:
        page = todo.pop()
        if page not in reached and page in PAGES.values():
            reached.add(page)
            name = page.relative_to(ROOT).as_posix()
            todo += [(page.parent / link.partition("#")[0]).resolve() for link in links(TEXTS[name])]
    assert set(PAGES.values()) == reached


@named("python")
def test_python_commands_parse(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[1] == "-m":
        parse(words[2], words[3:])
    else:
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"


@named("torchrun")
def test_torchrun_commands_parse(words, monkeypatch):
    """torchrun, too, must take our words for ours: it knows abbreviations of its own options."""
    monkeypatch.chdir(ROOT)
    options = get_args_parser().parse_args(words[1:])
    if options.module:
        parse(options.training_script, options.training_script_args)
    else:
        assert (ROOT / options.training_script).is_file()


@named("pytest")
def test_tests_that_are_named_exist(words):
    files = [word for word in words if "/" in word]
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_promise_names_a_test_that_exists():
    promises = TEXTS["docs/fault-tolerance.md"].split("|---|---|\n")[1].split("\n\n")[0].splitlines()
    assert len(promises) > 15
    for promise in promises:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", promise)
        assert tests and promise.count("::") == len(tests), promise
        for file, name in tests:
            functions = [n.name for n in ast.parse((ROOT / file).read_text()).body if isinstance(n, ast.FunctionDef)]
            assert name in functions, f"{file} has no {name}"


@named("local.sh", "agents.sh", "sbatch")
def test_launch_files_that_are_named_exist(words):
    assert (ROOT / next(word for word in words if word.startswith("launch/"))).is_file()


def test_the_table_of_imports_is_the_law():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\w, ]+|–) \|$", TEXTS["docs/architecture.md"].split("## Who may")[1], re.MULTILINE
    )
    assert {package: allowed.replace(",", "").replace("–", "") for package, allowed in rows} == MAY_IMPORT


@pytest.mark.parametrize("name", [*SOURCES, "README.md"])
def test_files_and_modules_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".py"):
        text = "\n".join(comments_and_docstrings(text))
    missing = []
    for path in re.findall(r"(?<![\w/.*<{-])((?:[\w.]+/)*\w+\.py)\b", text):
        folders = (ROOT, ROOT / "pipeflow", (ROOT / name).parent)
        found = any((folder / path).exists() for folder in folders) if "/" in path else path in FILES
        missing += [] if found else [path]
    for module in re.findall(r"(?<![\w/.])pipeflow(?:\.[a-z_0-9]{2,})+", text):
        missing += [] if names_something(module) else [module]
    assert not missing, f"{name} names {missing}: not there"


def comments_and_docstrings(source):
    yield from re.findall(r"#.*", source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def names_something(dotted):
    """Whether a dotted name is that of a module, or of something in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:length])
        if folder.with_suffix(".py").is_file() or (folder / "__init__.py").is_file():
            module = importlib.import_module(".".join(parts[:length]))
            return all(hasattr(module, part) for part in parts[length : length + 1])
    return False
