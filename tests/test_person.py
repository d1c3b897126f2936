"""A person as a file: every method gives with it what it gives with the photos, bit for bit; bad files are refused."""
import copy
import dataclasses
import json
import tomllib

import comfy.sd
import concat_id
import folder_paths
import pytest
import safetensors.torch
import torch

import faces
import sd15
import tiny
from golden_cases import load_case
from small_world.tiny_models import ADAPTER, random_weights, tiny_vae, vae_weights
from small_world.tiny_workflow import on_tiny_models
from standin_core.concat_id.apply import apply_concat_id
from standin_core.errors import UserError
from standin_core.face import FaceSettings, crop_faces
from standin_core.folders import filenames
from standin_core.id_animator.adapter import load_adapter
from standin_core.id_animator.apply import apply_photos
from standin_core.person import Person, PersonSettings, Use, load_person, make_person, save_person
from standin_core.person.file import content_sha256
from standin_core.stand_in.apply import apply_reference
from support.comfyui_server import PromptFailed, node_id
from support.environment import PACK

VIDEO = {"samples": torch.zeros(tiny.LATENT)}



@pytest.fixture(scope="module")
def vae():
    return comfy.sd.VAE(sd=vae_weights())


@pytest.fixture(scope="module")
def photos():
    """The same person twice, the second time brighter."""
    first = faces.as_image(faces.astronaut())
    return torch.cat((first, (first * 1.2).clamp(0, 1)))


@pytest.fixture(scope="module")
def file(vae, photos, tmp_path_factory):
    """With everything that can be kept."""
    path = tmp_path_factory.mktemp("people") / "anna.safetensors"
    with torch.inference_mode():  # as ComfyUI runs nodes; the fixture that does so is of a narrower scope
        person, _ = make_person("Anna", photos, PersonSettings(detector="cascade"), vae, VIDEO, sd15.clip_vision())
        save_person(person, path)
    return path


@pytest.fixture(scope="module")
def person(file):
    return load_person(file)


def crop(photos, preset="Stand-In inference"):
    return crop_faces(photos, FaceSettings(preset=preset, detector="cascade"))


def test_photos_and_crops_are_those_of_face_preprocess(person, photos):
    assert person.name == "Anna"
    assert torch.equal(person.photos[0], photos[0])  # of 8 bits
    assert (person.photos[1] - photos[1]).abs().max() <= 0.5 / 255 + 1e-7
    for use, preset in ((Use.STAND_IN, "Stand-In inference"), (Use.CONCAT_ID, "Concat-ID"),
                        (Use.ID_ANIMATOR, "ID-Animator")):
        found, made = person.crops[use], crop(photos, preset)
        assert torch.equal(found.image, made.image) and torch.equal(found.rgba, made.rgba)
        assert found.verdict == made.verdict
        for one, other in zip(found.faces, made.faces, strict=True):
            assert (one.points == other.points).all() and one.points.dtype == other.points.dtype
            assert (one.measured, one.cut_out) == (other.measured, other.cut_out)


@pytest.mark.parametrize("detector", ["cascade", "auto"])
def test_the_file_says_what_made_it(photos, tmp_path, detector):
    """The version of the pack, the preset, and the detector that was used: the only one that can run without files."""
    person, verdict = make_person("b", photos[:1], PersonSettings("head and shoulders", detector=detector))
    save_person(person, tmp_path / "b.safetensors")
    version = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    made_by = f"Stand-In for ComfyUI {version}, preset head and shoulders, detector cascade"
    assert read(tmp_path / "b.safetensors")[1]["made_by"] == made_by and ", by cascade: " in verdict
    assert f"made by {made_by}" in load_person(tmp_path / "b.safetensors").as_text()


def test_stand_in_reads_the_person_as_the_photos(model, vae, person, photos):
    direct = apply_reference(model, tiny.adapter(), vae, crop(photos).image, None)
    kept = apply_reference(model, tiny.adapter(), None, None, None, person=person)
    expected, found = (tiny.sample(each)[0] for each in (direct, kept))
    assert torch.equal(found, expected)
    assert not torch.equal(found, tiny.sample(model)[0])


def test_concat_id_reads_the_first_photo(model, vae, person, photos):
    """One person is one reference, so a model that was trained with several is refused."""
    def sampled(vae, image=None, person=None, video=VIDEO):
        return tiny.sample(apply_concat_id(model, concat_id.record(), video, vae, image, person=person),
                           latent=video["samples"])[0]

    direct = sampled(vae, crop(photos, "Concat-ID").image[:1])
    assert torch.equal(sampled(None, person=person), direct)
    larger = {"samples": torch.zeros(1, 16, 1, 16, 12)}
    assert torch.equal(sampled(vae, person=person, video=larger),
                       sampled(vae, crop(photos, "Concat-ID").image[:1], video=larger))
    with pytest.raises(UserError, match="without a VAE"):
        sampled(None, person=person, video=larger)
    of_two = dataclasses.replace(concat_id.record(), references=2)
    with pytest.raises(UserError, match=r"one person came and tiny_concat_id\.safetensors was trained with 2 in a "
                                        "video: disconnect it, and connect a batch of 2 faces, from left to right"):
        apply_concat_id(model, of_two, VIDEO, vae, person=person)


