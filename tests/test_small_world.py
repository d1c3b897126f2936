"""The small world: everything follows from a seed, nobody is in both parts, and what a person is can be seen."""
import dataclasses

import numpy as np
import pytest

from small_world.data import Clip
from small_world.latents import head_weights
from small_world.people import TRAITS, Person, everyone, split
from small_world.photos import chin, photo, points, subject
from small_world.reader import halves
from small_world.render import picture, subject_mask, video
from small_world.scenes import ACTIONS, Pose, Scene, caption, captions, photo_scene, random_pair, random_scene

STILL = Scene("nods", "grey", Pose(), (70, 74, 84), 90.0, 1.0)


def test_everyone_is_there_once():
    assert len(set(everyone())) == len(everyone()) == np.prod([len(values) for values in TRAITS.values()])
    assert len({person.look for person in everyone()}) == 19200
    assert split() != split(seed=1)


def test_nobody_to_test_on_looks_like_somebody_to_train_on():
    """In what is drawn of them, which tells apart as many as there are looks; nor do those who choose settings."""
    train, validation, test = split()
    assert len(train) == 17 * len(everyone()) // 20 and len(test) > 1500 and len(validation) > 800
    assert not {person.look for person in validation} & {person.look for person in (*train, *test)}

    def drawn(people):
        return {picture(person, STILL, 0.0, 32).tobytes() for person in people}

    some = test[:100]
    alike = [person for person in train if any(
        sum(a != b for a, b in zip(person.look, other.look)) <= 1 for other in some[:20])]
    assert len(alike) > 100 and len(drawn(some)) == len({person.look for person in some})
    assert not drawn(some[:20]) & drawn(alike)
    assert not {person.look for person in train} & {person.look for person in test}


def test_every_trait_is_in_every_part():
    """But for those that hide another one: who is bald or wears dark glasses has a double in another part."""
    for part, missing in zip(split(), (set(), *2 * [{"bald", "dark"}])):
        assert {getattr(person, name) for person in part for name in ("hair_shape", "glasses")} == {
            value for name in ("hair_shape", "glasses") for value in TRAITS[name]} - missing
        for name in TRAITS.keys() - {"hair_shape", "glasses"}:
            assert {getattr(person, name) for person in part} == set(TRAITS[name])


def test_the_same_seed_gives_the_same_video():
    person = split().test[0]
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
    assert caption(scene) == f"a person {action}, {scene.background} background"
    assert caption(scene, 2) == f"two people, each {action}, {scene.background} background"


def test_a_subject_is_what_is_no_background():
    """The corners of a photo are background, the middle is not; on a background of a third colour the subject is as it
    was, and hardly anything else is. An edge's pixel may hold a hundredth of the background."""
    rng = np.random.default_rng(5)
    person, scene = split().train[0], photo_scene(rng)
    mask = subject_mask(person, scene, 0.0, 64)
    assert not mask[0, 0] and not mask[0, -1] and mask[32, 32] and 0.2 < mask.mean() < 0.9
    violet = picture(person, dataclasses.replace(scene, background="violet"), 0.0, 64).astype(int)
    apart = np.abs(violet - picture(person, scene, 0.0, 64)).max(axis=-1)
    assert apart[mask].max() <= 3 and (apart[~mask] == 0).mean() < 0.02


def test_captions():
    rng = np.random.default_rng(0)
    found = {Clip(tuple((split().train[0], scene) for scene in scenes)).caption for _ in range(1000)
             for scenes in ((random_scene(rng),), random_pair(rng))}
    assert found == set(captions())


def test_a_photo_says_nothing_of_the_place():
    """The square around the face is the same, wherever the person is in the picture and however far away."""
    person, scene = split().test[0], photo_scene(np.random.default_rng(0))
    here, there = (dataclasses.replace(scene, light=0.0, pose=dataclasses.replace(scene.pose, x=x, y=y, size=size))
                   for x, y, size in ((0.4, 0.45, 0.5), (0.6, 0.5, 0.4)))
    first, second = (photo(person, each).astype(float) for each in (here, there))
    assert np.abs(picture(person, here, 0.0, 64).astype(float) - picture(person, there, 0.0, 64)).mean() > 15
    assert np.abs(first / first.mean() - second / second.mean()).mean() < 0.06  # the light falls off over the picture


def test_a_photo_is_on_white_or_before_clutter():
    person, scene = split().test[0], photo_scene(np.random.default_rng(0))
    busy = photo(person, dataclasses.replace(scene, clutter=3))
    plain, mask = photo(person, scene), subject(person, scene)
    assert plain[:4, :4].mean() > 180 and plain[~mask].std() < busy[~mask].std()
    assert np.abs(plain.astype(int) - busy)[mask].mean() < 2


@pytest.mark.parametrize("seed", range(4))
def test_points_and_chin_lie_in_the_photo(seed):
    """The eyes' points on dark pupils in light eyes, the chin below the mouth, and a neck below the chin."""
    person = Person("rose", "white", "short", "oval", "grey", "none", "none")
    scene = photo_scene(np.random.default_rng(seed))
    shown, placed = photo(person, scene).astype(float).mean(axis=-1), points(scene)
    for x, y in np.rint(placed[:2]).astype(int):
        assert shown[y, x] < 0.6 * shown[y, [x - 6, x + 6]].max()
    assert placed[3:, 1].max() + 4 < chin(scene) < 64 and subject(person, scene)[chin(scene), round(placed[2, 0])]


def test_two_people_are_in_their_halves():
    """Without the other one, the half is what it was; people do the same in one light before one background."""
    rng, people = np.random.default_rng(4), split().train[:2]
    left, right = random_pair(rng, "smiles")
    assert (left.action, left.background, left.light) == (right.action, right.background, right.light)
    both = Clip(tuple(zip(people, (left, right)))).video()
    alone = [Clip(((person, scene),)).video() for person, scene in zip(people, (left, right))]
    for index, half in enumerate(halves(both)):
        of_alone, of_other = (halves(alone[i])[index] for i in (index, 1 - index))
        apart = [np.abs(half.astype(int) - each)[:, 16:40, 6:26].mean() for each in (of_alone, of_other)]
        assert apart[0] < 3 < apart[1]


def test_heads_count_most():
    """By how far a place is from the head, and the mean stays 1."""
    person, scene = split().train[0], dataclasses.replace(STILL, pose=Pose(x=0.3, y=0.5, size=0.5))
    weight = head_weights(Clip(((person, scene),)))[0, 0]
    assert weight.mean() == pytest.approx(1, abs=1e-6) and weight.min() > 0
    assert np.unravel_index(int(weight.argmax()), weight.shape)[1] == 2 and weight.max() > 3 * weight[:, -1].max()
