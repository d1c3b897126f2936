"""Who finds a face: real photographs, facexlib's RetinaFace, insightface where it is, and what other nodes found."""
import importlib.util
import re
import sys
import types

import cv2
import numpy as np
import pytest
import torch

import faces
from standin_core.errors import UserError
from standin_core.evaluation.embedders import face_embedder
from standin_core.face.detectors import Face, choose, distinct, load_detector
from standin_core.face.given import given_detector
from standin_core.face.models import YUNET

pytestmark = pytest.mark.usefixtures("models_dir")


def find(photo, name="cascade", min_score=0.5):
    return load_detector(name, min_score).find(photo, 0)


def largest(photo, name="cascade"):
    return choose(find(photo, name), "largest", 0)[0]


def assert_box(found, expected, tolerance):
    """Every edge within a share of the box's side."""
    side = max(expected[2] - expected[0], expected[3] - expected[1])
    assert max(abs(a - b) for a, b in zip(found, expected)) <= tolerance * side, (found, expected)


# How far two boxes of one face may lie apart: the cascade's is the mean of squares found a tenth apart in size, cut to
# the share of the square that a face was read to fill (measured: 0.12).
BY_EYE = 0.15


def test_cascade_finds_the_astronaut():
    assert_box(largest(faces.astronaut()).box, faces.FACE_BOX, BY_EYE)


def test_points_of_a_box_lie_on_the_face():
    """The cascade has none; those estimated from its box are near those read off the photo."""
    face = largest(faces.astronaut())
    assert face.keypoints is None
    eye_distance = np.linalg.norm(faces.KEYPOINTS[1] - faces.KEYPOINTS[0])
    assert np.abs(face.points - faces.KEYPOINTS).max() < 0.35 * eye_distance


@pytest.mark.parametrize("scale", [0.5, 2, 16])
def test_the_size_of_the_photo_does_not_matter(scale):
    """Up to 8k; a large photo is searched on a small copy and the box is in its own pixels."""
    photo = cv2.resize(faces.astronaut(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    assert_box([edge / scale for edge in largest(photo).box], faces.FACE_BOX, BY_EYE)


@pytest.mark.parametrize("degrees", [-8, 8])
def test_a_tilted_head(degrees):
    photo, points = faces.turned(faces.astronaut(), degrees)
    left, top, right, bottom = largest(photo).box
    assert all(left < x < right and top < y < bottom for x, y in points)


def test_a_grey_photo():
    grey = cv2.cvtColor(faces.astronaut(), cv2.COLOR_RGB2GRAY)
    assert_box(largest(np.repeat(grey[..., None], 3, axis=-1)).box, faces.FACE_BOX, BY_EYE)


def test_two_faces():
    """Side by side, the right one smaller."""
    photo = faces.astronaut()
    small = cv2.resize(photo, (400, 400), interpolation=cv2.INTER_AREA)
    both = np.full((512, 912, 3), 255, np.uint8)
    both[:, :512], both[:400, 512:] = photo, small
    right = [edge * 400 / 512 + shift for edge, shift in zip(faces.FACE_BOX, (512, 0, 512, 0))]
    found = find(both)
    assert_box(choose(found, "largest", 0)[0].box, faces.FACE_BOX, BY_EYE)
    first, second = choose(found, "all", 0)
    assert_box(first.box, faces.FACE_BOX, BY_EYE)
    assert_box(second.box, right, BY_EYE)
    assert choose(found, "from left", 1) == [second]
    with pytest.raises(UserError, match="face_index is 2, but the faces found have the numbers 0 to 1"):
        choose(found, "from left", 2)


def far_away():
    """The astronaut in a corner of a photo four times as large: a face of 5 % of it."""
    photo = np.full((2048, 2048, 3), 255, np.uint8)
    photo[:512, :512] = faces.astronaut()
    return photo


def test_a_small_face():
    (face,) = find(far_away())
    assert_box(face.box, faces.FACE_BOX, BY_EYE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (23, 23), (40, 2000)])
def test_a_photo_too_small_for_a_face(shape):
    assert find(np.zeros((*shape, 3), np.uint8)) == []


def not_installed(monkeypatch, *names):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find_spec(name))


