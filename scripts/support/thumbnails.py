"""The cards of the template browser, which shows no words of a pack beside the name of the file: what goes in, a title,
and when to take the template."""
from __future__ import annotations

import textwrap

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import skimage.data

from .environment import PACK
from .workflow_graphs import (
    ANIMATED,
    CHOOSE,
    CONCATENATED,
    CONTINUED,
    CONTROLLED,
    DISTILLED_STEPS,
    FACE_SWAP,
    LONG,
    LOW_MEMORY,
    PICTURES,
    REFINE,
    STYLED,
    SUBJECT,
    TRAIN,
    TWO_GPUS,
    TWO_PEOPLE,
    WAN22,
    Workflow,
)

CARD, SIDE = (640, 360), 250
NIGHT, PALE, DIM, SKY = (22, 32, 48), (232, 238, 245), (170, 184, 200), (86, 156, 214)
# head, neck, shoulders, elbows, hands, hips, knees and feet of a dancer, in shares of the picture
JOINTS = ((.50, .14), (.50, .27), (.40, .29), (.60, .29), (.28, .40), (.74, .22), (.20, .27), (.86, .12), (.44, .54),
          (.56, .54), (.38, .74), (.66, .70), (.32, .94), (.60, .92))
BONES = ((0, 1), (1, 2), (1, 3), (2, 4), (4, 6), (3, 5), (5, 7), (1, 8), (1, 9), (8, 10), (10, 12), (9, 11), (11, 13))
BONE_COLOURS = ((230, 80, 80), (240, 170, 60), (120, 200, 90), (70, 160, 240), (190, 110, 230))
TAGS = {STYLED.name: "+ style LoRA", CONCATENATED.name: "Wan 2.1 1.3B", PICTURES.name: "SD1.5, pictures",
        ANIMATED.name: "SD1.5, 16 frames", CHOOSE.name: "best of 4 seeds", REFINE.name: "small faces",
        LONG.name: "161 frames", CONTINUED.name: "to be continued", TWO_GPUS.name: "two GPUs"}


def thumbnail(workflow: Workflow) -> PIL.Image.Image:
    card = PIL.Image.new("RGB", CARD, NIGHT)
    card.paste(_picture(workflow).resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS), (40, 55))
    draw = PIL.ImageDraw.Draw(card)
    draw.multiline_text((325, 62), workflow.headline, fill=PALE, font=PIL.ImageFont.load_default(36), spacing=8)
    draw.line([(325, 166), (385, 166)], fill=SKY, width=4)
    draw.multiline_text((325, 186), "\n".join(textwrap.wrap(workflow.when, 29)), fill=DIM,
                        font=PIL.ImageFont.load_default(20), spacing=8)
    return card


def _picture(workflow: Workflow) -> PIL.Image.Image:
    photo = PIL.Image.fromarray(skimage.data.astronaut()[:230, 110:340]).resize((SIDE, SIDE))
    if workflow is SUBJECT:
        return PIL.Image.fromarray(skimage.data.chelsea()[10:290, 80:360])
    if workflow is FACE_SWAP:  # the face, pasted by the nodes
        return PIL.Image.open(PACK / "docs" / "images" / "face_swap.png").convert("RGB").crop((639, 0, 946, 307))
    if workflow is CONTROLLED:
        return _with_dancer(photo)
    if workflow is DISTILLED_STEPS:
        return _noised(photo, 4, 5)
    if workflow is WAN22:
        return _noised(photo, 20, 1)
    if workflow.name in TAGS:
        return _tagged(photo, TAGS[workflow.name])
    if workflow is LOW_MEMORY:
        return _with_bars(photo, {"resident 839 MB": 839, "offloaded 42 MB": 42})
    if workflow is TWO_PEOPLE:
        other = PIL.ImageOps.mirror(PIL.ImageOps.grayscale(photo).convert("RGB"))
        photo.paste(other.crop((60, 0, 60 + SIDE // 2, SIDE)), (SIDE // 2, 0))
        photo.paste(PIL.Image.fromarray(skimage.data.astronaut()[:230, 168:283]).resize((SIDE // 2, SIDE)), (0, 0))
        return photo
    return _fanned(photo, workflow.photos, rows=3 if workflow is TRAIN else 1)


def _fanned(photo: PIL.Image.Image, photos: int, rows: int) -> PIL.Image.Image:
    """One photo, several one over the other, or a sheet of rows of them."""
    if photos == 1:
        return photo
    variants = [photo, PIL.ImageOps.mirror(PIL.ImageOps.grayscale(photo).convert("RGB")), photo.rotate(8)]
    card = PIL.Image.new("RGB", (SIDE, SIDE), NIGHT)
    for row in range(rows):
        for index in range(photos):
            side = 176 if rows == 1 else 78
            where = (37 * index, 37 * index) if rows == 1 else (86 * index, 86 * row)
            card.paste(variants[(index + row) % len(variants)].resize((side, side)), where)
    return card


def _noised(photo: PIL.Image.Image, steps: int, shift: float) -> PIL.Image.Image:
    """The noise levels of that many steps, from left to right, on the photo."""
    linear = np.linspace(1, 0, steps)
    levels = shift * linear / (1 + (shift - 1) * linear)
    columns = np.repeat(levels, -(-SIDE // steps))[:SIDE]
    noise = np.random.default_rng(0).normal(0.5, 0.35, (SIDE, SIDE, 3))
    pixels = (1 - columns[:, None]) * np.asarray(photo) / 255 + columns[:, None] * noise
    return PIL.Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8))


def _tagged(photo: PIL.Image.Image, words: str) -> PIL.Image.Image:
    """The photo with words on a band along its lower edge."""
    draw = PIL.ImageDraw.Draw(photo)
    draw.rectangle([0, SIDE - 44, SIDE, SIDE], fill=SKY)
    draw.text((SIDE / 2, SIDE - 22), words, fill=NIGHT, font=PIL.ImageFont.load_default(24), anchor="mm")
    return photo


def _with_dancer(photo: PIL.Image.Image) -> PIL.Image.Image:
    """A skeleton as VACE reads it, the photo in the corner."""
    card = PIL.Image.new("RGB", (SIDE, SIDE), (0, 0, 0))
    draw = PIL.ImageDraw.Draw(card)
    for index, (start, end) in enumerate(BONES):
        line = [tuple(SIDE * share for share in JOINTS[joint]) for joint in (start, end)]
        draw.line(line, fill=BONE_COLOURS[index % len(BONE_COLOURS)], width=7)
    for x, y in JOINTS:
        draw.circle((SIDE * x, SIDE * y), 6, fill=PALE)
    card.paste(photo.resize((84, 84)), (SIDE - 84, SIDE - 84))
    return card


def _with_bars(photo: PIL.Image.Image, values: dict[str, float]) -> PIL.Image.Image:
    """The photo over a bar for each value."""
    card = PIL.Image.new("RGB", (SIDE, SIDE), NIGHT)
    card.paste(photo.resize((150, 150)), ((SIDE - 150) // 2, 0))
    draw = PIL.ImageDraw.Draw(card)
    for index, (name, value) in enumerate(values.items()):
        top = 162 + 46 * index
        draw.text((0, top), name, fill=DIM, font=PIL.ImageFont.load_default(16))
        draw.rectangle([0, top + 22, SIDE * value / max(values.values()), top + 34], fill=SKY)
    return card
