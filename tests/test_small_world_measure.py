"""What is measured in the small world, on readings made by hand, and how the documents show it."""
import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from small_world import models, photos
from small_world.cases import cases
from small_world.measure import kept, validity
from small_world.models import SIDE, encode, long_vae, new_vae, to_pixels
from small_world.people import TRAITS, Person
from small_world.plots import FIGURES, draw
from small_world.reader import POSE, Readings
from small_world.scenes import Pose
from small_world.settings import CLOSER, PAPER, PLAIN, RECORD
from small_world.tables import DOCUMENT, filled
from support.environment import PACK

FRAMES = 3
PEOPLE = (Person("rose", "brown", "short", "oval", "blue", "none", "none"),
          Person("olive", "black", "long", "round", "green", "round", "none"),
          Person("sand", "red", "bob", "square", "brown", "square", "none"),
          Person("umber", "white", "curly", "pointed", "amber", "none", "none"))


def reading(person, right=7, confidence=1.0):
    """A video in which so many of the person's traits are read as they are, and the others as nobody's here."""
    nobody = Person("bronze", "blond", "short", "oval", "grey", "none", "none").labels
    traits = np.where(np.arange(len(TRAITS)) < right, person.labels, nobody)
    return Readings(np.tile(traits, (FRAMES, 1)), np.broadcast_to(confidence, (FRAMES, len(TRAITS))).astype(float),
                    np.zeros((FRAMES, len(POSE))), np.zeros((2, 3)))


def test_the_pose_of_a_photo_is_that_of_its_crop():
    """A face that looks straight ahead is drawn with the eyes on both sides of its middle, 0.03 of its height above,
    and the mouth 0.33 below them."""
    scene = cases(1)[0].photo_scene
    scene = dataclasses.replace(scene, action="closes the eyes", pose=Pose(x=0.3, y=0.55, size=0.4))
    (left, right, _, *mouth), found = photos.points(scene) / SIDE, photos.pose(scene)
    assert found.x == pytest.approx((left + right)[0] / 2, abs=0.01)
    assert found.size == pytest.approx((np.mean(mouth, axis=0) - left)[1] / 0.33, rel=0.03)
    assert found.y == pytest.approx(left[1] + 0.03 * found.size, abs=0.01)


def test_a_long_video_is_encoded_in_windows():
    """Each begins with the last frame of the one before, which its first latent frame stands for."""
    vae = new_vae().eval()
    with torch.inference_mode():
        pixels = to_pixels(torch.from_numpy(cases(1)[0].clip.video(2 * models.FRAMES - 1))[None])
        latent, first = encode(vae, pixels), vae.encode(pixels[:, :, :models.FRAMES])
        assert torch.equal(latent[:, :, :first.shape[2]], first)
        assert torch.equal(latent[:, :, first.shape[2]:], vae.encode(pixels[:, :, models.FRAMES - 1:])[:, :, 1:])
        assert torch.equal(encode(vae, pixels[:, :, :1]), vae.encode(pixels[:, :, :1]))


def test_the_decoder_of_long_videos_takes_the_same_latents():
    pixels, (vae, of_long) = to_pixels(torch.from_numpy(cases(1)[0].clip.video())[None]), (new_vae(), long_vae())
    with torch.inference_mode():
        assert torch.equal(vae.encode(pixels), of_long.encode(pixels))
        latent = vae.encode(pixels)
        assert not torch.equal(vae.decode(latent), of_long.decode(latent))


@pytest.fixture
def some():
    return [dataclasses.replace(case, person=person) for case, person in zip(cases(len(PEOPLE)), PEOPLE)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of four people, a draw may be one alone
def test_kept_lies_between_other_people_and_real_videos(some):
    """By its definition: agreement with who was asked for, with the others, and that of real videos."""
    real, found = [reading(person) for person in PEOPLE], [reading(person, 2) for person in PEOPLE]

    def agreement(with_, video):
        return np.mean(with_.labels == video.traits[0])

    own = np.mean([agreement(person, video) for person, video in zip(PEOPLE, found)])
    others = np.mean([agreement(person, video) for person in PEOPLE for other, video in zip(PEOPLE, found)
                      if other is not person])
    assert kept(some, found, real).kept == pytest.approx((own - others) / (1 - others), abs=1e-4)
    assert kept(some, real, real, found).kept == pytest.approx(1 - (own - others) / (1 - others), abs=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_who_stands_beside_somebody_is_no_chance(some):
    """Each video shows the neighbour alone: that is less than chance only for who counts the neighbour as chance."""
    real, leaked = [reading(person) for person in PEOPLE], [reading(PEOPLE[i ^ 1]) for i in range(len(PEOPLE))]
    together, alone = kept(some, leaked, real, together=2).kept, kept(some, leaked, real).kept
    assert alone < together - 0.2


def test_what_hair_and_glasses_hide_makes_no_video_invalid():
    bald, known = dataclasses.replace(PEOPLE[0], hair_shape="bald"), [reading(person, 7, 0.9) for person in PEOPLE]
    unsure = np.ones(len(TRAITS))
    unsure[list(TRAITS).index("hair_colour")] = 0.1
    assert validity([reading(bald, 7, unsure)], known) == 1
    assert validity([reading(PEOPLE[0], 7, unsure)], known) == 0


def test_tables_are_those_of_the_record():
    """small_world/tables.py brings them into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert filled(text, json.loads(RECORD.read_text(encoding="utf-8"))) == text
    assert len(re.findall("<!-- (?!end)", text)) == text.count("<!-- end -->") == text.count(" -->\n| ")


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_from_the_record(name, tmp_path):
    file = tmp_path / f"{name}.svg"
    draw(json.loads(RECORD.read_text(encoding="utf-8")), name, file)
    assert file.stat().st_size > 10_000


def test_the_readme_says_what_was_measured():
    record, text = json.loads(RECORD.read_text(encoding="utf-8")), (PACK / "README.md").read_text(encoding="utf-8")
    (claim,) = re.findall(r"preset \*paper\* keeps.*?\n\n", text, re.DOTALL)
    paper = record[PAPER.measured_as]
    figures = [*(paper[name] for name in ("kept", "low", "high")),
               *(record[setting.measured_as]["kept"] for setting in (CLOSER, PLAIN))]
    assert re.findall(r"-?\d\.\d\d", claim) == [f"{figure:.2f}" for figure in figures]
    assert f"{record['people']} people" in claim and f"{paper['validity']:.0%}".replace("%", " %") in claim
    assert f"cfg {record['sampled']['cfg']:g} in {record['sampled']['steps']} steps" in claim