def test_auto_goes_on_without_optional_packages(monkeypatch):
    """A broken install costs the detector, not the node."""
    not_installed(monkeypatch, "facexlib", "skimage", "insightface")
    detector = load_detector("auto", 0.5)
    assert detector.name == "none" and detector.find(faces.astronaut(), 0) == []
    assert [note.partition(" not used: ")[0] for note in detector.notes] == [
        "retinaface", "insightface", "yunet", "cascade"]
    with pytest.raises(UserError, match="cascade cannot run: scikit-image is not installed"):
        load_detector("cascade", 0.5)
    with pytest.raises(UserError, match="insightface cannot run: insightface is not installed"):
        load_detector("insightface", 0.5)


def put_retinaface(models_dir, folder="facexlib"):
    (models_dir / folder).mkdir(parents=True, exist_ok=True)
    weights = {f"module.{key}": value for key, value in faces.retinaface_weights().items()}
    torch.save(weights, models_dir / folder / "detection_Resnet50_Final.pth")


def test_retinaface_is_taken_where_its_file_is(models_dir):
    put_retinaface(models_dir)
    photo = cv2.resize(faces.astronaut(), (96, 96), interpolation=cv2.INTER_AREA)
    detector = load_detector("auto", 0.5)
    assert (detector.name, detector.notes, detector.has_keypoints) == ("retinaface", (), True)
    found = detector.find(photo, 0)
    assert found and all(face.score > 0.99 and face.keypoints.shape == (5, 2) for face in found)
    assert all(0 <= x < 96 and 0 <= y < 96 for x, y in (face.centre for face in found))


def test_retinaface_is_facexlibs(models_dir):
    """Box, score and points are what the library itself returns for the picture, as OpenCV has it."""
    from facexlib.detection.retinaface import RetinaFace

    put_retinaface(models_dir)
    photo = cv2.resize(faces.astronaut(), (96, 96), interpolation=cv2.INTER_AREA)
    network = RetinaFace(network_name="resnet50", device=torch.device("cpu"))
    network.load_state_dict(faces.retinaface_weights())
    rows = network.eval().detect_faces(photo[..., ::-1].copy(), conf_threshold=0.5)
    expected = {tuple(int(edge) for edge in row[:4]): row for row in rows}
    found = find(photo, "retinaface")
    assert 0 < len(found) <= len(rows)
    for face in found:
        row = expected[face.box]
        assert face.score == float(row[4])
        assert np.array_equal(face.keypoints.ravel(), row[5:].astype(np.float64))


def test_min_score(models_dir):
    put_retinaface(models_dir)
    photo = cv2.resize(faces.astronaut(), (96, 96), interpolation=cv2.INTER_AREA)
    assert find(photo, "retinaface", 0.99)
    assert find(photo, "retinaface", 0.99999) == []  # the heads say softmax(-5, 5) = 0.99995


@pytest.mark.parametrize("colour", faces.MARKERS)
def test_yunet(models_dir, colour):
    """Box, key points and score of a face in a photo that is no multiple of 32; the colours tell blue from red."""
    faces.put(models_dir, YUNET)
    stride, width, height = faces.MARKERS[colour]
    detector = load_detector("yunet", 0.5)
    (face,) = detector.find(faces.marked(303, 217, (colour, 160, 96, stride)), 0)
    middle = np.array([160, 96]) + stride / 2
    assert face.box == (*(middle - np.array([width, height]) * stride / 2),
                        *(middle + np.array([width, height]) * stride / 2))
    assert np.allclose(face.keypoints, middle + faces.MARKER_POINTS * stride, atol=1e-4)
    assert face.score == pytest.approx(1, abs=1e-6) and (detector.name, detector.has_keypoints) == ("yunet", True)


