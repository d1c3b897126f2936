"""Install everything, make videos of six drawn people in a headless ComfyUI, each from a photo, and print where."""
import sys

from support import environment

if __name__ == "__main__":
    sys.exit(environment.run_inside("small_world/demo.py"))
