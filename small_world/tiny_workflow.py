"""The bundled workflows on tiny models: their graphs as they are, with small files, sizes and videos."""
from __future__ import annotations

import json
from pathlib import Path

from .tiny_models import (
    ADAPTER,
    CLIP_VISION,
    CONCAT_ID,
    DIFFUSION_MODEL,
    ID_ANIMATOR,
    LORA,
    LOW_NOISE_MODEL,
    SD15_CHECKPOINT,
    TEXT_ENCODER,
    VACE_MODEL,
    VAE,
)

# what the bundled workflows have
FULL_SIZE = {"width": 832, "height": 480, "length": 81, "context_length": 81, "context_overlap": 81}


def on_tiny_models(workflow: Path, photo: str, width: int = 128, height: int = 128, length: int = 17,
                   steps: int = 4, video: str = "") -> dict:
    """A bundled workflow (API format) with the tiny files, a small video and the uploaded photo and video, and without
    downloads; the graph stays as it is, except that a video takes the place of its poses, for want of a tiny network
    that finds them.
    """
    prompt = _without_poses(json.loads(workflow.read_text(encoding="utf-8")))
    for node in prompt.values():
        inputs = node["inputs"]
        if "download_missing" in inputs:
            inputs["download_missing"] = False
        match node["class_type"]:
            case "UNETLoader":
                inputs["unet_name"] = _tiny_wan_for(inputs["unet_name"])
            case "CLIPLoader":
                inputs["clip_name"] = TEXT_ENCODER
            case "VAELoader":
                inputs["vae_name"] = VAE
            case "CLIPVisionLoader":
                inputs["clip_name"] = CLIP_VISION
            case "LoraLoaderModelOnly":
                inputs["lora_name"] = LORA
            case "LoadStandIn":
                inputs["adapter"] = ADAPTER
            case "CheckpointLoaderSimple":
                inputs["ckpt_name"] = SD15_CHECKPOINT
            case "LoadIDAnimator":
                inputs["adapter"] = ID_ANIMATOR
            case "LoadConcatID":
                inputs["file"] = CONCAT_ID
            case "LoadImage":
                inputs["image"] = photo
            case "LoadVideo":
                inputs["file"] = video
            case "StandInSampler" | "TrainStandIn" | "KSampler":
                inputs["steps"] = steps
            case "PrepareTrainingData":
                inputs |= {"frames": length, "photo_size": min(width, height)}
            case "PrimitiveInt" if inputs["value"] == FULL_SIZE["length"]:
                inputs["value"] = length
            case "Video Slice":
                inputs["start_time"] = -(length // 2) / 16  # the second half, at 16 frames a second
            case "RefineFacesPrepare":
                inputs["size"] = min(width, height)
            case "RefineFacesComposite":
                inputs["feather"] = 2  # in pixels of that size
        # the whole video, or half of it as a mask of a region
        for name, value in (("width", width), ("height", height), ("length", length), ("context_length", length),
                            ("context_overlap", length)):
            if isinstance(inputs.get(name), int):
                inputs[name] = value * inputs[name] // FULL_SIZE[name]
    return prompt


def _without_poses(prompt: dict) -> dict:
    frames = {key: prompt[node["inputs"]["keypoints"][0]]["inputs"]["image"] for key, node in prompt.items()
              if node["class_type"] == "SDPoseDrawKeypoints"}
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in frames:
                node["inputs"][name] = frames[value[0]]
    left_out = ("CheckpointLoaderSimple", "SDPoseKeypointExtractor", "SDPoseDrawKeypoints") if frames else ()
    return {key: node for key, node in prompt.items() if node["class_type"] not in left_out}


def with_record(prompt: dict) -> dict:
    """The prompt with one node more, "record", that shows what the sampler did as JSON."""
    sampler = next(key for key, node in prompt.items() if node["class_type"] == "StandInSampler")
    return {**prompt, "record": {"class_type": "PreviewAny", "inputs": {"source": [sampler, 3]}}}


def _tiny_wan_for(name: str) -> str:
    if "vace" in name:
        return VACE_MODEL
    return LOW_NOISE_MODEL if "low_noise" in name else DIFFUSION_MODEL
