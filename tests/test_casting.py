"""What a batch is made of, without a server: people, prompts, workflows, ids, records and the ranking."""
import copy
import dataclasses
import hashlib
import json
import os
import re
import tempfile
import types
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casting.answers import reported, saved
from casting.batch import TRIES, Batch
from casting.jobs import Job, model_hashes, models_named, plan
from casting.outlook import cost, first_jobs
from casting.people import read_people, read_prompts
from casting.ranking import ranked, write_ranking
from casting.records import Records
from casting.server import Render, RenderLost
from casting.workflow import (
    IDENTITIES,
    RECORD,
    REPORT,
    filled,
    of_class,
    of_kept_person,
    photos_measured,
    pictures_needed,
    read_workflow,
    unmeasured,
    videos_named,
)
from examples import examples
from standin_core.errors import UserError
from support.comfyui_server import PromptFailed, node_id
from support.environment import PACK

API = PACK / "workflows" / "api"
WORKFLOW = API / "identity_text_to_video.json"
# two people have no one likeness, and the other chooses among seeds of its own
FIT = [path for path in sorted(API.glob("*.json")) if path.stem not in ("two_people", "choose_a_seed")]


@pytest.fixture
def people(tmp_path):
    """A folder with Anna, of whom there are two photos, and Ben."""
    folder = tmp_path / "people"
    (folder / "anna").mkdir(parents=True)
    for index, name in enumerate(("anna/1.png", "anna/2.PNG", "ben.jpg")):
        PIL.Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def base(tmp_path):
    """A ComfyUI folder with an adapter and a video."""
    for name in ("models/stand_in", "input"):
        (tmp_path / "comfyui" / name).mkdir(parents=True)
    adapter = "Stand-In_wan2.1_T2V_14B_ver1.0_fp16.safetensors"
    (tmp_path / "comfyui" / "models" / "stand_in" / adapter).write_bytes(b"weights")
    for name in ("video.mp4", "control.mp4"):
        (tmp_path / "comfyui" / "input" / name).write_bytes(name.encode())
    return tmp_path / "comfyui"


def jobs(people, base, workflow=WORKFLOW, words=("a man nods", "a man sits"), seeds=2):
    graph = read_workflow(workflow)
    return plan(graph, read_people(people), list(words), list(range(seeds)), base / "input", hashes(graph, base))


def hashes(graph, base):
    return model_hashes(models_named(graph), sorted((base / "models").iterdir()), base.parent / "models.jsonl")


def test_people_and_prompts(people, tmp_path):
    assert [(person.name, len(person.photos)) for person in read_people(people)] == [("anna", 2), ("ben", 1)]
    for name in ("._ben.jpg", "anna/._1.png", ".trash/zoe.png"):
        (people / name).parent.mkdir(exist_ok=True)
        (people / name).write_bytes(b"what a system hides")
    assert [(person.name, len(person.photos)) for person in read_people(people)] == [("anna", 2), ("ben", 1)]
    file = tmp_path / "prompts.txt"
    file.write_text("a man nods\n\n# later\na man sits \na man nods\n")
    assert read_prompts(file) == ["a man nods", "a man sits"]
    file.write_bytes("a man nods\na café".encode("utf-8-sig"))
    assert read_prompts(file) == ["a man nods", "a café"]
    file.write_bytes("a café".encode("latin-1"))
    with pytest.raises(UserError, match=r"prompts\.txt is not a text in UTF-8"):
        read_prompts(file)


def test_names_of_people_can_be_written_down(people):
    (people / "a folder.png").mkdir()
    assert [person.name for person in read_people(people)] == ["anna", "ben"]
    written = ["d'Arc & <Jeanne> 100%#?", "a\u00a0b",
               "\u5c71\u7530\u3000\u592a\u90ce", "\u0645\u06cc\u200c\u0631\u0627"]  # with spaces of Japan and Persia
    for name in written:
        (people / f"{name}.png").write_bytes(b"")
    assert {person.name for person in read_people(people)} == {"anna", "ben", *written}
    for name in (os.fsdecode(b"caf\xe9.png"), "two\nlines.png", "\x1b[2J.png"):
        (people / name).write_bytes(b"")
        with pytest.raises(UserError, match="cannot be written down"):
            read_people(people)
        (people / name).unlink()


