"""From real video files to shards: what is kept, what is dropped and why, and going on after a stop."""
import dataclasses
import json
import math
import os
import shutil
from fractions import Fraction

import av
import comfy.clip_vision
import comfy.latent_formats
import comfy.sd
import cv2
import numpy as np
import pytest
import skimage.data
import torch

from small_world import tiny_encoders  # lets ComfyUI load the tiny encoders  # noqa: F401
from small_world.tiny_models import clip_vision_weights, text_encoder_weights, vae_weights
from standin_core.errors import UserError
from standin_core.evaluation import CompareSettings, load_embedder
from standin_core.face import FaceSettings
from standin_core.files import read_lines
from standin_core.train.data.dataset import make_dataset
from standin_core.train.data.dropped import Cause, Drop, Unusable
from standin_core.train.data.encoders import Encoders, data_hash, encode_clips, with_noise
from standin_core.train.data.manifest import Clip, add_to_manifest, manifest_clips, summary
from standin_core.train.data.pairs import PairSettings, embed, pair
from standin_core.train.data.photos import read_photo, write_photo
from standin_core.train.data.prepare import prepare
from standin_core.train.data.recipe import (
    AS_CROPPED,
    INSIDE,
    PLAIN,
    TO_CLIP,
    DataSettings,
    PhotoSettings,
    kept_settings,
)
from standin_core.train.data.shards import CLIPS_IN_SHARD, CachedExamples, Example, write_shards
from standin_core.train.data.sources import Source, sources_in, sources_of
from standin_core.train.data.video import clips, decoded, pixels
from support import moving_photo

pytestmark = pytest.mark.usefixtures("models_dir")

# 16 fps as moving_photo writes it: 40 frames are 62 or 63 at 25 fps
SETTINGS = DataSettings(width=96, height=64, frames=17, references=2,
                        face=FaceSettings(detector="cascade", parser="none", size=64))


