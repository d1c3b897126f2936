"""The claim, measured: the person in the photo is the person in the video, for people whom no model here has seen."""
import dataclasses
import runpy
import sys

import folder_paths
import numpy as np
import pytest
import safetensors.torch
import torch

import tiny
from small_world.ablations import VARIANTS, compared_file
from small_world.cases import cases, clip_of, pairs, real, still
from small_world.conditions import concat_id_of, conditions, with_concat_id
from small_world.data import CLIPS
from small_world.kept_readings import KeptReadings
from small_world.measure import calibrate, kept, score
from small_world.models import ADAPTER_FILE, SIDE, WEIGHTS
from small_world.people import split
from small_world.reader import read
from small_world.scenes import ACTIONS
from small_world.tasks import PARTS_OF_LONG, TRUTH, WITH, WITHOUT, drift, ranking, side_by_side, swapped
from small_world.world import SAMPLED, World
from standin_core.concat_id.training import ADALN
from standin_core.joint import JointStream
from standin_core.sampler import SamplerSettings, sample
from standin_core.stand_in.adapter import load_adapter
from standin_core.stand_in.objective import reading_photo
from standin_core.stand_in.positions import shared_positions
from standin_core.stand_in.variant import PAPER, Variant
from standin_core.wan import Wan
from support import pack
from support.environment import PACK
from tolerances import WHOLE_RUN, assert_close

PEOPLE = 16
NOISY = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def adapter():
    return load_adapter(ADAPTER_FILE)


@pytest.fixture(scope="module")
def calibration(world):
    return calibrate(world.reader, people=16)


@pytest.fixture(scope="module")
def some():
    return cases(PEOPLE)


@pytest.fixture(scope="module")
def truth(world, some):
    """Readings of real videos of the same people through the VAE."""
    return [read(world.reader, world.through_vae(real(case))) for case in some]


@pytest.fixture(scope="module")
def readings(world, adapter, some):
    """With the branch and without it, the same people, photos, captions and seeds."""
    models = {"with": lambda case: world.with_identity(case, adapter), "without": lambda case: None}
    return {name: [read(world.reader, world.generate(case.clip, case.seed, model_of(case))) for case in some]
            for name, model_of in models.items()}


def test_nobody_here_was_seen_in_training(some):
    looks = {person.look for person in (*split().train, *split().validation)}
    assert not any(case.person.look in looks for case in some)
    assert {case.scene.action for case in some} == set(ACTIONS)


def test_the_reader_is_right_on_renders(calibration):
    """About people it was not trained on; chance is 1/n of n values of a trait, 0.25 in the mean, and an eighth of
    actions, of which the VAE blurs the small ones."""
    rendered, decoded = calibration["rendered"], calibration["through the VAE"]
    assert rendered["agreement"] > 0.95 and min(rendered["traits"].values()) > 0.9
    assert decoded["agreement"] > 0.95
    assert rendered["actions"] > 0.95 and decoded["actions"] > 0.75


def test_the_reader_is_wrong_about_other_people(world, some, truth):
    """The scale's zero: what two people who were not trained on have in common, as read and as counted."""
    labels = np.stack([person.labels for person in split().test])
    expected = np.mean([((np.bincount(column) / len(column)) ** 2).sum() for column in labels.T])
    shifted = [[dataclasses.replace(case, person=some[(i + shift) % len(some)].person) for i, case in enumerate(some)]
               for shift in range(1, len(some))]
    assert np.mean([score(wrong, truth).agreement for wrong in shifted]) == pytest.approx(expected, abs=0.05)


def test_the_person_is_kept(some, readings, truth):
    """Half of the person and more, and about nothing without the branch, in 95 % of other draws of people too."""
    found, without = (kept(some, readings[which], truth) for which in ("with", "without"))
    assert found.low > 0.45
    assert without.high < 0.2
    assert kept(some, readings["with"], truth, readings["without"]).low > 0.4


def test_a_long_video_keeps_the_person_to_its_end(world, some):
    """In the last quarter, which no context window has together with the first."""
    course = drift(world, some[:4])
    assert {len(parts) for parts in course.values()} == {PARTS_OF_LONG}
    assert course[TRUTH][-1] > 0.7
    assert course[WITH][-1] > course[WITHOUT][-1] + 0.1


def test_motion_and_action_stay(some, readings, calibration):
    """Both move as real videos do, more than the reader errs on still ones, and do what the caption says, of which
    chance is an eighth."""
    found, without = (score(some, readings[which]) for which in ("with", "without"))
    floor = calibration["still, through the VAE"]["motion"]
    assert min(found.actions, without.actions) > 0.25
    assert found.actions >= without.actions - 0.15
    assert found.motion - floor == pytest.approx(without.motion - floor, rel=0.35)
    assert without.motion > 1.3 * floor