def test_a_damaged_record_is_none(people, base, tmp_path):
    records, (job, *_) = Records(tmp_path), jobs(people, base)
    for content in (b"{", b"[1]", b"\xff", b"{}"):
        (tmp_path / f"{job.id}.json").write_bytes(content)
        assert not records.is_done(job) and records.seconds(job.workflow) == []


@pytest.mark.parametrize("workflow", FIT, ids=lambda path: path.stem)
def test_every_bundled_workflow_is_filled(workflow):
    graph = read_workflow(workflow)
    loaders = of_class(graph, "LoadImage")
    made = filled(graph, [f"{index}.png" for index in range(len(loaders))],
                  {"video.mp4": "a.mp4", "control.mp4": "b.mp4"}, "words of mine", 7)
    assert [made[key]["inputs"]["image"] for key in loaders] == [f"{index}.png" for index in range(len(loaders))]
    assert [node["inputs"]["text"] for node in made.values() if node["class_type"] == "CLIPTextEncode"].count(
        "words of mine") == 1
    (sampler,) = [node for node in made.values() if node["class_type"] in ("StandInSampler", "KSampler")]
    assert sampler["inputs"]["seed"] == 7
    words = made[sampler["inputs"]["positive"][0]]["inputs"]
    assert "words of mine" in (words.get("text"), made[words.get("positive", ["5"])[0]]["inputs"].get("text"))
    report = made[RECORD]["inputs"]["source"][0]
    assert made[report]["class_type"] == "IdentityReport"
    (save, *_) = of_class(graph, "SaveVideo", "SaveImage")
    frames = graph[save]["inputs"]
    frames = frames if "images" in frames else graph[frames["video"][0]]["inputs"]
    assert made[report]["inputs"]["images"] == frames["images"]
    assert "words of mine" not in json.dumps(graph)
    costly = ("StandInSampler", "KSampler", "VAEDecode", "UNETLoader", "CheckpointLoaderSimple")
    kept = unmeasured(made)
    assert not of_class(kept, "IdentityReport") and [*kept] == [key for key in graph if key in kept]
    assert {each for each in costly if of_class(kept, each)} == {each for each in costly if of_class(graph, each)}
    assert save in kept
    check = photos_measured(made)
    assert check[report]["inputs"]["images"] == check[report]["inputs"]["reference_image"] and RECORD in check
    assert not of_class(check, *costly) and of_class(check, "LoadImage")


ONE_PICTURE = [path for path in FIT if len(of_class(json.loads(path.read_text()), "LoadImage")) == 1]


@pytest.mark.parametrize("workflow", ONE_PICTURE, ids=lambda path: path.stem)
def test_every_bundled_workflow_takes_a_kept_person(workflow):
    """In place of the photo: no face is cropped any more, and what is not linked is left out."""
    graph = read_workflow(workflow)
    made = filled(of_kept_person(graph, "anna.safetensors"), [], {"video.mp4": "a.mp4", "control.mp4": "b.mp4"}, "w", 7)
    assert not of_class(made, "LoadImage", "FacePreprocess", "JoinImageWithAlpha")
    (person,) = of_class(made, "LoadPerson")
    assert made[person]["inputs"] == {"person": "anna.safetensors"}
    linked = {(node["class_type"], name): value for node in made.values() for name, value in node["inputs"].items()
              if isinstance(value, list)}
    assert {value[0] for value in linked.values()} <= made.keys()
    of_person = {key: value[1] for key, value in linked.items() if value[0] == person}
    (apply,) = {node["class_type"] for node in made.values()} & {*IDENTITIES}
    expected = {(apply, "person"): 0, ("IdentityReport", "reference_image"): 1}
    assert of_person == expected | ({("FaceSwapPrepare", "face"): 4} if workflow.stem == "face_swap" else {})
    assert not {(each, "reference_image") for each in IDENTITIES} & linked.keys()


