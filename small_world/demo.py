"""The demo, inside the environment: one photo in, videos of that person out, by the bundled workflow in a real server.

The people are the small world's, drawn, and none of those shown here was seen in training; so are the models, whose
weights lie in small_world/weights. A photograph goes the way of Face Preprocess beside them.
"""
import json
import os
import shutil
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PACK), str(PACK / "scripts")]
from support.environment import import_comfyui

import_comfyui("--cpu")

import av
import numpy as np
import PIL.Image
import skimage.data
from support.comfyui_server import PromptFailed, Server, node_id, running_server

from small_world.cases import DEMONSTRATED, Case, cases, real
from small_world.demo_page import Shown, Video, write_report
from small_world.models import new_vae
from small_world.photos import photo as drawn_photo
from small_world.reader import load_reader, read
from small_world.settings import SETTINGS, Setting
from small_world.tiny_workflow import with_record
from small_world.workflow import on_small_world, write_small_world
from small_world.world import through_vae

COMFYUI = Path(os.environ["COMFYUI_PATH"])
HOME = PACK / ".standin" / "demo"
WORKFLOW = PACK / "workflows" / "api" / "identity_text_to_video.json"
PHOTO_PX = 256


def main() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
    base, result = HOME / "comfyui", HOME / "result"
    result.mkdir(parents=True)
    write_small_world(base / "models")
    say("starting ComfyUI")
    with running_server(COMFYUI, base, HOME / "comfyui.log", "--use-pytorch-cross-attention") as server:
        shown = [person(server, case, result / f"person_{number}")
                 for number, case in enumerate(cases(DEMONSTRATED), start=1)]
        photo, crop, verdict = photograph(server, result)
    (result / "report.json").write_text(json.dumps([each.record for each in shown], indent=1))
    page = write_report(result, shown, photo, crop, verdict)
    say("done")
    for each in shown:
        sys.stdout.write(f"\n{each.caption}\nvideos  {each.photo.parent}\n{each.summary}\n")
    sys.stdout.write(f"\nreport  {page}\nrecord  {result / 'report.json'}\n")


def person(server: Server, case: Case, folder: Path) -> Shown:
    """One photo through the workflow with each setting, and what the reader finds in the frames."""
    folder.mkdir()
    photo = folder / f"{folder.name}.png"
    PIL.Image.fromarray(drawn_photo(case.person, case.photo_scene, PHOTO_PX)).save(photo)
    prompt = with_record(on_small_world(WORKFLOW, server.upload(photo), case.clip.caption, case.seed))
    reader, videos, records = load_reader(), [], []
    for setting in SETTINGS:
        outputs = run(server, changed(prompt, setting), f"{folder.name}, {setting.name}")
        file = Path(shutil.copy(saved(server, outputs["SaveVideo"]), folder / f"{setting.name.replace(' ', '_')}.mp4"))
        videos.append(Video(setting, file, frames(file), read(reader, frames(file))))
        records.append(json.loads(outputs["record"]["text"][0])[0])
    truth = read(reader, through_vae(new_vae().eval(), real(case)))
    return Shown(photo, case.person, case.clip.caption, videos, truth, records[0])


def changed(prompt: dict, setting: Setting) -> dict:
    """The prompt with a setting of Apply Identity Branch."""
    key = node_id(prompt, "ApplyIdentityBranch")
    return {**prompt, key: {**prompt[key], "inputs": prompt[key]["inputs"] | setting.inputs}}


def photograph(server: Server, result: Path) -> tuple[Path, Path, str]:
    """A photograph through Face Preprocess: the photograph, the crop, and what it says of the face."""
    photo = result / "photo.png"
    PIL.Image.fromarray(skimage.data.astronaut()).save(photo)
    prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    load, face = (node_id(prompt, name) for name in ("LoadImage", "FacePreprocess"))
    prompt = {load: prompt[load], face: prompt[face],
              "shown": {"class_type": "PreviewImage", "inputs": {"images": [face, 0]}}}
    prompt[load]["inputs"]["image"] = server.upload(photo)
    prompt[face]["inputs"]["download_missing"] = False
    output = run(server, prompt, "a photograph, as far as Face Preprocess")["FacePreprocess"]
    return photo, Path(shutil.copy(saved(server, output), result / "face_crop.png")), output["text"][0]


def run(server: Server, prompt: dict, what: str) -> dict[str, dict]:
    """Node class, or "record" -> what the node put into the UI."""
    say(f"queueing the workflow: {what}")
    outputs = server.run(prompt, on_progress=lambda node, value, most: say(f"  {node} {value}/{most}")).outputs
    return {node if node == "record" else prompt[node]["class_type"]: output for node, output in outputs.items()}


def saved(server: Server, output: dict) -> Path:
    return server.path_of(output["images"][0])


def frames(video: Path) -> np.ndarray:
    """[F, H, W, 3] uint8"""
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def say(message: str) -> None:
    sys.stdout.write(f"[demo] {message}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except PromptFailed as failure:
        raise SystemExit(f"[demo] ComfyUI stopped: {failure}\n[demo] its log is {HOME / 'comfyui.log'}") from failure
