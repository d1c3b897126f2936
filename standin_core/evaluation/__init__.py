"""How much a video shows the person of a photo: similarity in every frame, and how much is merely copied.

Similarity alone rewards a copy: the video that shows the photo itself in every frame has the highest. So ``measures``
has figures for both. ``embedders`` turn pictures into vectors (a face recognition network, or any CLIP vision model),
``compare`` runs them over a video, ``ranking`` orders several videos, and ``figures`` and ``chart`` draw the result.
"""
from .compare import EMBEDDERS, REGIONS, CompareSettings, compare, load_embedder
from .embedders import face_embedder_refusals
from .figures import contact_sheet, plot, ranking_sheet
from .ranking import as_json, as_text, rank, split_videos

__all__ = ["EMBEDDERS", "REGIONS", "CompareSettings", "as_json", "as_text", "compare", "contact_sheet",
           "face_embedder_refusals", "load_embedder", "plot", "rank", "ranking_sheet", "split_videos"]
