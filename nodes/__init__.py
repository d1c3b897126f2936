"""The nodes, one file for each method or purpose. Each node is a schema and one call into standin_core."""
from comfy_api.latest import ComfyExtension

from ..standin_core.folders import register_folder
from ..standin_core.id_animator.adapter import ADAPTERS as ID_ANIMATOR
from ..standin_core.person import PEOPLE
from ..standin_core.stand_in.adapter import ADAPTERS as STAND_IN
from .concat_id import ApplyConcatID, LoadConcatID
from .evaluation import BestOfN, IdentityReport
from .face import FacePreprocess
from .face_swap import FaceSwapComposite, FaceSwapEncode, FaceSwapPrepare
from .id_animator import ApplyIDAnimator, LoadIDAnimator
from .person import LoadPerson, SavePerson
from .refine_faces import RefineFacesComposite, RefineFacesPrepare
from .stand_in import ApplyIdentityBranch, IdentityAttentionMap, LoadStandIn, StandInSampler
from .train import PrepareTrainingData, TrainConcatID, TrainStandIn


class StandInExtension(ComfyExtension):
    async def get_node_list(self):
        return [LoadStandIn, FacePreprocess, ApplyIdentityBranch, StandInSampler, FaceSwapPrepare, FaceSwapEncode,
                FaceSwapComposite, IdentityReport, IdentityAttentionMap, PrepareTrainingData, TrainStandIn,
                LoadConcatID, ApplyConcatID, LoadIDAnimator, ApplyIDAnimator, SavePerson, LoadPerson,
                BestOfN, RefineFacesPrepare, RefineFacesComposite, TrainConcatID]


async def comfy_entrypoint():
    for adapters in (STAND_IN, ID_ANIMATOR):
        register_folder(adapters, "loras")  # users keep adapters among their LoRAs too
    register_folder(PEOPLE)
    return StandInExtension()
