"""What ComfyUI's page must know to draw the three nodes of ComfyUI-AnimateDiff-Evolved that a template names.

build_workflows.py lends them to the page where it lays that template out; they do nothing. Inputs and outputs are those
of version 1.5.7.
"""
import folder_paths

MOTION_MODELS = "animatediff_models"


class _Drawn:
    CATEGORY = "Animate Diff"
    FUNCTION = "refuse"

    def refuse(self, **_):
        raise NotImplementedError("this node is only drawn: install ComfyUI-AnimateDiff-Evolved to run it")


class LoadAnimateDiffModel(_Drawn):
    RETURN_TYPES, RETURN_NAMES = ("MOTION_MODEL_ADE",), ("MOTION_MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model_name": (folder_paths.get_filename_list(MOTION_MODELS),)},
                "optional": {"ad_settings": ("AD_SETTINGS",)}}


class ApplyAnimateDiffModelSimple(_Drawn):
    RETURN_TYPES = ("M_MODELS",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"motion_model": ("MOTION_MODEL_ADE",)},
                "optional": {"motion_lora": ("MOTION_LORA",), "scale_multival": ("MULTIVAL",),
                             "effect_multival": ("MULTIVAL",), "ad_keyframes": ("AD_KEYFRAMES",),
                             "per_block": ("PER_BLOCK",)}}


class UseEvolvedSampling(_Drawn):
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "beta_schedule": (["autoselect"],)},
                "optional": {"m_models": ("M_MODELS",), "context_options": ("CONTEXT_OPTIONS",),
                             "sample_settings": ("SAMPLE_SETTINGS",)}}


folder_paths.add_model_folder_path(MOTION_MODELS, f"{folder_paths.models_dir}/{MOTION_MODELS}")
folder_paths.folder_names_and_paths[MOTION_MODELS][1].update(folder_paths.supported_pt_extensions)

NODE_CLASS_MAPPINGS = {"ADE_LoadAnimateDiffModel": LoadAnimateDiffModel,
                       "ADE_ApplyAnimateDiffModelSimple": ApplyAnimateDiffModelSimple,
                       "ADE_UseEvolvedSampling": UseEvolvedSampling}
NODE_DISPLAY_NAME_MAPPINGS = {"ADE_LoadAnimateDiffModel": "Load AnimateDiff Model 🎭🅐🅓②",
                              "ADE_ApplyAnimateDiffModelSimple": "Apply AnimateDiff Model 🎭🅐🅓②",
                              "ADE_UseEvolvedSampling": "Use Evolved Sampling 🎭🅐🅓②"}
