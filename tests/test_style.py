"""What ruff says of the whole repository; the rules and their exceptions are in pyproject.toml."""
import subprocess
import sys

from comfyui_server import PACK


def test_ruff():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."], cwd=PACK,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