def test_id_animator_reads_the_person_as_the_photos(person, photos):
    case = load_case(sd15.STILL)
    model, adapter = sd15.unet(case), load_adapter(case.folder / "animator.safetensors")
    image = crop(photos, "ID-Animator").image
    direct, kept, by_crops = (sd15.predictions(apply_photos(model, adapter, *given), case) for given in (
        (sd15.clip_vision(), image), (None, None, person),
        (sd15.clip_vision(), None, without(person, hidden_states=None))))
    for found in (kept, by_crops):
        assert all(torch.equal(one, other) for ones, others in zip(found, direct) for one, other in zip(ones, others))
    with pytest.raises(UserError, match="without a CLIP vision model"):
        apply_photos(model, adapter, None, None, without(person, hidden_states=None))
    with pytest.raises(UserError, match="no face came"):
        apply_photos(model, adapter, sd15.clip_vision(), None)


def without(person: Person, **changed) -> Person:
    fields = {name: getattr(person, name) for name in Person.__dataclass_fields__}
    return Person(**fields | changed)


def test_progress_is_told(photos, bars):
    """The bar counts every photo, for each of the three methods."""
    make_person("b", photos[:2], PersonSettings(detector="cascade"))
    assert bars[0] == (1, 6) and bars[-1] == (6, 6)


def test_a_person_saved_without_a_vae_needs_one(model, vae, photos, tmp_path):
    person, verdict = make_person("b", photos[:1], PersonSettings(detector="cascade"))
    save_person(person, tmp_path / "b.safetensors")
    loaded = load_person(tmp_path / "b.safetensors")
    assert not loaded.latents and loaded.hidden_states is None and "needs the VAE" in loaded.as_text()
    assert verdict == crop(photos[:1]).verdict
    with pytest.raises(UserError, match="without a VAE"):
        apply_reference(model, tiny.adapter(), None, None, None, person=loaded)
    direct = apply_reference(model, tiny.adapter(), vae, crop(photos[:1]).image, None)
    assert torch.equal(tiny.sample(apply_reference(model, tiny.adapter(), vae, None, None, person=loaded))[0],
                       tiny.sample(direct)[0])


def test_a_vae_other_than_the_one_that_made_the_latents(model, vae, person):
    """The same weights in another precision are the same VAE; other weights are another, and make other latents."""
    weights = vae_weights()
    precise = apply_reference(model, tiny.adapter(), vae, None, None, person=person)
    rounded = comfy.sd.VAE(sd={key: value.bfloat16() for key, value in weights.items()}, dtype=torch.bfloat16)
    assert rounded.vae_dtype == torch.bfloat16 != vae.vae_dtype
    again = apply_reference(model, tiny.adapter(), rounded, None, None, person=person)
    assert torch.equal(tiny.sample(again)[0], tiny.sample(precise)[0])
    other = comfy.sd.VAE(sd=random_weights(tiny_vae(), seed=1))
    with pytest.raises(UserError, match="the latents of Anna were made by another VAE"):
        apply_reference(model, tiny.adapter(), other, None, None, person=person)
    with pytest.raises(UserError, match="the latents of Anna were made by another VAE"):
        apply_concat_id(model, concat_id.record(), VIDEO, other, person=person)


def test_a_person_and_a_reference(model, vae, person, photos):
    for image, latent in ((photos, None), (None, VIDEO)):
        with pytest.raises(UserError, match="only one of a person and another reference can be read"):
            apply_reference(model, tiny.adapter(), vae, image, latent, person=person)


def test_people_that_cannot_be_made(photos, vae):
    with pytest.raises(UserError, match="no face was found"):
        make_person("c", torch.zeros(1, 64, 64, 3), PersonSettings(detector="cascade"))
    with pytest.raises(UserError, match="detector is none"):
        make_person("c", photos, PersonSettings(detector="none"))
    with pytest.raises(UserError, match="came without a VAE"):
        make_person("c", photos, PersonSettings(detector="cascade"), video=VIDEO)


def test_another_person_is_not_written_over(file, person, photos, tmp_path):
    path = tmp_path / file.name
    path.write_bytes(file.read_bytes())
    save_person(person, path)  # of the same photos
    other, _ = make_person("Bert", photos[1:], PersonSettings(detector="cascade"))
    with pytest.raises(UserError, match="made from other photos"):
        save_person(other, path)
    assert load_person(path).name == "Anna"
    save_person(other, path, replace=True)
    assert load_person(path).name == "Bert"


def changed_tensor(path):
    tensors, metadata = read(path)
    tensors["photos"][0, 0, 0, 0] ^= 1
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def changed_name(path):
    tensors, metadata = read(path)
    safetensors.torch.save_file(tensors, path, metadata=metadata | {"name": "Carl"})


