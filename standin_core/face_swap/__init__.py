"""The authors' face swap: paste the reference on every frame, denoise from there, composite over the source.

Source: WeChatCV/Stand-In, ``infer_face_swap.py`` and ``preprocessor/videomask_generator.py``. The authors call it
experimental. ``refine`` makes small faces of a finished video anew, by the same pieces.
"""
from .composite import COLOR_REGIONS, composite_swap
from .encode import MASK_EDGES, SWAP_BACKGROUNDS, encode_swap
from .paste import SwapSettings, prepare_swap
from .refine import FaceTrack, RefineSettings, enlarge_small_face, enlarged, put_back

__all__ = ["COLOR_REGIONS", "MASK_EDGES", "SWAP_BACKGROUNDS", "FaceTrack", "RefineSettings", "SwapSettings",
           "composite_swap", "encode_swap", "enlarge_small_face", "enlarged", "prepare_swap", "put_back"]
