"""The small world: everything follows from a seed, nobody is in both parts, and what a person is can be seen."""
import dataclasses

import numpy as np
import pytest

from small_world.people import TRAITS, Person, everyone, split
from small_world.render import picture, subject_mask, video
from small_world.scenes import ACTIONS, Pose, Scene, captions, photo_scene, random_scene

STILL = Scene("nods", "grey", Pose(), (70, 74, 84), 90.0, 1.0)


def test_everyone_is_there_once():
    assert len(set(everyone())) == len(everyone()) == np.prod([len(values) for values in TRAITS.values()])
    assert len({person.look for person in everyone()}) == 19200
    assert split() != split(seed=1)


def test_nobody_to_test_on_looks_like_somebody_to_train_on():
    """In what is drawn of them, which tells apart as many as there are looks."""
    train, test = split()
    assert len(train) == 9 * len(everyone()) // 10 and len(test) > 1500

    def drawn(people):
        return {picture(person, STILL, 0.0, 32).tobytes() for person in people}

    some = test[:100]
    alike = [person for person in train if any(
        sum(a != b for a, b in zip(person.look, other.look)) <= 1 for other in some[:20])]
    assert len(alike) > 100 and len(drawn(some)) == len({person.look for person in some})
    assert not drawn(some[:20]) & drawn(alike)
    assert not {person.look for person in train} & {person.look for person in test}


def test_every_trait_is_in_both_parts():
    """But for those that hide another one: who is bald or wears dark glasses has a double among the other part."""
    for part, missing in zip(split(), (set(), {"bald", "dark"})):
        assert {getattr(person, name) for person in part for name in ("hair_shape", "glasses")} == {
            value for name in ("hair_shape", "glasses") for value in TRAITS[name]} - missing
        for name in TRAITS.keys() - {"hair_shape", "glasses"}:
            assert {getattr(person, name) for person in part} == set(TRAITS[name])


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


def test_a_subject_is_what_is_no_background():
    """The corners of a photo are background, the middle is not; on a background of a third colour the subject is as it
    was, and hardly anything else is. An edge's pixel may hold a hundredth of the background."""
    rng = np.random.default_rng(5)
    person, scene = split()[0][0], photo_scene(rng)
    mask = subject_mask(person, scene, 0.0, 64)
    assert not mask[0, 0] and not mask[0, -1] and mask[32, 32] and 0.2 < mask.mean() < 0.9
    violet = picture(person, dataclasses.replace(scene, background="violet"), 0.0, 64).astype(int)
    apart = np.abs(violet - picture(person, scene, 0.0, 64)).max(axis=-1)
    assert apart[mask].max() <= 3 and (apart[~mask] == 0).mean() < 0.02


def test_captions():
    rng = np.random.default_rng(0)
    assert {random_scene(rng).caption for _ in range(2000)} == set(captions())


def test_a_photo_is_on_white():
    photo = picture(split()[1][0], photo_scene(np.random.default_rng(0)), 0.0, 64)
    assert photo[:4, :4].mean() > 180
