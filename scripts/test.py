"""Set everything up and run the whole test suite; further arguments go to pytest."""
import sys

from support import environment

if __name__ == "__main__":
    sys.exit(environment.run_inside("-m", "pytest", "tests", *sys.argv[1:]))
