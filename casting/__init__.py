"""Many renders over night: people x prompts x seeds through one workflow, on one ComfyUI or on every GPU of a Ray
cluster, ranked by likeness. ComfyUI renders, Ray places and restarts; what is here is the list of what to do.
"""