def test_a_kept_person_is_one_of_the_people(people, base):
    """Its file travels with each of its jobs, and is part of their ids."""
    (people / "carl.safetensors").write_bytes(b"kept")
    of_carl = jobs(people, base)[8:]
    assert [(job.person, [*job.contents().values()]) for job in of_carl] == [("carl", [b"kept"])] * 4
    assert len({job.workflow for job in jobs(people, base)}) == 1
    graph, contents = of_carl[0].of_photos()
    assert of_class(graph, "LoadPerson", "IdentityReport") and [*contents.values()] == [b"kept"]
    (people / "carl.safetensors").write_bytes(b"anew")
    assert not {job.id for job in of_carl} & {job.id for job in jobs(people, base)}
    for name in ("ben.jpg", "anna/1.png", "anna/2.PNG"):
        (people / name).unlink()
    with pytest.raises(UserError, match=r"loads 3 pictures, but carl\.safetensors is a person that Save Person kept"):
        jobs(people, base, API / "several_photos.json")


def test_further_photos_are_for_the_copy_paste_measure():
    made = filled(read_workflow(WORKFLOW), ["a.png", "b.png", "c.png"], {}, "words", 0)
    photos = made[made[REPORT]["inputs"]["reference_image"][0]]["inputs"]
    assert [made[photos[f"images.image{index}"][0]]["inputs"]["image"] for index in range(3)] == [
        "a.png", "b.png", "c.png"]
    assert made[node_id(made, "LoadImage")]["inputs"]["image"] == "a.png"


def test_an_id_is_of_all_that_a_render_depends_on(people, base):
    ids = [job.id for job in jobs(people, base)]
    assert len(set(ids)) == len(ids) == 8
    assert [job.id for job in jobs(people, base)] == ids
    kept = json.loads((base.parent / "models.jsonl").read_text())
    assert kept["path"].endswith("fp16.safetensors")

    def changed():
        return not set(ids) & {job.id for job in jobs(people, base)[4:]}

    assert not changed()
    PIL.Image.new("RGB", (8, 8), (9, 9, 9)).save(people / "ben.jpg")
    assert changed()
    PIL.Image.new("RGB", (8, 8), (2, 0, 0)).save(people / "ben.jpg")
    assert not changed()
    (adapter,) = (base / "models" / "stand_in").iterdir()
    adapter.write_bytes(b"WEIGHTS" * 2)
    assert changed()
    graph = read_workflow(WORKFLOW)
    weaker = json.loads(json.dumps(graph))
    weaker[node_id(graph, "ApplyIdentityBranch")]["inputs"]["strength"] = 0.5
    first, second = (plan(each, read_people(people), ["a"], [0], base / "input", hashes(each, base))
                     for each in (graph, weaker))
    assert not {job.id for job in first} & {job.id for job in second}


def test_every_file_of_a_name_counts(tmp_path):
    """Which one a node takes, it alone knows. A bracket in a name is a letter, and a folder in it is a folder."""
    files = [tmp_path / folder / name for folder, name in (
        ("stand_in", "anna.safetensors"), ("loras", "anna.safetensors"), ("stand_in", "[v2] a*.ckpt"),
        ("stand_in", "wan/ben.bin"))]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(str(file).encode())
    graph = {str(index): {"class_type": "LoadStandIn", "inputs": {"adapter": name, "model": ["1", 0]}}
             for index, name in enumerate(("anna.safetensors", "[v2] a*.ckpt", "wan/ben.bin", "zoe.pt", "no model"))}
    names = models_named(graph)
    assert names == ["[v2] a*.ckpt", "anna.safetensors", "wan/ben.bin", "zoe.pt"]

    def found():
        return model_hashes(names, [tmp_path / "loras", tmp_path / "stand_in"], tmp_path / "models.jsonl")

    before = found()
    assert before.keys() == {*names[:3]}
    assert before["wan/ben.bin"] == hashlib.sha256(str(files[3]).encode()).hexdigest()
    for file in files:
        file.write_bytes(b"other weights of " + file.name.encode() + file.parent.name.encode())
        after = found()
        name = "wan/ben.bin" if file.name == "ben.bin" else file.name
        assert {each for each in names[:3] if after[each] != before[each]} == {name}
        before = after


def test_a_video_is_part_of_the_id(people, base):
    ids = {job.id for job in jobs(people, base, API / "face_swap.json")}
    (job, *_) = jobs(people, base, API / "face_swap.json")
    assert b"video.mp4" in job.contents().values()
    (base / "input" / "video.mp4").write_bytes(b"another")
    assert not ids & {job.id for job in jobs(people, base, API / "face_swap.json")}


