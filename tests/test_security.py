"""What a stranger's workflow cannot do, beside what the tests of the loaders and of the names show."""
import json

import PIL.Image
import pytest

from casting.jobs import plan
from casting.people import Person
from standin_core.errors import UserError
from support.comfyui_server import node_id
from support.environment import PACK

FACE_SWAP = json.loads((PACK / "workflows" / "api" / "face_swap.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("way", ["../secret.mp4", "{folder}/secret.mp4", "inner/../../secret.mp4", "link.mp4"])
def test_a_batch_reads_no_video_outside_of_the_input_folder(tmp_path, way):
    """It would be sent to the machines of a cluster."""
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    inputs, photo = tmp_path / "input", tmp_path / "anna.png"
    (inputs / "inner").mkdir(parents=True)
    (inputs / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (inputs / "inner" / "video.mp4").write_bytes(b"video")
    PIL.Image.new("RGB", (8, 8)).save(photo)

    def contents(name):
        graph = json.loads(json.dumps(FACE_SWAP))
        graph[node_id(graph, "LoadVideo")]["inputs"]["file"] = name
        (job,) = plan(graph, [Person("anna", (photo,))], ["a man nods"], [0], inputs, {})
        return job.contents().values()

    assert b"video" in contents("inner/video.mp4")
    with pytest.raises(UserError, match=r"the workflow loads the video .*(secret|link)\.mp4, which is not in"):
        contents(way.format(folder=tmp_path))