def test_the_photo_is_not_copied(world, some, readings):
    """Its background, which is white, and its pose; a video that is the photo has both, and the person too."""
    copies = [read(world.reader, world.through_vae(still(case.photo))) for case in some]
    copied, found, without = score(some, copies), *(score(some, readings[which]) for which in ("with", "without"))
    assert copied.pose_of_photo > 0.5 and copied.backgrounds < 0.5
    assert found.pose_of_photo < 0.3
    assert found.backgrounds >= without.backgrounds - 0.1 and found.backgrounds > 0.8


def test_the_nodes_give_what_the_trainer_gives(world, some, monkeypatch):
    """One call of the model through Load Stand-In and Apply Identity Branch, and the forward pass of the training."""
    case, classes = some[0], pack.node_classes()
    folders, extensions = folder_paths.folder_names_and_paths["stand_in"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "stand_in", ([*folders, str(WEIGHTS)], extensions))
    (stand_in,) = classes["LoadStandIn"].execute(adapter=ADAPTER_FILE.name).args
    (patched,) = classes["ApplyIdentityBranch"].execute(
        model=world.model, stand_in=stand_in, vae=world.vae, strength=1.0, start_percent=0.0, end_percent=1.0,
        reference_image=torch.from_numpy(case.photo)[None].float() / 255, time_offset=-1, attention="auto",
        first_block=0, last_block=-1, guidance="both passes", guidance_scale=1.0, normalize_references=False,
        cache="auto").args
    wan, context = Wan(world.model.model), world.contexts[case.clip.caption]
    reference = world.model.model.process_latent_in(world.reference(case.photo))
    with torch.no_grad(), reading_photo(wan, load_adapter(ADAPTER_FILE), NOISY.shape, reference):
        expected = wan.model(NOISY, torch.full((1,), 1000.0), context)
    assert_close(tiny.velocity(patched, NOISY, context), expected, WHOLE_RUN)


@pytest.mark.parametrize("variant", [name for name, what in VARIANTS.items() if what != PAPER])
def test_an_ablation_is_sampled_as_it_is_trained(world, adapter, some, variant):
    """The forward pass of its training, and that of its sampling, which are not those of the paper's method."""
    adapter, case = dataclasses.replace(adapter, variant=VARIANTS[variant]), some[0]
    wan, context, reference = Wan(world.model.model), world.contexts[case.clip.caption], world.reference(case.photo)
    inside = world.model.model.process_latent_in(reference)

    def trained(adapter):
        with torch.no_grad(), reading_photo(wan, adapter, NOISY.shape, inside):
            return wan.model(NOISY, torch.full((1,), 1000.0), context)

    expected = trained(adapter)
    assert_close(tiny.velocity(world.with_identity(case, adapter), NOISY, context), expected, WHOLE_RUN)
    whole = trained(dataclasses.replace(adapter, variant=PAPER))
    assert (whole - expected).abs().max() > 1e-2 * expected.abs().max()


def test_shared_positions_are_those_of_the_first_frame(world):
    """As ComfyUI gives them to a video of one frame."""
    wan = Wan(world.model.model)
    positions = shared_positions(wan.grid((1, 16, 3, 8, 8))[1:], (4, 4), -1)
    assert_close(wan.rotation(positions), wan.model.rope_encode(1, 8, 8))


def test_ordinary_attention_with_a_photo_that_reads_itself_is_the_restricted_one(world, adapter, some, monkeypatch):
    """What the ablation takes away is put back by hand: the photo's queries see the photo's keys alone."""
    wan, context = Wan(world.model.model), world.contexts[some[0].clip.caption]
    reference = world.model.model.process_latent_in(world.reference(some[0].photo))
    tokens, attend = wan.count(reference.shape), JointStream.attend

    def restricted(stream, host, q, k, v, identities, heads, **kwargs):
        def on_itself(query, keys, values, **keywords):
            if query.shape[1] == tokens:
                keys, values = keys[:, -tokens:], values[:, -tokens:]
            return host(query, keys, values, **keywords)
        return attend(stream, on_itself, q, k, v, identities, heads, **kwargs)

    monkeypatch.setattr(JointStream, "attend", restricted)
    found = []
    for variant in (Variant(self_attention="ordinary"), PAPER):
        with torch.no_grad(), reading_photo(wan, dataclasses.replace(adapter, variant=variant), NOISY.shape, reference):
            found.append(wan.model(NOISY, torch.full((1,), 1000.0), context))
    assert_close(*found, WHOLE_RUN)


def test_the_adapter_says_where_it_comes_from():
    with safetensors.safe_open(ADAPTER_FILE, "pt") as file:
        said = file.metadata()
    assert said["base_model"] == "small_world_wan.safetensors" and int(said["steps"]) >= 1000
    assert said["skipped_steps"] == "0"


