"""The demo, inside the environment: the bundled workflow on tiny random weights, with and without the identity.

Real code, real server, real photo; the weights are random, so the video shows that the identity reaches every frame
and not yet a person.
"""
import json
import os
import shutil
import sys
from pathlib import Path

from environment import PACK, import_comfyui

import_comfyui("--cpu")

import av
import numpy as np
import PIL.Image
import skimage.data
from comfyui_server import PromptFailed, Server, node_id, running_server
from demo_report import write_report
from tiny_models import on_tiny_models, with_record, write_tiny_models

COMFYUI = Path(os.environ["COMFYUI_PATH"])
HOME = PACK / ".standin" / "demo"
WORKFLOW = PACK / "workflows" / "api" / "identity_text_to_video.json"


def main() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
    base, result = HOME / "comfyui", HOME / "result"
    result.mkdir(parents=True)
    write_tiny_models(base / "models")
    photo = result / "photo.png"
    PIL.Image.fromarray(skimage.data.astronaut()).save(photo)
    say("starting ComfyUI")
    with running_server(COMFYUI, base, HOME / "comfyui.log", "--use-pytorch-cross-attention") as server:
        prompt = with_record(on_tiny_models(WORKFLOW, server.upload(photo)))
        outputs = run(server, prompt, "with the identity")
        prompt[node_id(prompt, "ApplyIdentityBranch")]["inputs"]["strength"] = 0.0
        outputs_without = run(server, prompt, "without it, same seed")
        video = shutil.copy(saved(server, outputs["SaveVideo"]), result / "video.mp4")
        without = frames(saved(server, outputs_without["SaveVideo"]))
        shutil.copy(saved(server, outputs["FacePreprocess"]), result / "face_crop.png")
    (verdict,) = outputs["FacePreprocess"]["text"]
    reports = json.loads(outputs["record"]["text"][0])
    (result / "report.json").write_text(json.dumps({"face": verdict, "runs": reports}, indent=1))
    page = write_report(result, verdict, reports[0], frames(video), without)
    say("done")
    sys.stdout.write(f"\nvideo   {video}\nreport  {page}\nrecord  {result / 'report.json'}\n")


def run(server: Server, prompt: dict, what: str) -> dict[str, dict]:
    """Node class, or "record" -> what the node put into the UI."""
    say(f"queueing the workflow {what}")
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