def test_yunet_on_a_large_photo(models_dir):
    """It sees the photo at 640 px, where a face of 40 x 48 px is one of 80 x 96 px in a photo of 1280."""
    faces.put(models_dir, YUNET)
    (face,) = find(faces.marked(1280, 720, ("red", 320, 320, 16)), "yunet")
    assert face.box == (328 - 40, 328 - 48, 328 + 40, 328 + 48)
    assert np.allclose(face.keypoints, 328 + 16 * faces.MARKER_POINTS, atol=1e-3)


def test_yunet_sees_a_face_that_fills_the_photo(models_dir):
    """A face of more than 300 px at 640 is out of its reach there, and within it at 320."""
    faces.put(models_dir, YUNET)
    photo = faces.marked(640, 480, ("green", 320, 256, 32), ("red", 64, 64, 8))
    (face,) = find(photo, "yunet")
    assert face.box == (336 - 160, 272 - 192, 336 + 160, 272 + 192)
    (small,) = find(faces.marked(640, 480, ("red", 64, 64, 8)), "yunet")
    assert small.box == (68 - 20, 68 - 24, 68 + 20, 68 + 24)
    (near,) = find(faces.marked(640, 480, ("red", 64, 64, 16)), "yunet")  # 96 px high on the copy of 320
    assert near.box[3] - near.box[1] == 48


def test_yunets_score(models_dir):
    faces.put(models_dir, YUNET)
    photo = faces.marked(320, 320, ("red", 160, 160, 8), brightness=204)
    (face,) = find(photo, "yunet", 0.75)
    assert face.score == pytest.approx(204 / 255, abs=1e-6)
    assert find(photo, "yunet", 0.85) == find(np.full_like(photo, 255), "yunet", 0.05) == []


def test_yunet_in_a_photo_too_small_for_a_face(models_dir):
    faces.put(models_dir, YUNET)
    assert [find(np.zeros((*shape, 3), np.uint8), "yunet") for shape in ((1, 1), (1, 300), (40, 2000))] == [[], [], []]


def test_yunet_comes_after_retinaface_and_before_the_cascade(models_dir):
    faces.put(models_dir, YUNET)
    detector = load_detector("auto", 0.5)
    assert detector.name == "yunet"
    assert [note.partition(" not used: ")[0] for note in detector.notes] == ["retinaface", "insightface"]
    put_retinaface(models_dir)
    assert load_detector("auto", 0.5).name == "retinaface"


def test_a_crop_by_yunet(models_dir):
    """The whole stage: the face is found, measured and levelled by its key points."""
    faces.put(models_dir, YUNET)
    crop = faces.crop(faces.marked(320, 320, ("red", 160, 160, 8)), size=64, level_eyes=True, parser="none")
    assert crop.verdict.startswith("face of 40x48 px") and "roll 0°, yaw 0°, by yunet: turned by" in crop.verdict
    assert crop.faces[0].measured


def test_insightface(models_dir):
    """SCRFD's outputs, from a network made here that sees one face of 80 px around the middle of the picture. Runs
    where the optional packages are (passed with insightface 2.1 and onnxruntime 1.31).
    """
    pytest.importorskip("insightface")
    onnx = pytest.importorskip("onnx")
    (models_dir / "insightface" / "models" / "tiny").mkdir(parents=True)
    _write_scrfd(onnx, models_dir / "insightface" / "models" / "tiny" / "det_tiny.onnx")
    photo = np.zeros((640, 640, 3), np.uint8)
    detector = load_detector("insightface", 0.5)
    (face,) = detector.find(photo, 0)
    assert face.box == (320 - 40, 320 - 40, 320 + 40, 320 + 40)
    assert np.allclose(face.keypoints, [[300, 300], [340, 300], [320, 320], [305, 340], [335, 340]])
    assert face.score > 0.9 and detector.has_keypoints


def changed(onnx, content, change):
    model = onnx.load_from_string(content)
    change(model)
    return model.SerializeToString()


