"""The architecture, read from the imports: data flows one way, methods stand side by side, one file knows the model."""
import ast
import graphlib
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parent.parent

# what every method shares; each may import those before it
SHARED = ["errors", "words", "contracts", "checks", "files", "weights", "folders", "latents", "face", "reference",
          "clip_vision", "person", "controls", "report", "guidance", "attention", "rope", "host_attention",
          "exchange", "wan", "joint", "runs", "sampler", "likeness", "evaluation", "train"]
# side by side: none imports another
METHODS = ["stand_in", "concat_id", "id_animator", "face_swap"]
# which methods there are; may import all of them
LISTS = ["methods"]
# inside a method that has more files than a reader holds at a time; each may import those before it
WITHIN = {"stand_in": ["presets", "positions", "variant", "adapter", "managed", "stream", "kv_cache", "applied",
                       "attention_map", "run_report", "choices", "budget", "run", "wrappers", "experts", "apply",
                       "parameters", "objective", "training"],
          "concat_id": ["forward", "quantized", "model", "applied", "run_report", "run", "wrappers", "apply",
                        "training"],
          "id_animator": ["resampler", "adapter", "photo", "unet", "applied", "run_report", "run", "wrappers",
                          "apply"]}
WITHOUT_COMFYUI = ["errors", "words", "contracts", "checks", "files", "weights", "latents", "attention", "controls",
                   "report", "rope", "likeness", "stand_in.adapter", "stand_in.positions", "stand_in.kv_cache",
                   "stand_in.applied", "stand_in.run_report", "id_animator.adapter", "id_animator.resampler",
                   "id_animator.run_report"]
# folder -> which of these it may import by name
AROUND = {"scripts/support": set(), "casting": {"support"}, "small_world": {"support"},
          "benchmarks": {"support", "small_world", "casting"}, "scripts": {"support", "small_world", "casting"}}
# a file for each kind of model, and one for what computes a model's attention
TOUCH_MODELS = ["standin_core.wan", "standin_core.id_animator.unet", "standin_core.host_attention"]
COMFYUI = ("comfy", "comfy_api", "comfy_extras", "folder_paths", "latent_preview", "nodes", "server")


def module_of(path):
    """standin_core/face/models.py -> standin_core.face.models; a folder's __init__ is the folder."""
    return ".".join(path.relative_to(PACK).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path
         for folder in ("nodes", "standin_core") for path in sorted((PACK / folder).rglob("*.py"))}
CORE_FILES = {name: path for name, path in FILES.items() if name.startswith("standin_core.")}


def imports(name):
    """Dotted names of all that a module imports, of those of the pack as in FILES."""
    path = FILES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # from nodes/ the pack itself is two up, and has no name
            base = package[:max(0, len(package) - node.level + 1)] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}" if f"{module}.{alias.name}" in FILES else module


def absolute_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def stage(name):
    return name.split(".")[1]


def test_every_stage_has_its_place():
    assert {stage(name) for name in CORE_FILES} == {*SHARED, *METHODS, *LISTS}
    for method, order in WITHIN.items():
        inside = {name.split(".")[2] for name in CORE_FILES if stage(name) == method and name.count(".") > 1}
        assert inside == set(order)


@pytest.mark.parametrize("name", CORE_FILES)
def test_a_stage_imports_only_what_stands_before_it(name):
    own = stage(name)
    allowed = SHARED[:SHARED.index(own) + 1] if own in SHARED else [*SHARED, own, *(METHODS if own in LISTS else [])]
    for other in imports(name):
        if other.startswith("standin_core."):
            assert stage(other) in allowed, f"{name} imports {other}"
            order = WITHIN.get(own, [])
            if stage(other) == own in WITHIN and name.count(".") > 1:
                assert order.index(other.split(".")[2]) < order.index(name.split(".")[2]), f"{name} imports {other}"


@pytest.mark.parametrize("name", CORE_FILES)
def test_nothing_in_the_core_knows_who_uses_it(name):
    assert not {other.partition(".")[0] for other in imports(name)} & {"nodes", "scripts", "small_world", "tests"}


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("nodes.")])
def test_nodes_stand_side_by_side(name):
    assert {other for other in imports(name) if other.startswith("nodes.")} <= {"nodes.shared"}


def test_no_import_runs_in_a_circle():
    graph = {name: {other for other in imports(name) if other in FILES} for name in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("folder", AROUND)
def test_what_lies_around_the_engine_has_an_order(folder):
    used = {name.partition(".")[0] for path in (PACK / folder).glob("*.py") for name in absolute_imports(path)}
    assert used & {Path(each).name for each in AROUND} <= {*AROUND[folder], Path(folder).name}


@pytest.mark.parametrize("name", CORE_FILES)
def test_who_may_import_comfyui(name):
    names = list(imports(name))
    if any(f"{name}.".startswith(f"standin_core.{each}.") for each in WITHOUT_COMFYUI):
        assert not [other for other in names if other.partition(".")[0] in COMFYUI]
    if name not in TOUCH_MODELS:
        model_code = [other for other in names if other.startswith(("comfy.ldm", "comfy.model_base"))]
        assert model_code == (["comfy.ldm.wan.vae"] if name == "standin_core.reference" else [])


@pytest.mark.parametrize("path", sorted((PACK / "casting").glob("*.py")), ids=lambda path: path.stem)
def test_casting_drives_servers_and_is_none(path):
    """It knows the pack by its workflows: of the engine it takes errors, files and what makes a video better, of
    ComfyUI nothing.
    """
    names = list(absolute_imports(path))
    assert not [name for name in names if name.partition(".")[0] in (*COMFYUI, "small_world", "tests")]
    assert {name for name in names if name.startswith("standin_core")} <= {
        "standin_core.errors", "standin_core.words", "standin_core.files", "standin_core.likeness"}


@pytest.mark.parametrize("name", CORE_FILES)
def test_no_print(name):
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
