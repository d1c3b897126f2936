// The order of the pack's templates in the page: the one to begin with first. ComfyUI lists them as the disk does.
import { api } from "../../scripts/api.js"

// The pack's folder may have any name: this file's address is /extensions/<folder>/templates.js.
const FOLDER = decodeURIComponent(import.meta.url.split("/").at(-2))
const ORDER = [
  "identity_text_to_video",
  "identity_in_4_steps",
  "identity_wan_2_2",
  "identity_vace_control",
  "identity_in_a_style",
  "face_swap",
  "two_people",
  "any_subject",
  "low_memory",
  "two_gpus",
  "several_photos",
  "choose_a_seed",
  "refine_faces",
  "long_video",
  "continue_a_video",
  "train_an_adapter",
  "concat_id_text_to_video",
  "face_in_pictures",
  "face_in_a_short_video",
]

const getWorkflowTemplates = api.getWorkflowTemplates
api.getWorkflowTemplates = async function () {
  const templates = await getWorkflowTemplates.call(this)
  templates[FOLDER]?.sort((one, other) => ORDER.indexOf(one) - ORDER.indexOf(other))
  return templates
}