def counted(path, length, fps, size=(64, 48), rotation=0):
    """A video whose frame i has the brightness 2 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height = size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1"}
        for i in range(length):
            frame = np.full((size[1], size[0], 3), 2 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A face in motion; the same far longer than is read; a face that comes late; none; too short; damaged; no caption;
    sound alone."""
    folder = tmp_path_factory.mktemp("videos")
    face = moving_photo.video(40, 160, 120)
    coffee = np.repeat(cv2.resize(skimage.data.coffee(), (160, 120))[None], 40, axis=0)
    for name, frames in (("face", face), ("more/face", face[::-1]), ("late", np.concatenate((coffee[:12], face[:28]))),
                         ("nobody", coffee), ("short", face[:8]), ("silent", face)):
        (folder / name).parent.mkdir(exist_ok=True)
        moving_photo.write_video(folder / f"{name}.mp4", frames)
        if name != "silent":
            (folder / f"{name}.txt").write_text(f"a person, {name}\n", encoding="utf-8")
    whole = (folder / "face.mp4").read_bytes()
    (folder / "damaged.mp4").write_bytes(whole[:len(whole) // 2])
    (folder / "damaged.txt").write_text("a person", encoding="utf-8")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (folder / "sound.txt").write_text("a person", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def prepared_once(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return folder, list(prepare(sources_in(videos), folder, SETTINGS))


@pytest.fixture(scope="module")
def encoders():
    return Encoders(comfy.sd.VAE(sd=vae_weights()), comfy.sd.load_text_encoder_state_dicts(
        [text_encoder_weights()], clip_type=comfy.sd.CLIPType.WAN))


@pytest.mark.parametrize("fps, wanted, expected", [
    (50, 25, range(0, 100, 2)), (25, 25, range(50)), (12.5, 25, [i // 2 for i in range(100)])])
def test_frames_are_resampled_by_their_time(tmp_path, fps, wanted, expected):
    counted(tmp_path / "v.mp4", 100 if fps == 50 else 50, fps)
    found = [round(float(pixels(frame).mean()) / 2) for frame in decoded(tmp_path / "v.mp4", wanted)]
    assert len(found) == pytest.approx(len(expected), abs=1)
    assert np.abs(np.array(found[:len(expected)]) - np.array(expected)[:len(found)]).max() <= 1


def test_frames_are_filled_and_cropped(tmp_path):
    """A mark in the middle stays there and is not squeezed, whatever the format."""
    picture = np.zeros((120, 320, 3), np.uint8)
    cv2.circle(picture, (160, 60), 24, (255, 255, 255), -1)
    moving_photo.write_video(tmp_path / "v.mp4", np.repeat(picture[None], 4, axis=0))
    for size in ((64, 64), (160, 48)):
        frame = pixels(next(decoded(tmp_path / "v.mp4", 16, size)))
        rows, columns = np.nonzero(frame[..., 0] > 127)
        assert frame.shape == (size[1], size[0], 3)
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=1)
        assert (columns.mean(), rows.mean()) == pytest.approx(((size[0] - 1) / 2, (size[1] - 1) / 2), abs=0.6)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_phone(tmp_path, degrees):
    """A rotation in the file is applied, as ComfyUI's own reader does."""
    from comfy_api.latest import InputImpl

    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:16, :24] = 255
    moving_photo.write_video(tmp_path / "plain.mp4", np.repeat(picture[None], 3, axis=0))
    turned = tmp_path / "turned.mp4"
    _with_rotation(tmp_path / "plain.mp4", turned, degrees)
    (expected, *_) = InputImpl.VideoFromFile(str(turned)).get_components().images
    found = pixels(next(decoded(turned, 16)))
    assert found.shape == tuple(expected.shape)
    assert np.abs(found - 255 * expected.numpy()).max() < 12


def _with_rotation(source, target, degrees):
    """The display matrix of the track header, which is where a phone writes it."""
    data = bytearray(source.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version and flags, times, ids, layer, volume
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = (cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    data[start:start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    target.write_bytes(data)


def test_clips_are_read_in_one_pass(tmp_path):
    counted(tmp_path / "v.mp4", 60, 25)
    found = list(clips(tmp_path / "v.mp4", 25, (32, 32), [5, 20, 55], 9))
    assert [start for start, _ in found] == [5, 20]  # the third is not whole
    for start, frames in found:
        assert frames.shape == (9, 32, 32, 3)
        assert np.abs(frames.mean(axis=(1, 2, 3)) / 2 - np.arange(start, start + 9)).max() <= 1


def test_what_is_kept_and_what_is_dropped(prepared_once):
    folder, lines = prepared_once
    by_video = {}
    for clip in manifest_clips(folder):
        by_video.setdefault(clip.video, []).append(clip.start)
    # 62 or 63 frames: three clips of 17 and a rest; of the one in which the face comes late, the first has none
    assert by_video == {"face.mp4": [0, 17, 34], "more/face.mp4": [0, 17, 34], "late.mp4": [17, 34]}
    dropped = {line["video"]: line["dropped"] for line in read_lines(folder / "manifest.jsonl")}
    assert dropped["nobody.mp4"][0] == ["frames 0 to 16", "no face in the clip", ""]
    assert dropped["late.mp4"][0] == ["frames 0 to 16", "no face in the clip", ""]
    assert dropped["face.mp4"][-1][0].startswith("frames 51 to 6")
    assert dropped["face.mp4"][-1][1:] == ["too short", "the rest, less than a clip"]
    (short,), (damaged,) = dropped["short.mp4"], dropped["damaged.mp4"]
    assert short[:2] == ["whole video", "too short"] and short[2].startswith("1")
    assert damaged[:2] == ["whole video", "cannot be read"] and damaged[2].startswith("after ")
    assert dropped["sound.mp4"] == [["whole video", "has no video in it", "only sound or pictures"]]
    assert dropped["silent.mp4"] == [["whole video", "no caption", "there is no captioner to ask"]]
    assert len(lines) == 8 and any(line.startswith("face.mp4: 3 clips; frames 51 to 6") for line in lines)
    assert "sound.mp4: 0 clips; whole video: has no video in it: only sound or pictures" in lines
    words = summary(folder)
    assert words.startswith("8 videos, 8 clips, ") and "dropped 4: no face in the clip" in words


def test_reference_photos_are_faces_from_outside_the_clip(prepared_once):
    folder, _ = prepared_once
    for clip in manifest_clips(folder):
        assert clip.caption == f"a person, {clip.video.removesuffix('.mp4')}" and 1 <= len(clip.references) <= 2
        for file in clip.references:
            number = int(file.rpartition("_")[2].removesuffix(".png"))
            assert not clip.start <= number < clip.start + SETTINGS.frames
            photo = read_photo(folder / file)
            assert photo.shape == (64, 64, 3)
            # skin: the face fills the middle of its crop
            assert (photo[24:40, 24:40].mean(axis=(0, 1)) @ (1, 0, -1)) > 20


def test_a_video_that_ends_within_its_description(videos, tmp_path):
    whole, cut = (videos / "face.mp4").read_bytes(), tmp_path / "cut.mp4"
    places = range(whole.index(b"moov"), whole.index(b"stsd") + 64, 8)
    assert len(places) > 20
    for place in places:
        cut.write_bytes(whole[:place])
        with pytest.raises(Unusable):
            next(decoded(cut, 16))


def test_it_goes_on_behind_the_last_video(videos, prepared_once, tmp_path):
    """A file that was cut in the middle of a line, as by a crash, leaves the same data in the end."""
    folder, _ = prepared_once
    again = tmp_path / "data"
    shutil.copytree(folder, again)
    manifest = again / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:4]) + lines[4][:30])
    said, *done = prepare(sources_in(videos), again, SETTINGS)
    assert said.startswith("damaged lines of the manifest that were dropped: 1") and len(done) == 4
    assert manifest_clips(again) == manifest_clips(folder)
    assert list(prepare(sources_in(videos), again, SETTINGS)) == []


def test_a_file_that_changed_is_looked_at_again(videos, prepared_once, tmp_path):
    folder, _ = prepared_once
    shutil.copytree(folder, tmp_path / "data")
    shutil.copytree(videos, tmp_path / "videos")
    shutil.copy(videos / "face.mp4", tmp_path / "videos" / "damaged.mp4")
    (line,) = prepare(sources_in(tmp_path / "videos"), tmp_path / "data", SETTINGS)
    assert line.startswith("damaged.mp4: 3 clips")
    assert summary(tmp_path / "data").startswith("8 videos, 11 clips, ")


def test_another_caption_counts(videos, tmp_path):
    """One that was missing, and one that was edited: both videos are looked at again, and no other."""
    shutil.copytree(videos, tmp_path / "videos")
    for name in ("late.mp4", "nobody.mp4", "short.mp4", "damaged.mp4", "sound.mp4", "more"):
        path = tmp_path / "videos" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    first = list(prepare(sources_in(tmp_path / "videos"), tmp_path / "data", SETTINGS))
    assert [line.partition(":")[0] for line in first] == ["face.mp4", "silent.mp4"]
    (tmp_path / "videos" / "silent.txt").write_text("a person nods", encoding="utf-8")
    (line,) = prepare(sources_in(tmp_path / "videos"), tmp_path / "data", SETTINGS)
    assert line.startswith("silent.mp4: 3 clips")
    assert {clip.caption for clip in manifest_clips(tmp_path / "data")} == {"a person, face", "a person nods"}


def test_a_caption_that_is_not_utf8(videos, tmp_path):
    shutil.copy(videos / "face.mp4", tmp_path)
    (tmp_path / "face.txt").write_bytes("ein Mädchen".encode("latin-1"))
    with pytest.raises(UserError, match=r"face.txt is not UTF-8"):
        sources_in(tmp_path)


def test_a_detector_that_cannot_run_is_no_fault_of_the_videos(videos, tmp_path):
    """Nothing is noted of any video: once the file is there, they are looked at."""
    settings = dataclasses.replace(SETTINGS, face=FaceSettings(detector="retinaface", parser="none", size=64))
    with pytest.raises(UserError, match="retinaface cannot run"):
        list(prepare(sources_in(videos), tmp_path, settings))
    assert read_lines(tmp_path / "manifest.jsonl") == []


def test_a_face_outside_of_the_picture_does_not_count(tmp_path):
    """In a portrait video cut to a landscape clip, a head at the top is not in the clip."""
    face = moving_photo.video(24, 160, 120)
    below = np.repeat(cv2.resize(skimage.data.coffee(), (160, 360))[None], 24, axis=0)
    for name, frames in (("above", np.concatenate((face, below), axis=1)),
                         ("middle", np.concatenate((below[:, :180], face, below[:, :180]), axis=1))):
        moving_photo.write_video(tmp_path / f"{name}.mp4", frames)
        (tmp_path / f"{name}.txt").write_text("a person", encoding="utf-8")
    list(prepare(sources_in(tmp_path), tmp_path / "data", SETTINGS))
    assert {clip.video for clip in manifest_clips(tmp_path / "data")} == {"middle.mp4"}


def test_photos_of_another_file_have_other_names(videos, tmp_path):
    """A video that was replaced by another of its name: nothing old is taken for it."""
    for name in ("face", "late"):
        shutil.copy(videos / f"{name}.mp4", tmp_path / "person.mp4")
        (tmp_path / "person.txt").write_text("a person", encoding="utf-8")
        list(prepare(sources_in(tmp_path), tmp_path / "data", SETTINGS))
    files = {file for clip in manifest_clips(tmp_path / "data") for file in clip.references}
    lines = read_lines(tmp_path / "data" / "manifest.jsonl")
    assert len(lines) == 2 and files.isdisjoint(file for clip in lines[0]["clips"] for file in clip["references"])


def test_videos_of_comfyui(videos):
    """Core's VIDEO: a file once however often it comes; nothing that is no file, and nothing trimmed."""
    from comfy_api.latest import InputImpl, Types

    face, late = (InputImpl.VideoFromFile(str(videos / f"{name}.mp4")) for name in ("face", "late"))
    found = sources_of([face, late, face], ["a", "b", "a"])
    assert [(source.name, source.caption) for source in found] == [("face.mp4", "a"), ("late.mp4", "b")]
    made = InputImpl.VideoFromComponents(Types.VideoComponents(images=torch.zeros(2, 8, 8, 3), frame_rate=Fraction(8)))
    other = InputImpl.VideoFromFile(str(videos / "more" / "face.mp4"))
    for given, captions, words in (([made], ["a"], "one video is not a file"),
                                   ([face], ["a", "b"], "each of the 1 videos must have a caption, but 2 captions"),
                                   ([face.as_trimmed(0.5, 1.0)], ["a"], "one video is trimmed"),
                                   ([face, other], ["a", "b"], r"two videos are called face\.mp4")):
        with pytest.raises(UserError, match=words):
            sources_of(given, captions)


def test_other_settings_are_refused(videos, prepared_once):
    folder, _ = prepared_once
    with pytest.raises(UserError, match=r"made with other settings \(fps, height\)"):
        list(prepare(sources_in(videos), folder, dataclasses.replace(SETTINGS, fps=16.0, height=128)))


@pytest.mark.parametrize("change, words", [
    ({"frames": 16}, "frames must be .*, but is 16"), ({"frames": 1}, "frames must be .*, but is 1"),
    ({"width": 100}, "width must be a multiple of 16, .*, but is 100"),
    ({"fps": 0.0}, "fps must be a finite number of more than 0, but is 0"),
    ({"fps": math.nan}, "fps must be .*, but is nan"), ({"frames": 81.0}, "frames must be a whole number")])
def test_settings_that_make_no_sense(change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(SETTINGS, **change)


def test_a_captioner_is_asked_where_there_is_no_caption(videos, tmp_path):
    seen = []

    def captioner(frames):
        seen.append(frames.shape)
        return f" clip {len(seen)} " if len(seen) != 2 else ""

    source = Source(videos / "silent.mp4", "silent.mp4", None)
    list(prepare([source], tmp_path, SETTINGS, captioner))
    assert seen == [(8, 120, 160, 3)] * 3 and len(read_lines(tmp_path / "manifest.jsonl")) == 1
    assert [clip.caption for clip in manifest_clips(tmp_path)] == ["clip 1", "clip 3"]
    assert "dropped 1: no caption" in summary(tmp_path)


def test_a_folder_without_videos(tmp_path):
    with pytest.raises(UserError, match="there is no video in"):
        sources_in(tmp_path)


def test_shards_hold_what_the_encoders_gave(videos, prepared_once, encoders, tmp_path):
    """Against the encoders called by hand; fp16 keeps 11 bits."""
    folder, _ = prepared_once
    some = manifest_clips(folder)[:4]
    paths = {source.name: source.path for source in sources_in(videos)}
    lines = list(encode_clips(tmp_path, some, paths, folder, SETTINGS, PLAIN, encoders))
    examples = CachedExamples(tmp_path)
    assert lines == ["shard_00000.safetensors: 4 clips"] and examples.names == sorted(clip.name for clip in some)
    for name, example in zip(examples.names, examples):
        clip = next(each for each in some if each.name == name)
        (_, frames), = clips(videos / clip.video, 25, (96, 64), [clip.start], 17)
        process_in = comfy.latent_formats.Wan21().process_in
        expected = process_in(encoders.vae.encode(torch.from_numpy(frames).float() / 255))[0]
        assert example.video.shape == (16, 5, 8, 12)
        torch.testing.assert_close(example.video, expected, rtol=1e-3, atol=1e-3)
        photo = torch.from_numpy(read_photo(folder / clip.references[0]))[None].float() / 255
        torch.testing.assert_close(example.photos[:1], process_in(encoders.vae.encode(photo)), rtol=1e-3, atol=1e-3)
        tokens = encoders.clip.tokenize(clip.caption)
        context = encoders.clip.encode_from_tokens_scheduled(tokens)[0][0][0]
        torch.testing.assert_close(example.context, context.float(), rtol=1e-3, atol=1e-3)


def test_a_cache_goes_on_with_the_next_shard(tmp_path):
    """Whole shards are not made again, unfinished ones are; examples that failed are left out and told."""
    names = [f"clip {i}" for i in range(40)]
    asked = []

    def encode(missing):
        for name in names:
            if name in missing:
                asked.append(name)
                number = float(name.split()[1])
                yield name, Drop(Cause.NOW_SHORTER) if number == 17 else Example(
                    torch.full((16, 1, 2, 2), number), torch.zeros(1, 16, 1, 2, 2), torch.ones(3, 4))

    whole = write_shards(tmp_path, names, encode)
    assert next(whole) == "shard_00000.safetensors: 16 clips"
    whole.close()
    (tmp_path / "shard_00001.safetensors.part").mkdir()
    (tmp_path / "shard_00001.safetensors.part" / "part").write_bytes(b"half")
    asked.clear()
    assert list(write_shards(tmp_path, names, encode)) == [
        "shard_00001.safetensors: 15 clips; clip 17 dropped: the video is shorter than it was",
        "shard_00002.safetensors: 8 clips"]
    assert asked == names[16:]
    examples = CachedExamples(tmp_path)
    assert len(examples) == 39
    assert {name: float(example.video[0, 0, 0, 0]) for name, example in zip(examples.names, examples)} == {
        name: float(name.split()[1]) for name in names if name != "clip 17"}


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(UserError, match="nothing to train on"):
        CachedExamples(tmp_path)


def test_a_dataset_in_one_call(videos, encoders, tmp_path):
    """Twice: the second finds all there. Without a video that was there before, what it had is left out."""
    (tmp_path / "videos").mkdir()
    for name in ("face.mp4", "face.txt", "late.mp4", "late.txt"):
        shutil.copy(videos / name, tmp_path / "videos")
    said, folder = [], tmp_path / "data"
    shards = make_dataset(sources_in(tmp_path / "videos"), folder, SETTINGS, encoders, said.append)
    assert len(CachedExamples(shards)) == 5 and shards.parent == folder
    said.clear()
    assert make_dataset(sources_in(tmp_path / "videos"), folder, SETTINGS, encoders, said.append) == shards
    assert said == [summary(folder)]
    (tmp_path / "videos" / "late.mp4").unlink()
    fewer = make_dataset(sources_in(tmp_path / "videos"), folder, SETTINGS, encoders, said.append)
    assert fewer != shards and len(CachedExamples(fewer)) == 3


def test_progress_is_told(tmp_path, bars):
    """The bars count the frames that are looked at, the photos that are compared, and the clips that are encoded."""
    counted(tmp_path / "a.mp4", 20, 25)
    source = Source(tmp_path / "a.mp4", "a.mp4", "a person")
    list(prepare([source], tmp_path, dataclasses.replace(SETTINGS, face=FaceSettings(detector="none", parser="none"))))
    assert bars[0] == (0, 1) and bars[-1] == (1, 1)
    bars.clear()
    files = [f"{i}.png" for i in range(3)]
    for file in files:
        write_photo(tmp_path / file, np.zeros((32, 32, 3), np.uint8))
    clip_vision = comfy.clip_vision.load_clipvision_from_sd(clip_vision_weights())
    embed([Clip("a.mp4", 0, "a person", tuple(files))], tmp_path, load_embedder(CompareSettings("clip vision"),
                                                                                clip_vision))
    assert bars[0] == (1, 3) and bars[-1] == (3, 3)
    bars.clear()
    example = Example(*(torch.ones(1, 16, 1, 2, 2),) * 2, torch.ones(3, 4))
    list(write_shards(tmp_path, files, lambda missing: ((name, example) for name in files)))
    assert bars[0] == (1, 3) and bars[-1] == (3, 3)


def test_outside_of_inference_mode(videos, encoders, tmp_path):
    """As on the command line, where nothing else keeps the encoders from building a graph."""
    clip_vision = comfy.clip_vision.load_clipvision_from_sd(clip_vision_weights())
    sources = [source for source in sources_in(videos) if source.name in ("face.mp4", "more/face.mp4")]
    with torch.inference_mode(False), torch.enable_grad():
        shards = make_dataset(sources, tmp_path, SETTINGS, encoders, lambda line: None,
                              PairSettings(-1.0, 1.0, "clip vision"), clip_vision)
        example = CachedExamples(shards)[0]
    assert len(CachedExamples(shards)) == 6
    assert not example.video.requires_grad and not example.video.is_inference()


def test_what_failed_is_tried_again(tmp_path):
    """A drive that dropped out leaves a shard that lacks examples; the next run makes it anew."""
    names, working = [f"clip {i}" for i in range(20)], False

    def encode(missing):
        for name in names:
            if name in missing:
                fails = not working and name == "clip 3"
                example = Example(*(torch.ones(1, 16, 1, 2, 2),) * 2, torch.ones(3, 4))
                yield name, Drop(Cause.UNREADABLE, "gone") if fails else example

    assert "clip 3 dropped: cannot be read: gone" in next(write_shards(tmp_path, names, encode))
    working = True
    assert list(write_shards(tmp_path, names, encode)) == ["shard_00000.safetensors: 16 clips",
                                                           "shard_00001.safetensors: 4 clips"]
    assert list(write_shards(tmp_path, names, encode)) == []
    assert len(CachedExamples(tmp_path)) == 20


def test_a_missing_photo_costs_its_clip_alone(videos, prepared_once, encoders, tmp_path):
    folder, _ = prepared_once
    some = [clip for clip in manifest_clips(folder) if clip.video == "face.mp4"]
    some[0] = dataclasses.replace(some[0], references=("references/gone.png",))
    paths = {source.name: source.path for source in sources_in(videos)}
    (line,) = encode_clips(tmp_path, some, paths, folder, SETTINGS, PLAIN, encoders)
    assert line == "shard_00000.safetensors: 2 clips; face.mp4#0 dropped: a reference photo is missing or damaged: " \
        "gone.png"


def test_the_hash_of_the_data():
    clip = Clip("a.mp4", 0, "a person", ("x.png",))
    settings = dataclasses.asdict(SETTINGS)
    base = data_hash([clip], settings, ["vae", "text"], PLAIN)
    assert base == data_hash([Clip(**dataclasses.asdict(clip))], json.loads(json.dumps(settings)), ["vae", "text"],
                             PhotoSettings())
    assert len({base, data_hash([dataclasses.replace(clip, caption="b")], settings, ["vae", "text"], PLAIN),
                data_hash([clip], {**settings, "fps": 16.0}, ["vae", "text"], PLAIN),
                data_hash([clip], settings, ["another", "text"], PLAIN),
                *(data_hash([clip], settings, ["vae", "text"], photos)
                  for photos in (PhotoSettings(TO_CLIP), PhotoSettings(noise_draws=2)))}) == 6


def test_the_hash_of_the_data_of_an_earlier_version():
    """As an earlier version computed it: its shards are read on."""
    settings = {"fps": 16.0, "width": 64, "face": {"size": 64}}
    assert data_hash([Clip("a.mp4", 0, "a person", ("x.png",))], settings, ["vae", "text"], PLAIN) == "36715477fb639cab"


def test_photos_fitted_to_the_clip(videos, prepared_once, encoders, tmp_path):
    """Each as often as wanted, every time with other noise, which is the same whenever it is drawn again."""
    folder, _ = prepared_once
    some, paths = manifest_clips(folder)[:1], {source.name: source.path for source in sources_in(videos)}
    photos = PhotoSettings(TO_CLIP, noise_draws=3)
    for name in ("one", "two"):
        list(encode_clips(tmp_path / name, some, paths, folder, SETTINGS, photos, encoders))
    (example,), (again,) = read = [CachedExamples(tmp_path / name) for name in ("one", "two")]
    assert {each.fit for each in read} == {TO_CLIP}
    count = len(some[0].references)
    assert example.photos.shape == (3 * count, 16, 1, *example.video.shape[-2:])
    assert torch.equal(example.photos, again.photos)
    assert len({float(photo.sum()) for photo in example.photos}) == 3 * count
    # a photo of 64x64 in a frame of 96x64 has black beside it
    picture = torch.zeros(1, 64, 96, 3)
    picture[:, :, 16:80] = torch.from_numpy(read_photo(folder / some[0].references[0])) / 255
    plain = comfy.latent_formats.Wan21().process_in(encoders.vae.encode(picture))[0]
    nearest = (example.photos - plain).abs().mean(dim=(1, 2, 3, 4))
    assert int(nearest.argmin()) < 3 and float(nearest[:3].max()) < 0.5 * float(plain.abs().mean())


def test_noise_on_photos():
    """Its deviation is log-normal, on pixels of which ours have half the range."""
    photos = torch.full((1, 2, 40, 50, 3), 0.5)
    found = with_noise(photos, PhotoSettings(noise_draws=200), "seed") - 0.5
    logarithms = (2 * found).std(dim=(2, 3, 4)).log()
    assert found.shape == (200, 2, 40, 50, 3)
    assert float(logarithms.mean()) == pytest.approx(-3, abs=0.08)  # three deviations of 400 draws
    assert float(logarithms.std()) == pytest.approx(0.5, abs=0.06)
    assert torch.equal(with_noise(photos, PhotoSettings(noise_draws=1), "a"),
                       with_noise(photos, PhotoSettings(noise_draws=1), "a"))


def test_two_people_from_left_to_right(encoders, tmp_path):
    """Frames that show both; a photo has the left one first, and each becomes a latent frame of its own."""
    face = moving_photo.video(24, 160, 120)
    dim = (0.6 * face).astype(np.uint8)
    for name, frames in (("both", np.concatenate((face, dim), axis=2)),
                         ("alone", np.concatenate((face, np.full_like(face, 128)), axis=2))):
        moving_photo.write_video(tmp_path / f"{name}.mp4", frames)
        (tmp_path / f"{name}.txt").write_text("two people", encoding="utf-8")
    settings = dataclasses.replace(SETTINGS, people=2, width=128)
    said, sources = [], sources_in(tmp_path)
    shards = make_dataset(sources, tmp_path / "data", settings, encoders, said.append, photos=PhotoSettings(TO_CLIP))
    made = manifest_clips(tmp_path / "data")
    assert {clip.video for clip in made} == {"both.mp4"}
    for clip in made:
        left, right = np.split(read_photo(tmp_path / "data" / clip.references[0]), 2, axis=1)
        assert left.shape == right.shape == (64, 64, 3) and right.mean() < 0.8 * left.mean()
    example = CachedExamples(shards)[0]
    assert example.photos.shape[1:] == (16, 2, *example.video.shape[-2:])
    first = next(clip for clip in made if clip.name == CachedExamples(shards).names[0])
    strip = torch.from_numpy(read_photo(tmp_path / "data" / first.references[0])).float() / 255
    for person, picture in enumerate(strip.split(64, dim=1)):
        expected = encoders.photos(torch.nn.functional.pad(picture, (0, 0, 32, 32))[None])[0]
        torch.testing.assert_close(example.photos[0, :, person:person + 1], expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="matched by a single face, but people is 2"):
        make_dataset(sources, tmp_path / "data", settings, encoders, said.append, PairSettings())
    with pytest.raises(UserError, match="only Concat-ID is trained on several people, but people is 2"):
        make_dataset(sources, tmp_path / "data", settings, encoders, said.append)


def test_photos_from_the_clip_itself(videos, tmp_path):
    """As Concat-ID's first stage takes them; a video needs no frames beyond the clip then."""
    settings = dataclasses.replace(SETTINGS, photos_from=INSIDE)
    sources = [source for source in sources_in(videos) if source.name in ("face.mp4", "short.mp4", "late.mp4")]
    list(prepare(sources, tmp_path, settings))
    made = manifest_clips(tmp_path)
    assert {clip.video for clip in made} == {"face.mp4", "late.mp4"}
    for clip in made:
        for file in clip.references:
            assert clip.start <= int(file.rpartition("_")[2].removesuffix(".png")) < clip.start + settings.frames
    dropped = {line["video"]: line["dropped"] for line in read_lines(tmp_path / "manifest.jsonl")}
    assert dropped["short.mp4"][0][1:] in [["too short", f"{count} frames at 25 fps, but a clip takes 17"]
                                           for count in (12, 13)]


def test_data_of_an_earlier_version(videos, prepared_once, tmp_path):
    """They say nothing of settings that came later, and were made with what they are by default."""
    folder, _ = prepared_once
    shutil.copytree(folder, tmp_path / "data")
    file = tmp_path / "data" / "settings.json"
    kept = json.loads(file.read_text(encoding="utf-8"))
    del kept["photos_from"], kept["face"]["feather"]
    file.write_text(json.dumps(kept), encoding="utf-8")
    assert list(prepare(sources_in(videos), tmp_path / "data", SETTINGS)) == []
    with pytest.raises(UserError, match=r"made with other settings \(photos_from\)"):
        list(prepare(sources_in(videos), tmp_path / "data", dataclasses.replace(SETTINGS, photos_from=INSIDE)))


def test_encoders_are_told_apart(encoders):
    other = text_encoder_weights()
    other = {key: value + 1 if key.endswith("layer_norm.weight") else value for key, value in other.items()}
    changed = Encoders(encoders.vae, comfy.sd.load_text_encoder_state_dicts([other],
                                                                            clip_type=comfy.sd.CLIPType.WAN))
    assert encoders.fingerprint()[0] == changed.fingerprint()[0]
    assert encoders.fingerprint()[1] != changed.fingerprint()[1]


def vector(degrees):
    return np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))])


def test_pairs_are_of_other_videos_and_within_the_window():
    """Angles between vectors: 30 degrees are a cosine of 0.87, 45 of 0.71, 60 of 0.5."""
    angles = {"a0": 0, "a1": 10, "b": 35, "c": 50, "d": 91, "e": 6, "f": 200}
    made = [Clip(f"{name[0]}.mp4", i, "", (f"{name}.png",)) for i, name in enumerate(angles)]
    vectors = {f"{name}.png": vector(angle) for name, angle in angles.items()}
    paired, alone = pair(made, vectors, PairSettings(0.7, 0.9), photos=2)
    chosen = {clip.start: [file.removesuffix(".png") for file in clip.references] for clip in paired}
    # to a0, b is at 35 degrees, c too far, e too near, a1 of the same video; the least alike come first
    assert chosen == {0: ["b"], 1: ["c"], 2: ["a0", "e"], 3: ["e", "d"], 4: ["c"], 5: ["c", "b"]}
    assert alone == ["f.mp4#6"]


def test_pairs_of_real_crops(prepared_once):
    """The same person in two videos, through ComfyUI's CLIP vision; the crops of one video alone find no partner."""
    folder, _ = prepared_once
    made = [clip for clip in manifest_clips(folder) if clip.video != "late.mp4"]
    clip_vision = comfy.clip_vision.load_clipvision_from_sd(clip_vision_weights())
    embedder = load_embedder(CompareSettings("clip vision", "whole frame"), clip_vision)
    vectors = embed(made, folder, embedder)
    assert set(vectors) == {file for clip in made for file in clip.references}
    paired, alone = pair(made, vectors, PairSettings(-1.0, 1.0), photos=3)
    assert not alone and all(clip.references for clip in paired)
    assert pair(made[:3], vectors, PairSettings(-1.0, 1.0), photos=3) == ([], [clip.name for clip in made[:3]])


def test_the_manifest_of_a_folder_is_summed_up(tmp_path):
    """Drops are counted by their cause, whatever the detail."""
    for name, drop in (("a", Drop(Cause.TOO_SHORT, "the rest, less than a clip")), ("b", Drop(Cause.NO_CAPTION)),
                       ("c", Drop(Cause.UNREADABLE, "after 0.5 s")), ("d", Drop(Cause.TOO_SHORT, "8 frames"))):
        add_to_manifest(tmp_path, {"video": f"{name}.mp4"}, [Clip(f"{name}.mp4", 0, "x", (f"{name}.png",))],
                        [("whole video", drop)])
    assert summary(tmp_path).splitlines() == ["4 videos, 4 clips, 4 reference photos", "dropped 2: too short",
                                              "dropped 1: no caption", "dropped 1: cannot be read"]
    assert manifest_clips(tmp_path)[0] == Clip("a.mp4", 0, "x", ("a.png",))


@pytest.mark.parametrize("content", [b'{"fps": 16.0, "wid', b"", b"[]", b'{"face": {"preset": "none such"}}'])
def test_damaged_settings_are_no_settings(tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(UserError, match=r"settings\.json is damaged .*take another folder, or delete the file"):
        list(prepare([], tmp_path, SETTINGS))


def test_damaged_lines_of_the_manifest_are_dropped_and_said(tmp_path):
    for name in ("one", "two"):
        add_to_manifest(tmp_path, {"video": name}, [Clip(name, 0, "a person", ())], [])
    file = tmp_path / "manifest.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert list(prepare([], tmp_path, SETTINGS)) == [
        "damaged lines of the manifest that were dropped: 1; their videos are looked at again"]
    assert [clip.video for clip in manifest_clips(tmp_path)] == ["one"]
    assert list(prepare([], tmp_path, SETTINGS)) == []


def test_damaged_vectors_are_made_anew(tmp_path, caplog):
    class Blind:
        name = "blind"

        def see(self, picture, index):
            return None

    write_photo(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    clips = [Clip("one", 0, "a person", ("a.png",))]
    embed(clips, tmp_path, Blind())
    (kept,) = tmp_path.glob("vectors_*.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-5] if len(whole) > 5 else b"")
    embed(clips, tmp_path, Blind())
    assert kept.read_bytes() == whole and "is damaged" in caplog.text


@pytest.mark.parametrize("damage", [lambda whole: whole[:100], lambda whole: b"", lambda whole: bytes(len(whole))])
def test_a_damaged_shard_is_made_anew(tmp_path, damage):
    example = Example(torch.zeros(16, 1, 2, 2), torch.zeros(1, 16, 1, 2, 2), torch.ones(3, 4))
    (line,) = write_shards(tmp_path, ["a"], lambda missing: iter([("a", example)]))
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"shard_00000\.safetensors is damaged .*prepare the data again"):
        CachedExamples(tmp_path)
    assert list(write_shards(tmp_path, ["a"], lambda missing: iter([("a", example)]))) == [line]
    assert len(CachedExamples(tmp_path)) == 1


@pytest.mark.parametrize("harm", [lambda file: file.write_bytes(file.read_bytes()[:-8]), lambda file: file.unlink()],
                         ids=["cut short", "removed"])
def test_a_shard_that_is_harmed_while_a_training_runs(tmp_path, harm):
    example = Example(torch.zeros(16, 1, 2, 2), torch.zeros(1, 16, 1, 2, 2), torch.ones(3, 4))
    list(write_shards(tmp_path, ["a"], lambda missing: iter([("a", example)])))
    examples = CachedExamples(tmp_path)
    assert torch.equal(examples[0].context, example.context)
    harm(tmp_path / "shard_00000.safetensors")
    with pytest.raises(UserError, match=r"shard_00000\.safetensors is damaged .*prepare the data again"):
        examples[0]


def test_shards_of_different_data_are_refused(tmp_path):
    """An earlier version left unsaid how the photos were fitted; what is said must agree."""
    example = Example(torch.zeros(16, 1, 2, 2), torch.zeros(1, 16, 1, 2, 2), torch.ones(3, 4))
    names = [str(number) for number in range(2 * CLIPS_IN_SHARD + 1)]

    def write(number, fit):
        (tmp_path / f"shard_{number:05d}.safetensors").unlink(missing_ok=True)
        list(write_shards(tmp_path, names, lambda missing: ((name, example) for name in names if name in missing), fit))

    write(2, "")
    write(1, TO_CLIP)
    assert CachedExamples(tmp_path).fit == TO_CLIP
    write(0, AS_CROPPED)
    with pytest.raises(UserError, match=r"of different data, with photos as cropped and to the clip: delete "):
        CachedExamples(tmp_path)


def test_settings_are_kept_beside_the_data(prepared_once):
    """All but what changes nothing of the data."""
    folder, _ = prepared_once
    kept = dataclasses.asdict(SETTINGS)
    del kept["face"]["download_missing"]
    assert kept_settings(folder) == kept


def test_a_name_that_is_not_utf8(tmp_path):
    """Linux has such files; their names go into a manifest and a report, which are UTF-8."""
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).touch()
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("a person", encoding="utf-8")
    (source,) = sources_in(tmp_path)
    assert source.name == "caf\\udce9.mp4" and source.path.is_file() and source.caption == "a person"
