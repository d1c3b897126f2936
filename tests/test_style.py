"""What is said in one place must hold in the other: ruff's rules, and the packages the pack needs."""
import subprocess
import sys
import tomllib

from environment import PACK


def test_ruff():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."], cwd=PACK,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_packages_are_the_same_in_both_lists():
    """requirements.txt is what users install, pyproject.toml what the registry reads."""
    listed = [line for line in (PACK / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert tomllib.loads((PACK / "pyproject.toml").read_text())["project"]["dependencies"] == listed
