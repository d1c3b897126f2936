"""The demo, inside the environment: the bundled workflow on tiny random weights, with and without the identity.

Real code, real server, real photo; the weights are random, so the video shows that the identity reaches every frame
and not yet a person.
"""
import json
import os
import shutil
import sys
from pathlib import Path

COMFYUI = Path(os.environ["COMFYUI_PATH"])
sys.path.insert(0, str(COMFYUI))

import comfy.options

sys.argv = ["main.py", "--cpu"]
comfy.options.enable_args_parsing()

import av
import numpy as np
import PIL.Image
import skimage.data
from comfyui_server import PACK, PromptFailed, Server, running_server
from demo_report import write_report
from tiny_models import on_tiny_models, write_tiny_models

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
        prompt = on_tiny_models(WORKFLOW, server.upload(photo))
        with_identity = run(server, prompt, "with the identity")
        one_node(prompt, "ApplyIdentityBranch")["inputs"]["strength"] = 0.0
        without = run(server, prompt, "without it, same seed")
    video = result / "video.mp4"
    shutil.copy(with_identity["video"], video)
    shutil.copy(with_identity["crop"], result / "face_crop.png")
    reports = json.loads(with_identity["record"])
    (result / "report.json").write_text(json.dumps({"face": with_identity["verdict"], "runs": reports}, indent=1))
    page = write_report(result, with_identity["verdict"], reports[0], frames(with_identity["video"]),
                        frames(without["video"]))
    say("done")
    sys.stdout.write(f"\nvideo   {video}\nreport  {page}\nrecord  {result / 'report.json'}\n")


def run(server: Server, prompt: dict, what: str) -> dict:
    say(f"queueing the workflow {what}")
    outputs = server.run(prompt, on_progress=lambda node, value, most: say(f"  {node} {value}/{most}")).outputs
    by_class = {prompt[node]["class_type"]: output for node, output in outputs.items()}
    return {
        "video": server.path_of(by_class["SaveVideo"]["images"][0]),
        "record": by_class["PreviewAny"]["text"][0],
        # FacePreprocess is cached in the second run and has nothing new to say
        **({"crop": server.path_of(by_class["FacePreprocess"]["images"][0]),
            "verdict": by_class["FacePreprocess"]["text"][0]} if "FacePreprocess" in by_class else {}),
    }


def one_node(prompt: dict, class_type: str) -> dict:
    return next(node for node in prompt.values() if node["class_type"] == class_type)


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
