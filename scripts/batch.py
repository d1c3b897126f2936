"""Render people x prompts x seeds with one workflow, and rank the videos by likeness (see docs/batches.md).

    python custom_nodes/<this pack>/scripts/batch.py people/ prompts.txt --seeds 4 --out runs/cast
    python custom_nodes/<this pack>/scripts/batch.py people/ prompts.txt --seeds 4 --out runs/cast --ray auto

The same command again does what is missing. ComfyUI is found above the pack, or in COMFYUI_PATH. Arguments that are not
listed here are given to ComfyUI, like --base-directory.
"""
from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

PACK = Path(__file__).absolute().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from casting.batch import Batch
from casting.jobs import model_hashes, models_named, plan
from casting.local import run_here
from casting.outlook import cost, first_jobs
from casting.people import read_people, read_prompts
from casting.records import Records
from casting.server import ServerSettings
from casting.workflow import read_workflow
from standin_core.errors import UserError
from support.environment import add_extra_model_folders, import_comfyui

log = logging.getLogger("stand_in.batch")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("people", type=Path, help="a folder with a picture, a folder of pictures, or a file of Save "
                        "Person per person")
    parser.add_argument("prompts", type=Path, help="a text file with a prompt on each line")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds for each person and prompt, from 0 on")
    parser.add_argument("--workflow", type=Path, default=PACK / "workflows" / "api" / "identity_text_to_video.json",
                        help="in ComfyUI's API format")
    parser.add_argument("--out", type=Path, required=True, help="the folder for videos, records and ranking")
    parser.add_argument("--ray", metavar="ADDRESS", help='"auto" or the address of a Ray cluster, to use all its GPUs')
    parser.add_argument("--minutes", type=float, default=120, help="after which a render is given up")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and what it costs")
    options, for_comfyui = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        return run(options, for_comfyui)
    except (UserError, RuntimeError) as error:
        log.error("stopped: %s", error)
        return 1
    except OSError as error:  # a full disk, or a folder that may not be read
        log.error("stopped: %s. Put that right, and give the same command again: it goes on.", error)
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; the same command goes on")
        return 130


def run(options: argparse.Namespace, for_comfyui: list[str]) -> int:
    if options.seeds < 1 or not 0 < options.minutes < float("inf"):
        raise UserError("--seeds must be at least 1 and --minutes above 0, but they are "
                        f"{options.seeds} and {options.minutes:g}.")
    run_jobs = runner(options.ray)
    comfyui = import_from_above(for_comfyui)
    graph = read_workflow(options.workflow)
    records = Records(options.out.absolute())
    people, prompts = read_people(options.people), read_prompts(options.prompts)
    with records.locked():
        names = models_named(graph)
        hashes = model_hashes(names, model_folders(), records.folder / "models.jsonl")
        if missing := [name for name in names if name not in hashes]:
            log.info("not found here, so not in the id: %s", ", ".join(missing))
        jobs = plan(graph, people, prompts, list(range(options.seeds)), input_folder(), hashes)
        log.info("%d renders: %d people x %d prompts x %d seeds", len(jobs), len(people), len(prompts), options.seeds)
        log.info(cost(jobs, records))
        batch = Batch(jobs, records, log.info)
        if options.dry_run and batch.left:
            log.info(first_jobs(jobs, records))
        if options.dry_run or not batch.left:
            return 0
        run_jobs(batch, ServerSettings(comfyui, tuple(for_comfyui), 60 * options.minutes))
    log.info("the ranking is %s", records.folder / "ranking.html")
    return 0


def runner(address: str | None) -> Callable[[Batch, ServerSettings], None]:
    """What renders: a ComfyUI of this machine, or a Ray cluster.

    Raises UserError where a cluster is wanted and Ray cannot be imported.
    """
    if address is None:
        return run_here
    try:
        from casting.cluster import run_on_cluster
    except ImportError as error:
        raise UserError(f"--ray needs Ray ({error}): pip install 'ray>=2.60', or leave out --ray.") from error
    return functools.partial(run_on_cluster, address=address)


def import_from_above(for_comfyui: list[str]) -> Path:
    """Make the ComfyUI above the pack, or in COMFYUI_PATH, importable, with its arguments; returns its folder."""
    comfyui = Path(os.environ.setdefault("COMFYUI_PATH", str(PACK.parent.parent)))
    if not (comfyui / "main.py").is_file():
        raise UserError(f"{comfyui} has no main.py: set COMFYUI_PATH to ComfyUI's folder.")
    import_comfyui(*for_comfyui)
    add_extra_model_folders()
    return comfyui


def model_folders() -> list[Path]:
    """Those in *models*, also of other packs, and those that the user has configured, each once."""
    import folder_paths

    own = sorted(Path(folder_paths.models_dir).glob("*/"))
    configured = [Path(place) for places, _ in folder_paths.folder_names_and_paths.values() for place in places]
    return list(dict.fromkeys(folder.resolve() for folder in (*own, *configured)))


def input_folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_input_directory())


if __name__ == "__main__":
    sys.exit(main())