def render(likeness=0.5, coverage=1.0, copied=0.25, embedder="arcface", **more):
    """likeness: in the frames with a face."""
    summary = {"similarity": {"mean": likeness, "coverage": coverage}, "copied_pixels": {"mean": copied}, **more}
    return Render([(".mp4", b"video"), (".mp4", b"second")], {"embedder": embedder, "summary": summary}, 1.5, "here:1")


def test_the_record_comes_last(people, base, tmp_path, monkeypatch):
    """A kill while the video is written leaves nothing that counts as done."""
    records, (job, *_) = Records(tmp_path), jobs(people, base)
    monkeypatch.setattr(Path, "write_text", lambda *arguments, **others: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        records.keep(job, render(), 1)
    monkeypatch.undo()
    assert (tmp_path / f"{job.id}.mp4").read_bytes() == b"video" and not records.is_done(job)
    records.keep(job, render(), 2)
    assert records.is_done(job)
    (record,) = records.of([job])
    assert record["files"] == [f"{job.id}.mp4", f"{job.id}_2.mp4"] and record["tries"] == 2
    assert (record["person"], record["prompt"], record["seed"]) == ("anna", "a man nods", 0)


def test_a_render_whose_video_is_gone_is_missing(people, base, tmp_path):
    """The same command makes it again, and the page shows it once."""
    records, some = Records(tmp_path), jobs(people, base)[:2]
    for job in some:
        records.keep(job, render(), 1)
    (tmp_path / f"{some[1].id}_2.mp4").unlink()
    batch = Batch(some, records, lambda words: None)
    assert batch.left == 1 and batch.take() is some[1]
    batch.rendered(some[1], render(likeness=0.7))
    shown = json.loads((tmp_path / "ranking.json").read_text())["people"]["anna"]["arcface"]
    assert [each["id"] for each in shown] == [some[1].id, some[0].id]


def test_a_photo_that_changes_while_a_batch_runs(people, base, tmp_path):
    """Its jobs fail with why: their ids are of the photo as it was. The others go on."""
    some, said = jobs(people, base, words=("a man nods",)), []
    batch = Batch(some, Records(tmp_path), said.append)
    PIL.Image.new("RGB", (8, 8), (9, 9, 9)).save(people / "ben.jpg")
    batch.check(lambda graph, contents: None)
    assert [job.person for job in iter(batch.take, None)] == ["anna"] * 2
    assert len(said) == 2 and all("ben.jpg was changed after the batch began" in words for words in said)
    (people / "anna" / "1.png").unlink()
    with pytest.raises(PromptFailed, match=r"1\.png can no longer be read \(No such file"):
        some[0].contents()


def test_a_lost_job_is_tried_three_times_and_again_by_the_next_call(people, base, tmp_path):
    records, some, said = Records(tmp_path), jobs(people, base), []
    batch = Batch(some, records, said.append)
    bad = some[2].id
    while job := batch.take():
        if job.id == bad:
            batch.failed(job, RenderLost("ComfyUI ended in this render"))
        else:
            batch.rendered(job, render())
    assert not batch.left and sum("ComfyUI ended" in words for words in said) == TRIES
    assert re.search(r"^1/8 anna, seed 0: a man nods: likeness 0.500, copied pixels 0.250, 2 s; .* left$", said[0])
    (failed,) = [record for record in records.of(some) if "error" in record]
    assert failed["error"] == "ComfyUI ended in this render" and failed["tries"] == TRIES
    ranking = json.loads((tmp_path / "ranking.json").read_text())
    assert [each["id"] for each in ranking["failed"]] == [bad]
    again = Batch(some, records, said.append)
    assert again.left == 1
    again.rendered(again.take(), render(likeness=0.9))
    ranking = json.loads((tmp_path / "ranking.json").read_text())
    assert not ranking["failed"] and ranking["people"]["anna"]["arcface"][0]["id"] == bad
    assert sum(len(embedders["arcface"]) for embedders in ranking["people"].values()) == 8


def test_a_dry_run_says_what_is_to_do_and_what_it_costs(people, base, tmp_path):
    """By the renders of the same workflow, whoever they show; those of another one cost something else."""
    records, some = Records(tmp_path), jobs(people, base)
    assert cost(some, records) == "8 to do; how long a render takes is known after the first"
    assert first_jobs(some, records).splitlines() == [
        "anna: 4 renders to do", "ben: 4 renders to do",
        *(f"  anna, seed {seed}: a man {verb}" for verb in ("nods", "sits") for seed in (0, 1)),
        "  ben, seed 0: a man nods", "  and 3 more"]
    for job, seconds in zip(some, (90.0, 90.0, 180.0)):
        records.keep(job, dataclasses.replace(render(), seconds=seconds), 1)
    records.keep_failure(some[3], "ComfyUI ended in this render", 3)
    assert cost(some, records) == "3 done, 5 to do; 2 min each by 3 renders of before, 10 min of one GPU in all"
    assert first_jobs(some, records).splitlines()[:3] == ["anna: 1 render to do", "ben: 4 renders to do",
                                                          "  anna, seed 1: a man sits"]
    others = jobs(people, base, words=("a man runs",), seeds=1)
    assert cost(others, records) == "2 to do; 2 min each by 3 renders of before, 4 min of one GPU in all"
    assert "known after the first" in cost(jobs(people, base, API / "low_memory.json"), records)
    for job in others:
        records.keep(job, render(), 1)
    assert cost(others, records) == "all are done"


def record(key, person, likeness, **more):
    return {"id": key, "person": person, "prompt": "<b>a man</b>", "seed": 0, "files": [f"{key}.mp4"],
            "report": render(likeness, **more).report}


def test_what_a_node_refuses_is_not_rendered_again(people, base, tmp_path):
    records, some = Records(tmp_path), jobs(people, base)
    batch = Batch(some, records, lambda words: None)
    job = batch.take()
    batch.failed(job, PromptFailed("ApplyIdentityBranch: the adapter is for a model of 14B", "9"))
    assert batch.left == 7 and job not in iter(batch.take, None)
    (failed,) = records.of(some)
    assert failed["error"].startswith("ApplyIdentityBranch: ") and failed["tries"] == 1


def test_photos_are_checked_before_any_render(people, base, tmp_path):
    """A person's jobs fail where their photos are refused; where everybody's are, there is no batch."""
    records, some, said = Records(tmp_path), jobs(people, base), []
    (ben,) = [person.photos[0] for person in read_people(people) if person.name == "ben"]

    def refusal(graph, contents):
        return "IdentityReport: no face" if [*contents.values()] == [ben.read_bytes()] else None

    batch = Batch(some, records, said.append)
    batch.check(refusal)
    assert batch.left == 4 and {job.person for job in iter(batch.take, None)} == {"anna"}
    assert {(record["person"], record["error"]) for record in records.of(some)} == {("ben", "IdentityReport: no face")}
    assert len(said) == 4
    with pytest.raises(UserError, match=r"nothing was rendered\. IdentityReport: no face$"):
        Batch([job for job in some if job.person == "ben"], records, said.append).check(refusal)


def test_the_time_left(people, base, tmp_path, monkeypatch):
    """Four of 8 jobs fail at once for their photo, and the others take 7 minutes each."""
    said, clock = [], iter(range(0, 10000, 420))
    monkeypatch.setattr("casting.batch.time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    batch = Batch(jobs(people, base), Records(tmp_path), said.append)
    of_anna = [photo.read_bytes() for photo in sorted((people / "anna").iterdir())]
    batch.check(lambda graph, contents: None if of_anna == [*contents.values()] else "IdentityReport: no face")
    for job in iter(batch.take, None):
        batch.rendered(job, render())
    assert [re.search(r"(?:; (.*) left)?$", words)[1] for words in said] == [
        None, None, None, None, "21 min", "14 min", "7 min", None]


def test_the_ranking(tmp_path):
    records = [record("a", "ben", 0.2), record("b", "anna", 0.4, copy_paste={"mean": 0.7}),
               record("c", "anna", None, coverage=0.0, copied=None), record("d", "anna", 0.7),
               record("f", "anna", 0.9, coverage=0.5), record("g", "anna", 0.95, copied=0.81),
               record("h", "anna", 0.96, copied=0.1, copy_paste={"mean": 0.9}),
               record("i", "anna", -0.1),
               {"id": "e", "person": "ben", "prompt": "p", "seed": 1, "error": "KSampler: out of <memory>"},
               {"id": "j", "person": "ben", "prompt": "p", "seed": 2, "files": ["j.mp4"], "not_measured": "no <face>"}]
    found = ranked(records)
    assert ids(found) == {"anna": {"arcface": ["d", "f", "b", "i", "c", "h", "g"]}, "ben": {"arcface": ["a"]}}
    anna = found["anna"]["arcface"]
    assert [round(each["likeness"], 9) for each in anna] == [0.7, 0.45, 0.4, -0.1, 0, 0.96, 0.95]
    assert anna[2]["copy_paste"] == 0.7 and anna[0]["copied_pixels"] == 0.25
    page = write_ranking(tmp_path, records).read_text()
    places = [page.index(words) for words in ("d.mp4", "f.mp4", "b.mp4", "i.mp4", "c.mp4", "h.mp4", "g.mp4", "a.mp4",
                                              "<h2>Not measured", "<video src='j.mp4'", "no &lt;face&gt;",
                                              "<h2>Failed", "KSampler: out of &lt;memory&gt;")]
    assert places == sorted(places)
    for caption in ("2. likeness 0.450, a face in 50 % of the frames, copied pixels 0.250<",
                    "3. likeness 0.400, a face in 100 % of the frames, copy-paste 0.700, copied pixels 0.250<",
                    "5. no face found<",
                    "7. likeness 0.950, a face in 100 % of the frames, copied pixels 0.810 (a copy)<"):
        assert caption in page
    listed = json.loads((tmp_path / "ranking.json").read_text())
    assert [[each["id"] for each in listed[name]] for name in ("not_measured", "failed")] == [["j"], ["e"]]
    assert "Copies of the photo come last" in page and "Several networks" not in page
    assert "&lt;b&gt;a man&lt;/b&gt;" in page


def test_each_embedder_has_a_ranking_of_its_own(tmp_path):
    """Records of machines, or of nights, with different files; CLIP vision gives higher figures."""
    records = [record("a", "anna", 0.9, embedder="CLIP vision"), record("b", "anna", 0.6),
               record("c", "anna", 0.7, embedder="CLIP vision"), record("d", "anna", 0.8)]
    assert ids(ranked(records)) == {"anna": {"CLIP vision": ["a", "c"], "arcface": ["d", "b"]}}
    page = write_ranking(tmp_path, records).read_text()
    shown = ("Several networks", "compared by CLIP vision", "a.mp4", "1. likeness 0.900", "c.mp4", "2. likeness 0.700",
             "compared by arcface", "d.mp4", "1. likeness 0.800", "b.mp4", "2. likeness 0.600")
    places = [page.index(words) for words in shown]
    assert places == sorted(places)


def ids(people):
    """Person -> embedder -> ids."""
    return {person: {embedder: [each["id"] for each in renders] for embedder, renders in embedders.items()}
            for person, embedders in people.items()}


def test_two_batches_do_not_share_a_folder(tmp_path):
    with (Records(tmp_path / "out").locked(), pytest.raises(UserError, match="another batch works in"),
          Records(tmp_path / "out").locked()):
        pass
    with Records(tmp_path / "out").locked():
        pass


def without(graph, *classes):
    return {key: node for key, node in graph.items() if node["class_type"] not in classes}


def test_what_cannot_work_is_said_before_any_work(people, base, tmp_path):
    graph, file = json.loads(WORKFLOW.read_text()), tmp_path / "workflow.json"
    for content, words in (("no json", "cannot be read as a workflow"), ({"nodes": []}, "not in ComfyUI's API format"),
                           (without(graph, "LoadImage", "SaveVideo"), "no Load Image and no Save Video"),
                           (without(graph, "CLIPTextEncode"), "no sampler with a positive prompt")):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(UserError, match=words):
            read_workflow(file)
    with pytest.raises(UserError, match="nobody knows whose likeness counts"):
        read_workflow(API / "two_people.json")
    with pytest.raises(UserError, match="loads 3 pictures and anna has 2: make a folder anna with 3"):
        jobs(people, base, API / "several_photos.json")
    (base / "input" / "video.mp4").unlink()
    with pytest.raises(UserError, match=r"the video video\.mp4, which is not in"):
        jobs(people, base, API / "face_swap.json")
    PIL.Image.new("RGB", (8, 8)).save(people / "ben.png")
    with pytest.raises(UserError, match="ben more than once"):
        read_people(people)
    with pytest.raises(UserError, match="holds no picture"):
        read_people(base)
    with pytest.raises(UserError, match="there is no folder"):
        read_people(tmp_path / "nowhere")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match="has no prompt"):
        read_prompts(tmp_path / "empty.txt")


ANY_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))
MEASURED = {"embedder": "arcface", "summary": {"similarity": {"mean": 0.5, "coverage": 1.0},
                                               "copied_pixels": {"mean": 0.1}, "copy_paste": {"mean": 0.1}}}
