"""ID-Animator (arXiv 2404.15275) on ComfyUI's native SD1.5: a face adapter for still pictures, and for AnimateDiff."""
