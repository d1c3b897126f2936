"""What the cards of the template browser show: photographs, and what the pack's own nodes make of them before any model
samples. People in a video are drawn by the small world. No card shows what a model sampled, or pretends to.

Imports ComfyUI: call ``environment.import_comfyui`` first.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import skimage.data
import torch

from standin_core.face import FaceSettings, crop_faces
from standin_core.face_swap import RefineSettings, enlarge_small_face
from standin_core.sampler import SamplerSettings, flow_matching_sigmas, switch_step
from support import moving_photo
from support.environment import PACK
from support.workflow_graphs import (
    ANIMATED,
    CHOOSE,
    CONCATENATED,
    CONTINUED,
    CONTROLLED,
    DISTILLED_STEPS,
    FACE_SWAP,
    IDENTITY,
    LONG,
    LOW_MEMORY,
    PICTURES,
    REFINE,
    SEVERAL_PHOTOS,
    STYLED,
    SUBJECT,
    TRAIN,
    TWO_GPUS,
    TWO_PEOPLE,
    WAN22,
    Workflow,
)

from .people import Person, split
from .render import picture
from .scenes import SHIRTS, Pose, Scene, photo_scene

WIDTH, HEIGHT, GAP = 580, 180, 20
BESIDE = (WIDTH - HEIGHT - GAP, HEIGHT)  # what stands beside a square
NIGHT, PALE, DIM, SKY, SUN = (22, 32, 48), (232, 238, 245), (182, 195, 210), (86, 156, 214), (240, 170, 60)
SETTINGS = SamplerSettings(seed=0)  # with the authors' shift and boundary, as the templates have them
# head, neck, shoulders, elbows, hands, hips, knees and feet of a dancer, in shares of the picture
JOINTS = ((.50, .14), (.50, .27), (.40, .29), (.60, .29), (.28, .40), (.74, .22), (.20, .27), (.86, .12), (.44, .54),
          (.56, .54), (.38, .74), (.66, .70), (.32, .94), (.60, .92))
BONES = ((0, 1), (1, 2), (1, 3), (2, 4), (4, 6), (3, 5), (5, 7), (1, 8), (1, 9), (8, 10), (10, 12), (9, 11), (11, 13))
BONE_COLOURS = ((230, 80, 80), (240, 170, 60), (120, 200, 90), (70, 160, 240), (190, 110, 230))

ANNA = Person("rose", "red", "long", "oval", "blue", "none", "freckles")
BEN = Person("bronze", "black", "curly", "round", "brown", "round", "none")
EVA = Person("sand", "blond", "bob", "pointed", "green", "none", "none")


def picture_of(workflow: Workflow) -> PIL.Image.Image:
    """WIDTH x HEIGHT"""
    row = PIL.Image.new("RGB", (WIDTH, HEIGHT), NIGHT)
    left = 0
    for tile in PICTURES_OF[workflow.name]():
        row.paste(tile, (left, 0))
        left += tile.width + GAP
    return row


def _tiles(*pictures: PIL.Image.Image) -> list[PIL.Image.Image]:
    """Cut to the same width, so that they fill the row."""
    width = (WIDTH - GAP * (len(pictures) - 1)) // len(pictures)
    return [PIL.ImageOps.fit(each, (width, HEIGHT)) for each in pictures]


def _portrait() -> PIL.Image.Image:
    return PIL.Image.fromarray(skimage.data.astronaut()[:230, 110:340]).resize((HEIGHT, HEIGHT))


def _identity() -> list[PIL.Image.Image]:
    """The photo as Face Preprocess shows it, the crop, and the crop as 32x32 tokens."""
    found = crop_faces(_batch(skimage.data.astronaut()), FaceSettings(detector="cascade", parser="none"))
    crop = _image(found.image)
    tokens = crop.resize((32, 32), PIL.Image.Resampling.BOX).resize((HEIGHT, HEIGHT), PIL.Image.Resampling.NEAREST)
    return _tiles(_image(found.preview), crop, tokens)


def _four_steps() -> list[PIL.Image.Image]:
    """The photo at the noise levels of four steps, and without noise."""
    photo = np.asarray(_portrait()) / 255
    noise = np.random.default_rng(0).normal(0.5, 0.2, (HEIGHT // 4, HEIGHT // 4, 3)).repeat(4, 0).repeat(4, 1)
    levels = flow_matching_sigmas(4, SETTINGS.shift, 1.0).tolist()
    return _tiles(*(_from_floats((1 - level) * photo + level * noise) for level in levels))


def _two_experts() -> list[PIL.Image.Image]:
    """The photo, and the noise before each of 20 steps, in the colour of the expert that takes it."""
    chart = PIL.Image.new("RGB", BESIDE, NIGHT)
    draw = PIL.ImageDraw.Draw(chart)
    levels = flow_matching_sigmas(20, SETTINGS.shift, 1.0)
    switch = switch_step(levels, SETTINGS.boundary)
    for step, level in enumerate(levels[:-1].tolist()):
        left = step * chart.width / 20
        draw.rectangle([left, HEIGHT - (HEIGHT - 1) * level, left + 12, HEIGHT], fill=SUN if step < switch else SKY)
    return [_portrait(), chart]


def _dancer() -> list[PIL.Image.Image]:
    """A photo, and skeletons as VACE reads them."""
    card = PIL.Image.new("RGB", (HEIGHT, HEIGHT), (0, 0, 0))
    draw = PIL.ImageDraw.Draw(card)
    for index, (start, end) in enumerate(BONES):
        line = [tuple(HEIGHT * share for share in JOINTS[joint]) for joint in (start, end)]
        draw.line(line, fill=BONE_COLOURS[index % len(BONE_COLOURS)], width=6)
    for x, y in JOINTS:
        draw.circle((HEIGHT * x, HEIGHT * y), 5, fill=PALE)
    return _tiles(_portrait(), card, PIL.ImageOps.mirror(card))


def _styles() -> list[PIL.Image.Image]:
    """A photo, and the same in two styles, by OpenCV."""
    photo = np.asarray(_portrait())
    pencil, _ = cv2.pencilSketch(photo, sigma_s=60, sigma_r=0.07, shade_factor=0.05)
    return _tiles(_portrait(), PIL.Image.fromarray(cv2.stylization(photo, sigma_s=60, sigma_r=0.5)),
                  PIL.Image.fromarray(pencil).convert("RGB"))


def _swap() -> list[PIL.Image.Image]:
    """A frame, the new face, and the face on the frame, by the nodes."""
    sheet = PIL.Image.open(PACK / "docs" / "images" / "face_swap.png").convert("RGB")
    return _tiles(*(sheet.crop((left, 0, left + 307, 307)) for left in (0, 320, 639)))


def _two_people() -> list[PIL.Image.Image]:
    """Two photos, and the half of the video in which each is read."""
    man = PIL.Image.fromarray(skimage.data.camera()[40:200, 150:310]).convert("RGB")
    halves = PIL.Image.new("RGB", (HEIGHT, HEIGHT), SKY)
    halves.paste(SUN, (0, 0, HEIGHT // 2, HEIGHT))
    woman, man, halves = _tiles(_portrait(), man, halves)
    return [_framed(woman, SUN), _framed(man, SKY), halves]


def _subjects() -> list[PIL.Image.Image]:
    """As the template takes them: whole, padded to a square on white."""
    cartoon, settings = _drawn(EVA, _scene("smiles", "yellow"), 1.0), FaceSettings(detector="none", parser="none")
    return _tiles(*(_image(crop_faces(_batch(np.asarray(photo)), settings).image)
                    for photo in (skimage.data.chelsea()[:, 40:440], skimage.data.coffee()[:, 60:], cartoon)))


def _small_card() -> list[PIL.Image.Image]:
    """The photo, and the bytes of its keys and values on the card for a model of 14B, as the node's help has them."""
    bars = PIL.Image.new("RGB", BESIDE, NIGHT)
    draw, font = PIL.ImageDraw.Draw(bars), PIL.ImageFont.load_default(34)
    for index, (name, megabytes) in enumerate((("resident: 839 MB", 839), ("offloaded: 42 MB", 42))):
        top = 92 * index
        draw.text((0, top), name, fill=PALE, font=font)
        draw.rectangle([0, top + 46, bars.width * megabytes / 839, top + 72], fill=SKY)
    return [_portrait(), bars]