KEPT = {"id": "a", "workflow": "w", "person": "anna", "prompt": "p", "seed": 0, "files": ["a.mp4"], "seconds": 1.0,
        "worker": "w", "tries": 1}


@st.composite
def changed(draw, good):
    """Other JSON in one place of what is good, or that place is not there."""
    new = copy.deepcopy(good)
    here, key = new, draw(st.sampled_from(sorted(new)))
    while isinstance(here[key], dict) and here[key] and draw(st.booleans()):
        here = here[key]
        key = draw(st.sampled_from(sorted(here)))
    if draw(st.booleans()):
        del here[key]
    else:
        here[key] = draw(ANY_JSON)
    return new


@given(st.one_of(changed({**KEPT, "report": MEASURED}), changed({**KEPT, "not_measured": "no face"}),
                 changed({**KEPT, "error": "out of memory"}), ANY_JSON))
@examples("records of a batch that lie", 150, 5000)
def test_records_that_lie(says):
    """They count as none, or can be ranked."""
    with tempfile.TemporaryDirectory() as folder:
        records, job = Records(Path(folder)), Job("a", "w", "anna", "p", 0, {}, {})
        (records.folder / "a.json").write_text(json.dumps(says))
        cost([job, dataclasses.replace(job, id="b")], records)
        batch = Batch([job], records, lambda line: None)
        while taken := batch.take():
            batch.failed(taken, PromptFailed("out of memory"))
        write_ranking(records.folder, records.of([job]))


