"""The bundled workflows on the small world: its files, its sizes, its captions; the graph stays as it is."""
from __future__ import annotations

import shutil
from pathlib import Path

import safetensors.torch

from .models import ADAPTER_FILE, FRAMES, SIDE, VAE_FILE, WAN_FILE
from .tiny_models import TEXT_ENCODER, text_encoder_weights
from .tiny_workflow import on_tiny_models
from .world import CFG, SHIFT, STEPS

FILES = {"diffusion_models": WAN_FILE, "vae": VAE_FILE, "stand_in": ADAPTER_FILE}


def write_small_world(models: Path) -> None:
    """Its files into a ComfyUI models folder."""
    for folder, file in FILES.items():
        (models / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, models / folder)
    (models / "text_encoders").mkdir(exist_ok=True)
    safetensors.torch.save_file(text_encoder_weights(), models / "text_encoders" / TEXT_ENCODER)


def on_small_world(workflow: Path, photo: str, caption: str, seed: int) -> dict:
    """A bundled workflow (API format) of one photo."""
    prompt = on_tiny_models(workflow, photo, SIDE, SIDE, FRAMES, STEPS)
    sampler = next(node["inputs"] for node in prompt.values() if node["class_type"] == "StandInSampler")
    sampler |= {"cfg": CFG, "shift": SHIFT, "seed": seed}
    for which, words in (("positive", caption), ("negative", "")):
        prompt[sampler[which][0]]["inputs"]["text"] = words
    for node in prompt.values():
        match node["class_type"]:
            case "UNETLoader":
                node["inputs"]["unet_name"] = WAN_FILE.name
            case "VAELoader":
                node["inputs"]["vae_name"] = VAE_FILE.name
            case "LoadStandIn":
                node["inputs"]["adapter"] = ADAPTER_FILE.name
            case "FacePreprocess":  # the drawn photo is a crop already
                node["inputs"] |= {"size": SIDE, "detector": "none"}
    return prompt
