"""Set everything up and run the bundled workflow on a real photo in a headless ComfyUI; prints where the video is."""
import sys

from support import environment

if __name__ == "__main__":
    sys.exit(environment.run_inside("small_world/demo.py"))
