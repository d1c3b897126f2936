"""What is said in one place must hold in the other: ruff's rules, packages, versions, what the registry is given."""
import ast
import asyncio
import itertools
import os
import re
import subprocess
import sys
import tomllib
import zipfile

import nodes
import pytest

from support import pack
from support.environment import PACK

PROJECT = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSIONS = re.findall(r"^## (\d\S*)$", (PACK / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


def git(*arguments):
    """The lines that git says of the checkout; skips the test where there is none."""
    try:
        done = subprocess.run(["git", "-C", str(PACK), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode:
        pytest.skip("this is no checkout of the repository")
    return done.stdout.splitlines()


def test_the_workflow_runs_what_a_run_leaves_out():
    workflow = (PACK / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert re.search(r"run: python scripts/test\.py -m slow$", workflow, re.MULTILINE)


def test_ruff():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."], cwd=PACK,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_mypy():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=PACK, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def python_files():
    return [path for folder in ("standin_core", "nodes", "small_world", "scripts", "casting", "benchmarks", "tests")
            for path in sorted((PACK / folder).rglob("*.py"))]


def arguments(node):
    """Names of the arguments of a function, or of the fields and the ``__init__`` of a class."""
    inside = node.body if isinstance(node, ast.ClassDef) else [node]
    functions = [each.args for each in inside if isinstance(each, FUNCTIONS)
                 and (each is node or each.name == "__init__")]
    return {*(argument.arg for each in functions for argument in (
        *each.posonlyargs, *each.args, *each.kwonlyargs, *filter(None, (each.vararg, each.kwarg)))),
            *(each.target.id for each in inside if isinstance(each, ast.AnnAssign))}


def crowded_lines(text):
    """Lines of docstrings in which an argument is told after a sentence, or after another argument."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            for line in (ast.get_docstring(node) or "").split("\n"):
                if set(re.findall(r"[.;] (?:\w+, )*(\w+): ", line)) & arguments(node):
                    yield f"{node.name}: {line.strip()}"


def test_a_docstring_has_one_argument_a_line():
    assert list(crowded_lines('''def f(a, b):
        """The sum. a: one number; b: another; c: none."""
        """Not a docstring. a: one."""''')) == ["f: The sum. a: one number; b: another; c: none."]
    assert list(crowded_lines('''def f(a, *b, **c):
        """The sum. b: more; c: others."""''')) == ["f: The sum. b: more; c: others."]
    assert not list(crowded_lines('''class C:
        """One of a kind: a thing.

        a, b: two numbers, of one kind.
        c: a third.
        """
        a: int
        b: int
        def __init__(self, c): ...'''))
    found = [f"{path.relative_to(PACK)}, {line}" for path in python_files()
             for line in crowded_lines(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


BEGINS_WITH_OF = re.compile(r"(?:^|[.:!?] )(?:Of|To which) ")


def test_no_sentence_of_a_docstring_begins_with_of():
    assert BEGINS_WITH_OF.search("Of a file.") and BEGINS_WITH_OF.search("A file. To which it goes.")
    assert not BEGINS_WITH_OF.search("The name of a file. Often it is long.")
    found = [f"{path.relative_to(PACK)}, {line.strip()}" for path in python_files()
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module))
             for line in (ast.get_docstring(node) or "").split("\n") if BEGINS_WITH_OF.search(line)]
    assert not found, "\n".join(found)


def test_no_comment_of_a_line_begins_with_of():
    """Behind a name, "of" goes on from it; alone in a line, nobody knows what is meant."""
    found = [f"{path.relative_to(PACK)}, {line.strip()}" for path in python_files()
             for before, line in itertools.pairwise(["", *path.read_text(encoding="utf-8").splitlines()])
             if re.match(r" *# [oO]f ", line) and not before.lstrip().startswith("#")]
    assert not found, "\n".join(found)


def test_the_packages_are_the_same_in_both_lists():
    """requirements.txt is what users install, pyproject.toml what the registry reads."""
    listed = [line for line in (PACK / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert PROJECT["dependencies"] == listed


def test_the_version_is_the_newest_of_the_changelog():
    assert VERSIONS[0] == PROJECT["version"]
    numbers = [tuple(map(int, version.split("."))) for version in VERSIONS]
    assert all(newer > older for newer, older in itertools.pairwise(numbers))


def test_the_tags_are_versions_of_the_changelog():
    assert set(git("tag", "--list", "v*")) <= {f"v{version}" for version in VERSIONS}
    assert set(git("tag", "--list", "v*", "--points-at", "HEAD")) <= {f"v{PROJECT['version']}"}


def test_the_registry_takes_the_pack(tmp_path):
    """By its own checks, without a network and without a word to anybody."""
    done = subprocess.run(
        [sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "validate"], cwd=PACK,
        env={**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "DO_NOT_TRACK": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All validation checks passed" in done.stdout + done.stderr


def test_what_the_registry_gives_to_users_is_the_pack(tmp_path, monkeypatch):
    """The archive without what .comfyignore leaves out: ComfyUI loads it with every node, and it is small."""
    import comfy_cli.file_utils as file_utils  # loads 1 s of its own

    git("rev-parse")
    monkeypatch.chdir(PACK)
    file_utils.zip_files(tmp_path / "node.zip")
    with zipfile.ZipFile(tmp_path / "node.zip") as archive:
        archive.extractall(tmp_path / "pack")
        names = archive.namelist()
    left_out = ("tests/", "benchmarks/", "casting/", "small_world/", "workflows/api/", ".")
    assert not [name for name in names if name.startswith(left_out)]
    assert {"README.md", "LICENSE", "requirements.txt", "scripts/train.py",
            "scripts/support/environment.py", "workflows/two_people.json",
            "subgraphs/Identity from a photo.json", "web/stand_in.js", "web/docs/LoadStandIn.md",
            "locales/zh/nodeDefs.json"} <= set(names)
    assert (tmp_path / "node.zip").stat().st_size < 3e6
    expected = set(pack.node_classes())
    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", {})
    assert asyncio.run(nodes.load_custom_node(str(tmp_path / "pack"), module_parent="custom_nodes"))
    assert set(nodes.NODE_CLASS_MAPPINGS) == expected