def test_the_weights_are_small():
    """All that ships, in bf16."""
    files = list(WEIGHTS.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 30e6
    for file in files:
        assert {tensor.dtype for tensor in safetensors.torch.load_file(file).values()} == {torch.bfloat16}, file.name
        assert file.with_suffix(".log").stat().st_size > 0


TRAININGS = {
    "vae": ["train_vae.py", "--minutes", "0.05"],
    "decoder": ["train_vae.py", "--minutes", "0.05", "--decoder"],
    "wan": ["train_wan.py", "--minutes", "0.05"],
    "adapter": ["train_adapter.py", "--steps", "2"],
    "reader": ["train_reader.py", "--minutes", "0.03", "--clips", "4"],
}


@pytest.mark.parametrize("what", TRAININGS)
def test_the_trainings_run(what, tmp_path_factory, monkeypatch):
    """Each for seconds, from the weights that ship; what comes out can be loaded in their place, and has changed."""
    work = tmp_path_factory.getbasetemp() / "trainings"
    program, *arguments = TRAININGS[what]
    cache = [] if program in ("train_vae.py", "train_reader.py") else ["--cache", str(work / "cache")]
    state = [] if program == "train_adapter.py" else ["--state", str(work / f"{what}.state")]
    _run(program, [*arguments, *cache, *state, "--out", str(work / what)], monkeypatch)
    (file,) = (work / what).glob("*.safetensors")
    alike = ADAPTER_FILE if program == "train_adapter.py" else WEIGHTS / file.name
    shipped, made = (safetensors.torch.load_file(path) for path in (alike, file))
    assert shipped.keys() == made.keys()
    assert all(made[key].shape == tensor.shape and made[key].dtype == tensor.dtype for key, tensor in shipped.items())
    if program == "train_adapter.py":  # begins anew, with up at zero
        assert all(tensor.any() for key, tensor in made.items() if "up" in key and "q_loras" not in key)
        assert load_adapter(file).variant == PAPER
    else:
        assert any(not torch.equal(tensor, shipped[key]) for key, tensor in made.items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_compared_training_runs(variant, tmp_path_factory, monkeypatch):
    """What it writes lies where the benchmark looks for it, and says how it was trained."""
    cache = tmp_path_factory.getbasetemp() / "trainings" / "cache"
    _run("train_adapter.py", ["--steps", "1", "--compared", variant, "--seed", "1", "--cache", str(cache)], monkeypatch)
    assert load_adapter(compared_file(cache, variant, 1)).variant == VARIANTS[variant]


def test_a_training_of_concat_id_runs(tmp_path_factory, world, monkeypatch):
    """With two people in a clip; the model that comes out reads the photos of both."""
    cache = tmp_path_factory.getbasetemp() / "trainings" / "cache"
    _run("train_concat_id.py", ["--steps", "1", "--people", "2", "--cache", str(cache)], monkeypatch)
    model, concat_id = concat_id_of(cache, ADALN, people=2)
    pair = pairs(1)[0]
    somebody = cases(1)[0]
    both, left, right = (world.generate(clip_of(*pair), 0, with_concat_id(world, model, concat_id, *shown), steps=1)
                         for shown in (pair, (somebody, pair[1]), (pair[0], somebody)))
    assert not np.array_equal(both, left) and not np.array_equal(both, right)


def _run(program, arguments, monkeypatch):
    """On eight clips of each kind, and as many people as there are actions."""
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("small_world.measure.CALIBRATED_ON", len(ACTIONS))
    for people in CLIPS:
        monkeypatch.setitem(CLIPS, people, 8)
    # to compile would take longer than such a training
    with torch.inference_mode(False), torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
        runpy.run_path(str(PACK / "small_world" / program), run_name="__main__")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of two pairs, a draw may be one alone
def test_what_the_benchmark_measures_runs(world, some, tmp_path, monkeypatch):
    """Every condition and task with one sampling step, on as few people as they take."""
    monkeypatch.setitem(SAMPLED, "steps", 1)
    for name, condition in conditions(world, tmp_path).items():
        frames = world.generate(some[0].clip, 0, condition.model_of(some[0]), 1, **condition.sampled | {"steps": 1})
        assert frames.std() > 1, name
    pairs_read = side_by_side(world, KeptReadings(tmp_path, 2), 2, tmp_path)
    assert pairs_read["real, through the VAE"]["own"]["kept"] == 1
    assert swapped(world, some[:2]).keys() == {"the paste", WITHOUT, "with it"}
    assert 0 <= ranking(world, some[:2])["by chance"] <= 1


def test_strength_zero_is_the_base_model(world, adapter, some):
    latent = {"samples": torch.zeros(1, 16, 3, SIDE // 8, SIDE // 8)}
    condition = [[world.contexts[some[0].clip.caption], {}]]
    settings = SamplerSettings(seed=3, steps=2, cfg=2.0)
    plain, _ = sample(world.model, None, condition, condition, latent, settings)
    off, _ = sample(world.with_identity(some[0], adapter, strength=0.0), None, condition, condition, latent, settings)
    assert torch.equal(plain["samples"], off["samples"])
