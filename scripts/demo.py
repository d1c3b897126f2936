"""Set everything up and run the bundled workflow on a real photo in a headless ComfyUI; prints where the video is."""
import sys

import environment

if __name__ == "__main__":
    sys.exit(environment.run_inside("scripts/demo_run.py"))