def _two_gpus() -> list[PIL.Image.Image]:
    """The photo, and the pass that each GPU computes."""
    passes = PIL.Image.new("RGB", BESIDE, NIGHT)
    draw, font = PIL.ImageDraw.Draw(passes), PIL.ImageFont.load_default(34)
    for top, colour, name in ((0, SUN, "GPU 1: prompt"), (95, SKY, "GPU 2: negative")):
        draw.rectangle([0, top, passes.width, top + 84], fill=colour)
        draw.text((20, top + 20), name, fill=NIGHT, font=font)
    return [_portrait(), passes]


def _three_photos() -> list[PIL.Image.Image]:
    rng = np.random.default_rng(4)
    return _tiles(*(_drawn(ANNA, photo_scene(rng)) for _ in range(3)))


def _four_tries() -> list[PIL.Image.Image]:
    """Four people, of whom the one of the photo is chosen."""
    people = (Person("rose", "red", "bob", "round", "green", "none", "none"), ANNA,
              Person("rose", "brown", "long", "oval", "brown", "square", "none"),
              Person("porcelain", "red", "short", "square", "blue", "none", "freckles"))
    tries = _tiles(*(_drawn(person, _scene("smiles", "violet"), 0.8) for person in people))
    return [_framed(each, SUN) if person == ANNA else each for person, each in zip(people, tries)]


