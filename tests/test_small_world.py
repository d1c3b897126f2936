"""The small world: everything follows from a seed, nobody is in both parts, and what a person is can be seen."""
import numpy as np
import pytest

from small_world.people import TRAITS, Person, everyone, split
from small_world.render import picture, video
from small_world.scenes import ACTIONS, Pose, Scene, captions, photo_scene, random_scene

STILL = Scene("nods", "grey", Pose(), (70, 74, 84), 90.0, 1.0)


def test_everyone_is_there_once_and_the_parts_are_disjoint():
    train, test = split()
    assert len(set(everyone())) == len(everyone()) == np.prod([len(values) for values in TRAITS.values()])
    assert not set(train) & set(test) and set(train) | set(test) == set(everyone())
    assert len(test) == len(everyone()) // 10
    assert split() == (train, test) != split(seed=1)


def test_every_trait_is_in_both_parts():
    for part in split():
        labels = np.stack([person.labels for person in part])
        assert [set(column) for column in labels.T] == [set(range(len(values))) for values in TRAITS.values()]


def test_the_same_seed_gives_the_same_video():
    person = split()[1][0]
    first, second = (video(person, random_scene(np.random.default_rng(7)), 5, 64) for _ in range(2))
    assert np.array_equal(first, second) and first.shape == (5, 64, 64, 3)
    assert not np.array_equal(first, video(person, random_scene(np.random.default_rng(8)), 5, 64))


@pytest.mark.parametrize("trait", TRAITS)
def test_a_trait_can_be_seen(trait):
    """Two people who differ in it alone differ in the picture; with what hides it they do not."""
    plain = Person("rose", "brown", "short", "oval", "blue", "none", "none")
    values = [value for value in TRAITS[trait] if value != getattr(plain, trait)]
    pictures = [picture(plain, STILL, 0.0, 64).astype(int)]
    for value in values:
        other = Person(**{**{name: getattr(plain, name) for name in TRAITS}, trait: value})
        assert bool(other.visible[list(TRAITS).index(trait)])
        pictures.append(picture(other, STILL, 0.0, 64).astype(int))
    differences = [np.abs(a - b).max() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(differences) > 20


@pytest.mark.parametrize("hides, hidden, others", [
    ({"hair_shape": "bald"}, "hair_colour", ("black", "blond")),
    ({"glasses": "dark"}, "eye_colour", ("blue", "brown"))])
def test_what_is_hidden_is_not_drawn(hides, hidden, others):
    plain = {"skin": "rose", "hair_colour": "brown", "hair_shape": "short", "face_shape": "oval", "eye_colour": "blue",
             "glasses": "none", "freckles": "none", **hides}
    people = [Person(**{**plain, hidden: value}) for value in others]
    assert not any(person.visible[list(TRAITS).index(hidden)] for person in people)
    assert np.array_equal(*(picture(person, STILL, 0.0, 64) for person in people))


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_moves(action):
    """And it is what the caption says."""
    person = Person("rose", "brown", "short", "oval", "blue", "none", "none")
    scene = random_scene(np.random.default_rng(3), action)
    frames = video(person, scene, 9, 64).astype(int)
    assert np.abs(frames - frames[0]).max(axis=(1, 2, 3)).max() > 30
    assert scene.caption == f"a person {action}, {scene.background} background"


def test_captions():
    rng = np.random.default_rng(0)
    assert {random_scene(rng).caption for _ in range(2000)} == set(captions())


def test_a_photo_is_on_white():
    photo = picture(split()[1][0], photo_scene(np.random.default_rng(0)), 0.0, 64)
    assert photo[:4, :4].mean() > 180