@given(changed(MEASURED) | ANY_JSON, st.booleans())
@examples("reports from a server that lie", 150, 5000)
def test_reports_that_lie(says, as_text):
    """A render is kept without them, or they can be ranked."""
    try:
        report = reported({RECORD: {"text": [json.dumps(says) if as_text else says]}})
    except PromptFailed as failure:
        assert failure.node == RECORD and "another shape" in str(failure)
    else:
        assert ids(ranked([{**KEPT, "report": report}])) == {"anna": {report["embedder"]: ["a"]}}


@given(changed({"9": {"images": [{"filename": "a.mp4", "subfolder": "", "type": "output"}]}, "1": {"text": ["x"]}}))
@examples("outputs of a server that lie", 100, 2500)
def test_outputs_that_lie(outputs):
    graph = {"9": {"class_type": "SaveVideo"}, "1": {"class_type": "PreviewAny"}}
    try:
        found = saved(outputs, graph)
        assert found and all(set(map(type, each.values())) == {str} for each in found)
    except PromptFailed as failure:
        assert re.search("did not say what it wrote|no node that saves was run", str(failure))


def test_a_render_of_nothing_has_failed():
    """A switch left Save Video out. The outputs of nodes that ComfyUI put in place of another are not what is saved."""
    graph = {"9": {"class_type": "SaveVideo"}, "1": {"class_type": "PreviewAny"}}
    item = {"filename": "a.mp4", "subfolder": "", "type": "output"}
    assert saved({"1.0.0.7": {"images": [item | {"filename": "b"}]}, "9": {"images": [item]}}, graph) == [item]
    for outputs in ({"1": {"text": ["x"]}}, {"9": {"images": []}}, {}):
        with pytest.raises(PromptFailed, match="no node that saves was run"):
            saved(outputs, graph)


