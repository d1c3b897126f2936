"""Train one of the pack's methods on a folder of videos, with one configuration file (see docs/training.md).

    python custom_nodes/<this pack>/scripts/train.py my_training.toml --dry-run
    python custom_nodes/<this pack>/scripts/train.py my_training.toml
    accelerate launch --num_processes 4 custom_nodes/<this pack>/scripts/train.py my_training.toml

ComfyUI is found above the pack, or in COMFYUI_PATH. What follows the file is given to ComfyUI, like --base-directory.
"""
from __future__ import annotations

import argparse
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path

PACK = Path(__file__).absolute().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import add_extra_model_folders, import_comfyui

log = logging.getLogger("stand_in.train")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="TOML")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and how much memory it needs")
    options, for_comfyui = parser.parse_known_args()
    if (PACK.parent.parent / "main.py").is_file():
        os.environ.setdefault("COMFYUI_PATH", str(PACK.parent.parent))
    accelerator = _accelerator()
    # a plan needs no device, and ComfyUI does not start without one unless told so
    on_cpu = options.dry_run or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    import_comfyui(*for_comfyui, *["--cpu"] * on_cpu)
    add_extra_model_folders()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)

    from standin_core.errors import UserError
    from standin_core.folders import find_file, register_folder
    from standin_core.methods import TRAINED
    from standin_core.stand_in.adapter import ADAPTERS
    from standin_core.train.config import read_config
    from standin_core.train.plan import plan

    register_folder(ADAPTERS, "loras")  # users keep adapters among their LoRAs too
    try:
        config = read_config(options.config, TRAINED)
        method = TRAINED[config.method].of(config.settings)
        is_first = accelerator is None or accelerator.is_main_process
        if is_first:
            log.info(plan(config, method, find_file("diffusion_models", config.files.diffusion_model),
                          1 if accelerator is None else accelerator.num_processes))
        if options.dry_run:
            return 0
        from standin_core.train.command import train_from_config

        train_from_config(config, method, log.info, accelerator)
        if is_first:
            log.info("finished: %s", method.file)
    except UserError as error:
        log.error("stopped: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; the same command goes on")
        return 130
    return 0


def _accelerator():
    """accelerate's, where it launched several processes; None for one alone.

    To be called before ComfyUI looks for its device, which is to be this process's.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    import accelerate

    # the others wait while the first makes the data, or draws
    return accelerate.Accelerator(kwargs_handlers=[accelerate.InitProcessGroupKwargs(timeout=timedelta(days=7))])


if __name__ == "__main__":
    sys.exit(main())
