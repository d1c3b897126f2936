"""The versions of ComfyUI that the pack promises, against those that it can be tested with."""
import re
import tomllib

import pytest

import standin_core
from support.environment import CARRIERS, COMFYUI_VERSION
from support.pack import PACK, in_order
from support.workflow_graphs import WORKFLOWS


def test_the_code_knows_the_version_of_the_pack():
    with (PACK / "pyproject.toml").open("rb") as file:
        assert standin_core.__version__ == tomllib.load(file)["project"]["version"]


def test_the_oldest_version_that_is_promised_can_be_tested():
    with (PACK / "pyproject.toml").open("rb") as file:
        promised = tomllib.load(file)["tool"]["comfy"]["requires-comfyui"]
    assert promised == f">={min(CARRIERS, key=in_order)}"
    assert max(CARRIERS, key=in_order) == COMFYUI_VERSION


@pytest.mark.parametrize("file", (".github/workflows/test.yml", ".ci/run"))
def test_ci_runs_the_oldest_version(file):
    commands = (PACK / file).read_text(encoding="utf-8")
    assert re.findall(r"--comfyui (\S+)", commands) == [min(CARRIERS, key=in_order)]


def test_the_table_has_every_version_that_can_be_tested():
    table = re.findall(r"^\| (\d+\.\d+\.\d+) \|", (PACK / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert table == sorted(CARRIERS, key=in_order, reverse=True)


@pytest.mark.parametrize("file", ("standin_core/attention/reasons.py", "docs/performance.md"))
def test_the_code_that_the_kernel_follows_is_that_of_all_versions(file):
    said = re.findall(r"ComfyUI\s(\d+\.\d+\.\d+) to\s(\d+\.\d+\.\d+)", (PACK / file).read_text(encoding="utf-8"))
    assert said == [(min(CARRIERS, key=in_order), COMFYUI_VERSION)]


def test_the_readme_names_the_oldest_and_the_newest():
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    assert f"requires ComfyUI {min(CARRIERS, key=in_order)} or newer" in readme and COMFYUI_VERSION in readme


@pytest.mark.parametrize("workflow", [each for each in WORKFLOWS if each.since], ids=lambda workflow: workflow.name)
@pytest.mark.parametrize("readme", ("README.md", "README_zh.md"))
def test_the_readmes_say_what_needs_a_newer_one(readme, workflow):
    (row,) = [line for line in (PACK / readme).read_text(encoding="utf-8").splitlines()
              if line.startswith(f"| [{workflow.name}]")]
    assert f"ComfyUI {workflow.since.removesuffix('.0')}" in row
