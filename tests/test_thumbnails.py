"""The cards of the template browser: drawn by their source, readable where they are shown, each with a picture of its
own.
"""
import itertools

import numpy as np
import PIL.Image
import pytest

from small_world.thumbnail_pictures import HEIGHT, NIGHT, picture_of
from small_world.thumbnails import CARD, HEADLINE_PX, WHEN_PX, thumbnail
from support.environment import PACK
from support.workflow_graphs import WORKFLOWS

SHOWN_WIDTH = 254  # of a card in the page at 1920x1080
READABLE_PX = 13  # of letters there


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_the_files_are_what_is_drawn(workflow):
    """But for JPEG, which loses the most where there is noise."""
    file = np.asarray(PIL.Image.open(PACK / "workflows" / f"{workflow.name}.jpg"), int)
    assert np.abs(file - np.asarray(thumbnail(workflow), int)).mean() < 7


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_no_word_is_cut(workflow):
    """The edges of the card are empty, and all words of the sentence are on it."""
    card = np.asarray(thumbnail(workflow))
    assert card.shape == (CARD[1], CARD[0], 3)
    for edge in (card[-6:], card[:, -20:], card[:, :20]):
        assert (edge == NIGHT).all()


def test_words_are_readable_where_they_are_shown():
    assert min(HEADLINE_PX, WHEN_PX) * SHOWN_WIDTH / CARD[0] >= READABLE_PX


def test_every_picture_is_its_own():
    """As they are seen, at the width of the browser's cards. A portrait and the same with words on it are 18 apart."""
    size = SHOWN_WIDTH, HEIGHT * SHOWN_WIDTH // CARD[0]
    seen = {workflow.name: np.asarray(picture_of(workflow).resize(size), int) for workflow in WORKFLOWS}
    apart = {names: np.abs(seen[names[0]] - seen[names[1]]).mean() for names in itertools.combinations(seen, 2)}
    assert min(apart.values()) > 30, min(apart, key=apart.get)
