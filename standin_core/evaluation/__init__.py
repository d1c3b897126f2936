"""How much a video shows the person of a photo: similarity frame by frame, and beside it how much is pasted.

Similarity alone rewards a copy: a video that shows the photo itself in every frame has the highest. So ``measures``
has both kinds, ``embedders`` turn pictures into vectors (insightface, or any CLIP vision model), ``compare`` runs them
over a video, and ``figures`` and ``chart`` draw what came out.
"""
from .compare import EMBEDDERS, REGIONS, CompareSettings, Comparison, compare, load_embedder
from .embedders import comparing_missing
from .figures import contact_sheet, plot

__all__ = ["EMBEDDERS", "REGIONS", "CompareSettings", "Comparison", "compare", "comparing_missing", "contact_sheet",
           "load_embedder", "plot"]