def _enlarged() -> list[PIL.Image.Image]:
    """A frame with a small face in it, the square around the face, enlarged by Refine Faces Prepare, and in bright what
    is made anew of it.
    """
    frame = skimage.data.astronaut()
    small = enlarge_small_face(_batch(frame), RefineSettings(detector="cascade", crop_scale=1.8, size=256))
    (left, top), side = small.track.corners[0], small.track.side
    whole = PIL.Image.fromarray(frame)
    PIL.ImageDraw.Draw(whole).rectangle([left, top, left + side, top + side], outline=SUN, width=9)
    square, mask = small.frames[0].numpy(), small.mask[0, ..., None].numpy()
    return _tiles(whole, _from_floats(square), _from_floats(square * (0.3 + 0.7 * mask)))


def _windows() -> list[PIL.Image.Image]:
    """Frames of a long video, and the windows in which it is sampled."""
    (window,) = [node for node in LONG.nodes if node.key == "windows"]
    (length,) = [node.inputs["length"] for node in LONG.nodes if node.key == "whole"]
    size, overlap = window.inputs["context_length"], window.inputs["context_overlap"]
    starts = [*range(0, length - size, size - overlap), length - size]
    strip = PIL.Image.new("RGB", (WIDTH, HEIGHT), NIGHT)
    frames = moving_photo.video(40, 144, 108)
    for index in range(4):
        strip.paste(PIL.Image.fromarray(frames[10 * index]), (index * 145, 0))
    draw = PIL.ImageDraw.Draw(strip)
    for index, start in enumerate(starts):
        top = 118 + 22 * index
        draw.rectangle([WIDTH * start / length, top, WIDTH * (start + size) / length, top + 14],
                       fill=(SKY, SUN)[index % 2])
    return [strip]


def _continued() -> list[PIL.Image.Image]:
    """What VACE gets: the frames that it keeps, and grey ones in place of those that it makes."""
    kept = [_drawn(BEN, _scene("comes nearer", "green"), t) for t in (0.0, 0.6)]
    grey = PIL.Image.new("RGB", (256, 256), (127, 127, 127))
    return _tiles(*kept, grey, grey)


