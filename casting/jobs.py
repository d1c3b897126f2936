"""Jobs: each a finished prompt for ComfyUI, known by the hash of all that it depends on."""
from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import pydantic

from standin_core.errors import UserError
from standin_core.files import read_lines, sha256_of, write_lines
from support.comfyui_server import PromptFailed

from .people import Person
from .workflow import filled, of_kept_person, photos_measured, pictures_needed, videos_named

MODELS = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One render.

    id: 24 hex digits of the SHA-256 of the graph and of the files that it names.
    workflow: the same of the workflow and its models, before person, words and seed are in it.
    person, words, seed: what it is of.
    graph: the prompt in ComfyUI's API format.
    files: name in the graph -> where the file lies on the driver's machine, photos and videos.
    """

    id: str
    workflow: str
    person: str
    words: str
    seed: int
    graph: dict
    files: dict[str, Path]

    @property
    def title(self) -> str:
        return f"{self.person}, seed {self.seed}: {self.words}"

    def contents(self) -> dict[str, bytes]:
        """Raises PromptFailed where a file is no longer what it was when the id was made."""
        return _contents(self.files)

    def of_photos(self) -> tuple[dict, dict[str, bytes]]:
        """A prompt that measures the person's photos as if they were the video, and the contents that it needs.

        Raises PromptFailed as ``contents`` does.
        """
        graph = photos_measured(self.graph)
        return graph, _contents(_named(self.files, graph))


class _Hashed(pydantic.BaseModel):
    path: str
    size: int
    changed: int
    sha256: str


def plan(graph: dict, people: list[Person], prompts: list[str], seeds: list[int], inputs: Path,
         hashes: dict[str, str]) -> list[Job]:
    """All jobs, in an order in which a server keeps what it has loaded from one to the next.

    inputs: the folder in which the videos of the workflow lie.
    hashes: of the models, by their names in the graph.

    Raises UserError for a person with fewer photos than the workflow loads, for a kept person where it loads several,
    and for a video that is not there.
    """
    videos = {name: inputs / name for name in videos_named(graph)}
    for name, path in videos.items():
        inside = path.resolve().is_relative_to(inputs.resolve())  # as ComfyUI's own loader looks at it
        if not (inside and path.is_file()):
            raise UserError(f"the workflow loads the video {name}, which is not in {inputs}: put it there.")
    needed = pictures_needed(graph)
    for person in people:
        if person.kept is not None and needed > 1:
            raise UserError(f"the workflow loads {needed} pictures, but {person.kept.name} is a person that Save "
                            "Person kept: take a workflow that loads one picture, or give photos of that person.")
        if person.kept is None and len(person.photos) < needed:
            raise UserError(f"the workflow loads {needed} pictures and {person.name} has {len(person.photos)}: make a "
                            f"folder {person.name} with {needed} pictures, named in the order of the workflow.")
    video_names = {name: _uploaded(path) for name, path in videos.items()}
    jobs, workflow = [], _id(graph, hashes)
    for person in people:
        photos = {_uploaded(photo): photo for photo in person.photos}  # the same photo twice counts once
        names = [_uploaded(photo) for photo in person.photos[:needed]]
        names += [name for name in photos if name not in names]
        files = {**photos, **{video_names[name]: path for name, path in videos.items()}}
        of_person = graph
        if person.kept is not None:
            files[_uploaded(person.kept)] = person.kept
            of_person = of_kept_person(graph, _uploaded(person.kept))
        for words, seed in itertools.product(prompts, seeds):
            prompt = filled(of_person, names, video_names, words, seed)
            jobs.append(Job(_id(prompt, hashes), workflow, person.name, words, seed, prompt, _named(files, prompt)))
    return list({job.id: job for job in jobs}.values())


def model_hashes(names: list[str], folders: list[Path], known: Path) -> dict[str, str]:
    """File name in the graph -> SHA-256, for each file of weights that lies on this machine.

    Where several folders have a file of this name, the node alone knows which it takes: the SHA-256 of each, joined.

    names: of files, as ``models_named`` gives them.
    folders: of models.
    known: JSON lines with the hashes of earlier calls, which take seconds each, by path, size and time of change.
    """
    kept = {}
    for line in read_lines(known):
        with contextlib.suppress(pydantic.ValidationError):  # anybody may have written there
            each = _Hashed.model_validate(line)
            kept[each.path, each.size, each.changed] = each.sha256
    found: dict[str, str] = {}
    for name in names:
        keys = [(str(path), path.stat().st_size, path.stat().st_mtime_ns)
                for path in (folder / name for folder in folders) if path.is_file()]
        for key in keys:
            kept[key] = kept.get(key) or sha256_of(Path(key[0]))
        if keys:
            found[name] = "+".join(sorted({kept[key] for key in keys}))
    write_lines(known, ({"path": path, "size": size, "changed": changed, "sha256": sha256}
                        for (path, size, changed), sha256 in kept.items()))
    return found


def models_named(graph: dict) -> list[str]:
    """The files of weights that the workflow loads, by their names in ComfyUI's model folders."""
    return sorted({value for node in graph.values() for value in node["inputs"].values()
                   if isinstance(value, str) and value.endswith(MODELS)})


def _named(files: dict[str, Path], graph: dict) -> dict[str, Path]:
    """Those of the files that the graph names."""
    named = json.dumps(graph)
    return {name: path for name, path in files.items() if name in named}


def _contents(files: dict[str, Path]) -> dict[str, bytes]:
    found = {}
    for name, path in files.items():
        try:
            found[name] = path.read_bytes()
        except OSError as error:
            raise PromptFailed(f"{path} can no longer be read ({error.strerror}): put it back, and call the same "
                               "command again") from error
        if not name.startswith(hashlib.sha256(found[name]).hexdigest()):
            raise PromptFailed(f"{path} was changed after the batch began: call the same command again, for which it "
                               "is another render")
    return found


def _uploaded(file: Path) -> str:
    """The name of a file on a server: its content, so that no server confuses two of one name."""
    return sha256_of(file) + file.suffix.lower()


def _id(graph: dict, hashes: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([graph, hashes], sort_keys=True).encode()).hexdigest()[:24]
