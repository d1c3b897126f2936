"""The cards of the template browser, which shows no words of a pack beside the name of the file: a picture of the
template, a title, and when to take it.
"""
from __future__ import annotations

import textwrap

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from support.workflow_graphs import Workflow

from .thumbnail_pictures import DIM, HEIGHT, NIGHT, PALE, picture_of

CARD, MARGIN = (640, 360), 30
# The browser's cards are 254 pixels wide at 1920x1080, where these are 16 and 14 pixels high.
HEADLINE_PX, WHEN_PX = 40, 35
LETTERS = 34  # of a line that says when


def thumbnail(workflow: Workflow) -> PIL.Image.Image:
    card = PIL.Image.new("RGB", CARD, NIGHT)
    card.paste(picture_of(workflow), (MARGIN, 20))
    draw = PIL.ImageDraw.Draw(card)
    draw.text((MARGIN, 28 + HEIGHT), workflow.headline, fill=PALE, font=PIL.ImageFont.load_default(HEADLINE_PX))
    draw.multiline_text((MARGIN, 80 + HEIGHT), "\n".join(textwrap.wrap(workflow.when, LETTERS)), fill=DIM,
                        font=PIL.ImageFont.load_default(WHEN_PX), spacing=2)
    return card