def later_version(path):
    tensors, metadata = read(path)
    safetensors.torch.save_file(tensors, path, metadata=metadata | {"version": "2"})


def sealed(**tensors):
    """The file with other tensors, and the hash that belongs to them, as anyone can write it."""
    def spoil(path):
        before, metadata = read(path)
        after = before | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        del metadata["sha256"]
        safetensors.torch.save_file(after, path, metadata=metadata | {"sha256": content_sha256(after, metadata)})

    return spoil


def of_a_type_that_numpy_lacks(path):
    tensors, metadata = read(path)
    safetensors.torch.save_file(tensors | {"latents.stand_in": tensors["latents.stand_in"].bfloat16()}, path,
                                metadata=metadata)


def read(path):
    with safetensors.safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    return safetensors.torch.load_file(path), metadata


BAD = {
    "changed tensor": (changed_tensor, "was changed after Save Person wrote it"),
    "changed name": (changed_name, "was changed after Save Person wrote it"),
    "later version": (later_version, "must be a person of version 1, but is of version 2"),
    "of bfloat16": (of_a_type_that_numpy_lacks, "cannot be read as weights"),
    "flat photos": (sealed(photos=torch.zeros(4, dtype=torch.uint8)), "cannot be read as weights"),
    "no photos": (sealed(photos=torch.zeros(0, 8, 8, 3, dtype=torch.uint8)), "cannot be read as weights"),
    "a crop less": (sealed(crops__stand_in__image=torch.zeros(1, 8, 8, 3, dtype=torch.uint8)),
                    "cannot be read as weights"),
    "one hidden state": (sealed(hidden_states=torch.zeros(1280)), "cannot be read as weights"),
    "a latent of a video": (sealed(latents__concat_id=torch.zeros(2, 16, 3, 8, 8)), "cannot be read as weights"),
    "an unknown tensor": (sealed(more=torch.zeros(2)), "cannot be read as weights"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-10]), "is cut off"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n"), "is damaged or no safetensors"),
    "an adapter": (lambda path: safetensors.torch.save_file({"a": torch.zeros(1)}, path), "holds no person"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(file, tmp_path, name):
    spoil, words = BAD[name]
    path = tmp_path / "spoilt.safetensors"
    path.write_bytes(file.read_bytes())
    spoil(path)
    with pytest.raises(UserError, match=f"spoilt.safetensors {words}"):
        load_person(path)


def test_people_are_not_among_the_adapters(tmp_path, monkeypatch):
    (tmp_path / "people").mkdir()
    for name in ("adapter.safetensors", "people/anna.safetensors"):
        safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / name)
    for folder, path in (("kept", tmp_path), ("kept/people", tmp_path / "people")):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(path)], {".safetensors"}))
    assert (filenames("kept"), filenames("kept/people")) == (["adapter.safetensors"], ["anna.safetensors"])


def test_in_a_server(server, photo):
    """Saved by one prompt, loaded by another, without VAE and face nodes; the video is that of the photo."""
    direct = on_tiny_models(PACK / "workflows" / "api" / "identity_text_to_video.json", photo, 96, 64, 5, 2)
    load, face, branch, sampler = (node_id(direct, name) for name in (
        "LoadImage", "FacePreprocess", "ApplyIdentityBranch", "StandInSampler"))
    direct["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "person"}}
    vae = direct[branch]["inputs"]["vae"]
    save = {"class_type": "SavePerson", "inputs": {
        "photos": direct[face]["inputs"]["image"], "name": "kept", "vae": vae, "preset": "Stand-In inference",
        "which_face": "largest", "face_index": 0, "replace": False, "download_missing": False, "detector": "auto",
        "min_score": 0.5}}
    saving = {load: direct[load], vae[0]: direct[vae[0]], "save": save}
    shown = server.run(saving).outputs["save"]
    assert "latents kept, needs no VAE" in shown["text"][0] and len(shown["images"]) == 1
    kept = copy.deepcopy(direct)
    kept["person"] = {"class_type": "LoadPerson", "inputs": {"person": "kept.safetensors"}}
    for name in ("vae", "reference_image"):
        del kept[branch]["inputs"][name]
    kept[branch]["inputs"]["person"] = ["person", 0]
    del kept[load], kept[face]
    files = [server.path_of(server.run(prompt).outputs["latent"]["latents"][0]) for prompt in (direct, kept)]
    one, other = (safetensors.torch.load_file(path)["latent_tensor"] for path in files)
    assert torch.equal(one, other)
    adapters = server.get("/object_info")["LoadStandIn"]["input"]["required"]["adapter"]
    assert ADAPTER in json.dumps(adapters) and "kept" not in json.dumps(adapters)
    saving["save"]["inputs"] |= {"name": "../kept"}
    with pytest.raises(PromptFailed, match="must be one for a file"):
        server.run(saving)
