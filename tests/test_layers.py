"""The architecture, read from the imports: data flows one way, and one file touches ComfyUI's model."""
import ast
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parent.parent / "standin_core"

# each stage may import those before it
ORDER = ["contracts", "files", "folders", "latent_time", "weights", "rope", "face", "reference", "face_swap",
         "evaluation", "wan", "identity", "kv_cache", "attention", "attention_map", "controls", "report", "run",
         "sampler", "train", "stand_in"]
WITHOUT_COMFYUI = ["contracts", "files", "latent_time", "weights", "rope", "kv_cache", "attention", "attention_map",
                   "controls", "report"]


def files():
    return sorted(path for path in CORE.rglob("*.py") if path != CORE / "__init__.py")


def stage(path):
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def imports(path):
    """Dotted names of all that a file imports; relative ones as standin_core.x."""
    package = ["standin_core", *path.relative_to(CORE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


def test_every_stage_has_its_place():
    assert {stage(path) for path in files()} == set(ORDER)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(CORE)))
def test_a_stage_imports_only_what_stands_before_it(path):
    allowed = ORDER[:ORDER.index(stage(path)) + 1]
    for name in imports(path):
        if name.startswith("standin_core."):
            assert name.split(".")[1] in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(CORE)))
def test_who_may_import_comfyui(path):
    names = list(imports(path))
    if stage(path) in WITHOUT_COMFYUI:
        assert not [name for name in names if name.split(".")[0] in ("comfy", "folder_paths", "nodes", "server")]
    if stage(path) != "wan":
        model_code = [name for name in names if name.startswith(("comfy.ldm", "comfy.model_base"))]
        assert model_code == (["comfy.ldm.wan.vae"] if stage(path) == "reference" else [])


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(CORE)))
def test_no_print(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