def _training_people() -> list[PIL.Image.Image]:
    """People from whom the small world's adapter learned."""
    rng, people = np.random.default_rng(2), split().train
    sheet = PIL.Image.new("RGB", (WIDTH, HEIGHT), NIGHT)
    for (row, column), person in zip(itertools.product(range(3), range(9)), people):
        sheet.paste(_drawn(person, photo_scene(rng)).resize((60, 60)), (65 * column, 60 * row))
    return [sheet]


def _frame_more() -> list[PIL.Image.Image]:
    """The photo, the face at its fixed place, and the video's latent frames with the reference as one more."""
    photo = moving_photo.cut_out()
    found = crop_faces(_batch(photo), FaceSettings(preset="Concat-ID", detector="cascade", parser="none"))
    frames = PIL.Image.new("RGB", (HEIGHT, HEIGHT), NIGHT)
    draw, side = PIL.ImageDraw.Draw(frames), HEIGHT / 5
    for index in range(21):
        top, left = side * (index // 5), side * (index % 5)
        draw.rectangle([left + 2, top + 2, left + side - 3, top + side - 3], fill=SKY)
    frames.paste(_image(found.image).resize((round(side) - 4, round(side) - 4)), (round(side) + 2, round(4 * side) + 2))
    return _tiles(PIL.Image.fromarray(photo[..., :3]), _image(found.image), frames)


def _four_pictures() -> list[PIL.Image.Image]:
    scenes = (_scene("smiles", "pink"), _scene("leans", "green"), _scene("shakes the head", "yellow"),
              _scene("talks", "violet"))
    return _tiles(*(_drawn(EVA, scene, 0.3) for scene in scenes))


def _sixteen_frames() -> list[PIL.Image.Image]:
    sheet = PIL.Image.new("RGB", (WIDTH, HEIGHT), NIGHT)
    for index in range(16):
        frame = _drawn(BEN, _scene("shakes the head", "grey"), index / 15)
        sheet.paste(PIL.ImageOps.fit(frame, (70, 88)), (73 * (index % 8), 92 * (index // 8)))
    return [sheet]


def _drawn(person: Person, scene: Scene, t: float = 0.0) -> PIL.Image.Image:
    """The person at time t of the scene, 0 to 1."""
    return PIL.Image.fromarray(picture(person, scene, t, 256))


def _scene(action: str, background: str) -> Scene:
    return Scene(action, background, Pose(size=0.58), SHIRTS[2], 300.0, 1.0)


def _framed(tile: PIL.Image.Image, colour: tuple[int, int, int]) -> PIL.Image.Image:
    """The same tile, drawn on."""
    PIL.ImageDraw.Draw(tile).rectangle([0, 0, tile.width - 1, tile.height - 1], outline=colour, width=8)
    return tile


def _batch(pixels: np.ndarray) -> torch.Tensor:
    """[H, W, C] uint8 as ComfyUI's IMAGE."""
    return torch.from_numpy(pixels[None].copy()).float() / 255


def _image(batch: torch.Tensor) -> PIL.Image.Image:
    """The first picture of ComfyUI's IMAGE."""
    return _from_floats(batch[0].numpy())


def _from_floats(pixels: np.ndarray) -> PIL.Image.Image:
    """pixels: [H, W, 3] in 0..1; what is beyond is clipped."""
    return PIL.Image.fromarray(np.rint(255 * pixels.clip(0, 1)).astype(np.uint8))


PICTURES_OF: dict[str, Callable[[], list[PIL.Image.Image]]] = {
    IDENTITY.name: _identity, DISTILLED_STEPS.name: _four_steps, WAN22.name: _two_experts, CONTROLLED.name: _dancer,
    STYLED.name: _styles, FACE_SWAP.name: _swap, TWO_PEOPLE.name: _two_people, SUBJECT.name: _subjects,
    LOW_MEMORY.name: _small_card, TWO_GPUS.name: _two_gpus, SEVERAL_PHOTOS.name: _three_photos,
    CHOOSE.name: _four_tries, REFINE.name: _enlarged, LONG.name: _windows, CONTINUED.name: _continued,
    TRAIN.name: _training_people, CONCATENATED.name: _frame_more,
    PICTURES.name: _four_pictures, ANIMATED.name: _sixteen_frames}