@given(st.lists(changed({"path": "x", "size": 1, "changed": 1, "sha256": "0" * 64}) | ANY_JSON, max_size=3))
@examples("hashes of a batch that lie", 80, 2500)
def test_hashes_that_lie(lines):
    with tempfile.TemporaryDirectory() as folder:
        weights, known = Path(folder) / "a.safetensors", Path(folder) / "models.jsonl"
        weights.write_bytes(b"weights")
        known.write_text("\n".join(map(json.dumps, lines)))
        assert model_hashes([weights.name], [weights.parent], known) == {
            weights.name: hashlib.sha256(b"weights").hexdigest()}


@pytest.mark.parametrize("link", [["nowhere", 0], [{}, 0], [[], 0], ["1"], [], ["1", "0"], [None, 0]])
@pytest.mark.parametrize("node, name, words", [
    ("VAEDecode", "samples", r"linked to no node \(the first is 'samples of node "),
    ("StandInSampler", "positive", "has no sampler with a positive prompt"),
    ("SaveVideo", "video", "has no Save Video or Save Image of frames")])
def test_links_to_nowhere(tmp_path, link, node, name, words):
    graph, file = json.loads(WORKFLOW.read_text()), tmp_path / "workflow.json"
    graph[node_id(graph, node)]["inputs"][name] = link
    file.write_text(json.dumps(graph))
    with pytest.raises(UserError, match=words):
        read_workflow(file)


