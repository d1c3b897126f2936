"""Stand-In for ComfyUI: one photo of a person in, a video of that person out, on native Wan models."""
from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