UNFIT = {  # of a file that onnxruntime reads: what becomes of it
    "cut": lambda onnx, good: good[:len(good) // 2], "empty": lambda onnx, good: b"",
    "a page": lambda onnx, good: b"<html>not found</html>", "zeros": lambda onnx, good: bytes(1000),
    "another network": lambda onnx, good: changed(onnx, good, lambda model: model.graph.output.__delitem__(
        slice(3, 9))),
    "of an opset to come": lambda onnx, good: changed(onnx, good, lambda model: setattr(
        model.opset_import[0], "version", 99)),
    "of a format to come": lambda onnx, good: changed(onnx, good, lambda model: setattr(model, "ir_version", 99)),
    "with an operator to come": lambda onnx, good: changed(onnx, good, lambda model: setattr(
        model.graph.node[0], "op_type", "Later"))}


@pytest.mark.parametrize("which", ["detector", "embedder"])
@pytest.mark.parametrize("what", UNFIT)
def test_a_file_that_insightface_cannot_run(models_dir, what, which):
    """Runs where the optional packages are, as above."""
    pytest.importorskip("insightface")
    onnx = pytest.importorskip("onnx")
    folder = models_dir / "insightface" / "models" / "tiny"
    folder.mkdir(parents=True)
    _write_scrfd(onnx, folder / "det_tiny.onnx")
    file = folder / ("det_tiny.onnx" if which == "detector" else "w600k_tiny.onnx")
    file.write_bytes(UNFIT[what](onnx, (folder / "det_tiny.onnx").read_bytes()))
    words = (rf"^{file.name} is broken, another model, or one that the installed onnxruntime cannot run \(.+\): move "
             rf"{file} away, and get its model pack again \(antelopev2\.zip or buffalo_l\.zip, from https://.*\), or "
             r"update insightface and onnxruntime if it is new\.$")
    with pytest.raises(UserError, match=words):
        load_detector("insightface", 0.5) if which == "detector" else face_embedder("insightface", 0.5)


@pytest.fixture
def insightface_with(models_dir, monkeypatch):
    """A function that makes a package of this name with a model pack, in whose place any other is passed over."""
    folder = models_dir / "insightface" / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "det_tiny.onnx").touch()
    packages = models_dir / "packages"
    monkeypatch.syspath_prepend(packages)
    for name in [each for each in sys.modules if each.partition(".")[0] in ("insightface", "onnxruntime")]:
        monkeypatch.delitem(sys.modules, name)

    def make(model_zoo: str) -> None:
        for file, code in (("insightface/__init__.py", ""), ("insightface/model_zoo.py", model_zoo),
                           ("onnxruntime/__init__.py", "")):
            (packages / file).parent.mkdir(parents=True, exist_ok=True)
            (packages / file).write_text(code, encoding="utf-8")

    yield make
    for name in ("insightface.model_zoo", "insightface", "onnxruntime"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("code, words", [("import a_package_of_its", "No module named 'a_package_of_its'"),
                                         ("raise ImportError('DLL load failed')", "DLL load failed"),
                                         # as packages that were compiled for another NumPy do
                                         ("raise ValueError('numpy.dtype size changed')", "numpy.dtype size changed"),
                                         ("raise AttributeError('no numpy.int')", "no numpy.int")])
def test_insightface_without_a_package_that_it_needs(insightface_with, code, words):
    insightface_with(code)
    assert f"insightface not used: insightface cannot be imported: {words}" in load_detector("auto", 0.5).notes
    with pytest.raises(UserError, match=rf"^insightface cannot run: insightface cannot be imported: {words} \(install"):
        load_detector("insightface", 0.5)


def test_a_lack_of_memory_is_no_damage(insightface_with):
    """ComfyUI knows what to do about it."""
    insightface_with("def get_model(path, providers): raise MemoryError")
    with pytest.raises(MemoryError):
        load_detector("insightface", 0.5)


def test_a_damaged_file_of_insightface_is_to_be_moved_away(insightface_with, models_dir):
    insightface_with("def get_model(path, providers): raise IndexError('out of range')")
    file = models_dir / "insightface" / "models" / "tiny" / "det_tiny.onnx"
    words = f"onnxruntime cannot run (out of range): move {file} away, and get its model pack again (antelopev2.zip"
    with pytest.raises(UserError, match=re.escape(words)):
        load_detector("insightface", 0.5)


def _write_scrfd(onnx, path):
    """Nine outputs (score, distances to the box, offsets of points, for strides 8, 16, 32), constant; input 640."""
    nodes, outputs = [], []
    cell = 40 * 80 + 40  # stride 8: the anchor at (320, 320), two for each place
    for kind, width in (("score", 1), ("box", 4), ("points", 10)):
        for stride in (8, 16, 32):
            values = np.zeros(((640 // stride)**2 * 2, width), np.float32)
            if stride == 8:
                points = np.array([[-20, -20], [20, -20], [0, 0], [-15, 20], [15, 20]], np.float32)
                values[2 * cell] = {"score": 0.95, "box": 5.0, "points": points.ravel() / 8}[kind]
            name = f"{kind}_{stride}"
            constant = onnx.numpy_helper.from_array(values, f"{name}_value")
            nodes.append(onnx.helper.make_node("Constant", [], [f"{name}_constant"], value=constant))
            # the graph must read its input
            nodes.append(onnx.helper.make_node("Add", [f"{name}_constant", "nothing"], [name]))
            outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(values.shape)))
    zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    head = [onnx.helper.make_node("Constant", [], ["zero"], value=zero),
            onnx.helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
            onnx.helper.make_node("Mul", ["mean", "zero"], ["nothing"])]
    picture = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = onnx.helper.make_graph(head + nodes, "scrfd", [picture], outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)


def given(index=0, boxes=None, mask=None, landmarks=None, pictures=(3, 100, 200)):
    return given_detector(pictures, boxes, mask, landmarks).find(np.zeros((*pictures[1:], 3), np.uint8), index)


def box(x, y, width, height, **more):
    return {"x": x, "y": y, "width": width, "height": height, **more}


def test_boxes_as_comfyui_has_them():
    """One box, the boxes of one picture, or a list for each picture (DrawBBoxes reads the same three)."""
    assert given(boxes=box(10, 20, 30, 40))[0].box == (10, 20, 40, 60)
    assert [face.box for face in given(boxes=[box(0, 0, 9, 9), box(5, 5, 9, 9)])] == [(0, 0, 9, 9), (5, 5, 14, 14)]
    each = [[box(0, 0, 9, 9, score=0.7)], [], [box(5, 5, 9, 9)]]
    assert given(boxes=each)[0].score == 0.7
    assert given(boxes=each, index=1) == []
    assert given(boxes=each, index=2)[0].box == (5, 5, 14, 14)
    assert given(boxes=[]) == []
    with pytest.raises(UserError, match="face_box has 3 entries and there are more photos"):
        given(boxes=each, index=3)


def test_a_box_may_reach_out_of_the_photo():
    """As in the authors' code, where the square around it is cut."""
    assert given(boxes=box(-10, 90, 30.5, 40))[0].box == (-10, 90, 20, 130)
    assert given(boxes=box(300, 300, 30, 40)) == []
    assert given(boxes=box(10, 10, 0, 5)) == []


def test_a_mask_gives_its_bounds():
    mask = torch.zeros(100, 200)
    mask[20:61, 30:50] = 1
    mask[0, 0] = 0.4
    assert given(mask=mask)[0].box == (30, 20, 50, 61)
    assert given(mask=torch.zeros(1, 100, 200)) == []
    assert given(mask=mask.bfloat16())[0].box == (30, 20, 50, 61)
    with pytest.raises(UserError, match=r"face_mask must be of .* size, \[3, 100, 200\] .*, but is \[1, 50, 50\]"):
        given(mask=torch.ones(1, 50, 50))


def test_mediapipes_landmarks():
    points = np.array([[90, 40], [110, 42], [100, 52], [93, 60], [107, 61]], np.float64)
    (face,) = given(landmarks=faces.landmarks([(points, 0.8)], size=(100, 200)))
    assert np.allclose(face.keypoints, points) and face.score == 0.8
    assert given(landmarks=faces.landmarks([(points, 0.8)], [], size=(100, 200)), index=1) == []
    with pytest.raises(UserError, match="face_landmarks were found in a picture of 512x512, but this one is 200x100"):
        given(landmarks=faces.landmarks([(points, 0.8)]))


# x and y (up) of MediaPipe's canonical_face_model.obj at the corners of the eyes, the nose's tip, the mouth's corners
CANONICAL = {33: (-4.445859, 2.663991), 133: (-1.856432, 2.585245), 362: (1.856432, 2.585245),
             263: (4.445859, 2.663991), 1: (0.0, -1.126865), 61: (-2.456206, -4.342621), 291: (2.456206, -4.342621)}


def test_the_vertices_of_mediapipes_mesh():
    """The published face, in a picture: each eye's middle, from the viewer's left to right and from top to bottom."""
    mesh = np.zeros((478, 2))
    for vertex, (x, y) in CANONICAL.items():
        mesh[vertex] = 100 + 10 * x, 50 - 10 * y
    found = {"bbox_xyxy": (50, 0, 150, 100), "score": 1.0, "landmarks_xy": mesh}
    (face,) = given(landmarks={"frames": [[found]], "image_size": (100, 200)})
    expected = [[-3.151146, 2.624618], [3.151146, 2.624618], [0, -1.126865], [-2.456206, -4.342621],
                [2.456206, -4.342621]]
    assert np.allclose(face.keypoints, [(100 + 10 * x, 50 - 10 * y) for x, y in expected], rtol=0, atol=1e-4)


def test_comfyuis_own_landmarker_speaks_this_format(monkeypatch):
    """Core's node with a found face in the place of its networks: for a frame without one it copies the fields that it
    knows from the frame before, and they are those that are read here."""
    media = pytest.importorskip("comfy_extras.nodes_mediapipe")
    points = np.array([[90, 40], [110, 42], [100, 52], [93, 60], [107, 61]], np.float64)
    (seen,) = faces.landmarks([(points, 0.8)])["frames"][0]
    seen |= {"blendshapes": {}, "landmarks_3d": np.zeros((478, 3)), "presence": 1.0}
    monkeypatch.setattr(media, "transformation_matrix_from_detection", lambda *_: None)
    model = types.SimpleNamespace(canonical_data={}, connection_sets={}, detect_batch=lambda *_, **__: [[seen], []])
    pictures = 2, 100, 200
    found = media.MediaPipeFaceLandmarker.execute(model, torch.zeros(*pictures, 3), "short", 1, 0.5, "previous").args[0]
    (face,) = given(index=1, landmarks=found, pictures=pictures)
    assert np.allclose(face.keypoints, points) and face.score == 0.8


def test_only_one_thing_is_given():
    with pytest.raises(UserError, match="only one of face_box and face_mask can be read"):
        given(boxes=box(0, 0, 9, 9), mask=torch.ones(100, 200))
    assert given_detector((1, 100, 200), None, None, None) is None


def test_a_face_moves_and_scales_with_its_points():
    face = Face((10, 20, 30, 60), 0.9, np.full((5, 2), 20.0))
    moved, scaled = face.moved(-5, 10), face.scaled(2)
    assert (moved.box, moved.score) == ((5, 30, 25, 70), 0.9) and (moved.keypoints == (15, 30)).all()
    assert scaled.box == (20, 40, 60, 120) and (scaled.keypoints == 40).all()


def test_one_face_counts_once():
    """The largest of the boxes around one face is kept; two faces stay two."""
    inner, outer, beside = Face((12, 12, 40, 44)), Face((10, 8, 44, 50)), Face((60, 10, 90, 45))
    assert distinct([inner, beside, outer]) == [outer, beside]