@pytest.mark.parametrize("workflow, node, name, words", [
    ("concat_id_text_to_video", "IdentityReport", "images", r"linked to no node \(the first is 'images of node "),
    ("concat_id_text_to_video", "IdentityReport", "reference_image", "linked to no node .*'reference_image of node "),
    ("face_swap", "LoadVideo", "file", "has a Load Video without the name of a file")])
def test_inputs_that_a_batch_needs(tmp_path, workflow, node, name, words):
    file = tmp_path / "workflow.json"
    for value in (None, {}, 5):
        graph = json.loads((API / f"{workflow}.json").read_text())
        graph[node_id(graph, node)]["inputs"][name] = value
        if value is None:
            del graph[node_id(graph, node)]["inputs"][name]
        file.write_text(json.dumps(graph))
        with pytest.raises(UserError, match=words):
            read_workflow(file)


@given(st.sampled_from(FIT).flatmap(lambda file: changed(json.loads(file.read_text()))).flatmap(changed) | ANY_JSON)
@examples("workflows of a batch that are changed", 80, 5000)
def test_workflows_that_are_changed(says):
    """They are refused, or a batch can fill them in every way it does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "workflow.json"
        file.write_text(json.dumps(says))
        try:
            graph = read_workflow(file)
        except UserError:
            return
    videos = dict.fromkeys(videos_named(graph), "a.mp4")
    photos = [f"{number}.png" for number in range(pictures_needed(graph))]
    made = filled(graph, photos, videos, "words of mine", 7)
    assert unmeasured(made).keys() <= made.keys() and RECORD in photos_measured(made)
    if len(photos) == 1:
        assert not of_class(filled(of_kept_person(graph, "anna.safetensors"), [], videos, "w", 7), "LoadImage")


def test_a_prompt_that_is_no_part_of_what_is_saved(tmp_path):
    graph, file = json.loads(WORKFLOW.read_text()), tmp_path / "workflow.json"
    graph[node_id(graph, "VAEDecode")]["inputs"]["samples"] = [node_id(graph, "LoadImage"), 0]
    file.write_text(json.dumps(graph))
    with pytest.raises(UserError, match="a positive prompt and a seed that is no part of what it saves"):
        read_workflow(file)


def test_videos_without_frames(tmp_path):
    """Two nodes that hand a video round."""
    graph, file = json.loads(WORKFLOW.read_text()), tmp_path / "workflow.json"
    graph["round"] = {"class_type": "VideoSlice", "inputs": {"video": ["again", 0]}}
    graph["again"] = {"class_type": "VideoSlice", "inputs": {"video": ["round", 0]}}
    graph[node_id(graph, "SaveVideo")]["inputs"]["video"] = ["round", 0]
    file.write_text(json.dumps(graph))
    with pytest.raises(UserError, match="no Save Video or Save Image of frames"):
        read_workflow(file)
