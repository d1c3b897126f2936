"""Write the two ONNX networks beside this file, which stand for YuNet and SFace in the tests.

They have the published files' inputs, outputs and layer types, and weights that let a test foresee every result. The
tests need only the written files; this program also needs the package onnx (written with onnx 1.23.2):

    pip install onnx
    python tests/data/make_networks.py
"""
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
OPSET, IR_VERSION = 11, 6  # of the published files, which OpenCV 4.11 and 5 both read

# For each stride: the colour of its marker as weights of blue, green and red, and the box it gives around the marker's
# cell, width and height in cells. A plain cell of the marker's colour has the score 1.
MARKERS = {8: ((-1, -1, 1), (5, 6)), 16: ((-1, 1, -1), (10, 12)), 32: ((1, -1, -1), (8, 9))}
# eyes, nose and corners of the mouth, x and y in cells from the middle of the marker's cell
POINTS = ((-1.25, -1), (1.25, -1), (0, 0), (-1, 1.5), (1, 1.5))


def yunet() -> onnx.ModelProto:
    """Input [1, 3, 640, 640], blue, green, red in 0..255; cls, obj, bbox and kps for each stride."""
    nodes, weights, outputs = [], [], []

    def constant(name: str, values) -> str:
        weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def head(kind: str, stride: int, weight: np.ndarray, bias: np.ndarray) -> None:
        name = f"{kind}_{stride}"
        channels = len(bias)
        nodes.extend((
            helper.make_node("Conv", [f"mean_{stride}", constant(f"{name}_weight", weight.astype(np.float32)),
                                      constant(f"{name}_bias", bias.astype(np.float32))], [f"{name}_map"],
                             kernel_shape=[1, 1]),
            helper.make_node("Transpose", [f"{name}_map"], [f"{name}_last"], perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", [f"{name}_last", constant(f"{name}_shape", np.array([1, -1, channels]))],
                             [name])))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, (640 // stride)**2, channels]))

    for stride, (colour, size) in MARKERS.items():
        nodes.append(helper.make_node("AveragePool", ["input"], [f"mean_{stride}"], kernel_shape=[stride, stride],
                                      strides=[stride, stride]))
        score = np.array(colour).reshape(1, 3, 1, 1) / 255
        head("cls", stride, score, np.zeros(1))
        head("obj", stride, score, np.zeros(1))
        head("bbox", stride, np.zeros((4, 3, 1, 1)), np.array((0.5, 0.5, *np.log(size))))
        head("kps", stride, np.zeros((10, 3, 1, 1)), np.array(POINTS).ravel() + 0.5)
    return model(nodes, weights, ("input", [1, 3, 640, 640]), outputs)


def sface() -> onnx.ModelProto:
    """data [1, 3, 112, 112], red, green, blue in 0..255 -> fc1 [1, 128]: eight mixed colours of 4 x 4 squares."""
    nodes = [helper.make_node("Conv", ["data", "weight"], ["mixed"], kernel_shape=[1, 1]),
             helper.make_node("AveragePool", ["mixed"], ["squares"], kernel_shape=[28, 28], strides=[28, 28]),
             helper.make_node("Reshape", ["squares", "shape"], ["fc1"])]
    weights = [numpy_helper.from_array(np.cos(np.arange(24)).reshape(8, 3, 1, 1).astype(np.float32), "weight"),
               numpy_helper.from_array(np.array([1, 128]), "shape")]
    outputs = [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, 128])]
    return model(nodes, weights, ("data", [1, 3, 112, 112]), outputs)


def model(nodes, weights, picture: tuple[str, list[int]], outputs) -> onnx.ModelProto:
    taken = helper.make_tensor_value_info(picture[0], TensorProto.FLOAT, picture[1])
    graph = helper.make_graph(nodes, "made", [taken], outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="make_networks.py")
    made.ir_version = IR_VERSION
    onnx.checker.check_model(made, full_check=True)
    return made


if __name__ == "__main__":
    onnx.save(yunet(), HERE / "yunet.onnx")
    onnx.save(sface(), HERE / "sface.onnx")
