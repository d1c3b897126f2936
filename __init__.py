"""Stand-In for ComfyUI: one photo of a person in, a video of that person out, on native Wan models."""
from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"  # the help pages, and what the pack adds to the page

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
