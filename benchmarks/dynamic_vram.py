"""DynamicVRAM, which ComfyUI's main program alone switches on."""
import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy_aimdo.control


def switch_on() -> str:
    """As main.py of ComfyUI 0.30.0 does before it loads a model -> whether it is on, or why not.

    main.py calls init() before torch is imported, and this after.
    """
    devices = [device for device in comfy.model_management.get_all_torch_devices() if device.type == "cuda"]
    if not devices:
        return "off: there is no CUDA device"
    comfy_aimdo.control.init(nvml_pressure=True)
    if not comfy_aimdo.control.init_devices((device.index, 0) for device in devices):
        return "off: comfy-aimdo found no device that it works on"
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    return "on"
