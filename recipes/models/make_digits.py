"""Makes `digits.onnx` and `../data/digits.npz`: a small network that reads handwritten digits, and samples of them.

The images are the test part of the Optical Recognition of Handwritten Digits data of the UCI repository (E. Alpaydin,
C. Kaynak, 1998; CC BY 4.0), as scikit-learn carries it: 1,797 images of 8 x 8 pixels from 0 to 16. Needs scikit-learn
and onnx; run it from this folder. Both files are committed, so that the recipe needs neither.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

TRAINED = 1437
HERE = Path(__file__).parent


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32)
    network = MLPClassifier((64, 32), random_state=0, max_iter=400).fit(images[:TRAINED], labels[:TRAINED])
    right = network.score(images[TRAINED:], labels[TRAINED:])
    print(f"accuracy on the {len(labels) - TRAINED} images not trained on: {right:.4f}")  # noqa: T201
    onnx.save(graph(network), HERE / "digits.onnx")
    np.savez(HERE.parent / "data" / "digits.npz", pixels=images[TRAINED:])


def graph(network: MLPClassifier) -> onnx.ModelProto:
    """pixels float32 [batch, 64] -> logits float32 [batch, 10]."""
    nodes, weights, last = [], [], "pixels"
    layers = list(zip(network.coefs_, network.intercepts_, strict=True))
    for i, (weight, bias) in enumerate(layers):
        weights += [
            numpy_helper.from_array(weight.astype(np.float32), f"layer{i}.weight"),
            numpy_helper.from_array(bias.astype(np.float32), f"layer{i}.bias"),
        ]
        out = "logits" if i == len(layers) - 1 else f"layer{i}.sum"
        nodes.append(helper.make_node("Gemm", [last, f"layer{i}.weight", f"layer{i}.bias"], [out], f"layer{i}"))
        if out != "logits":
            nodes.append(helper.make_node("Relu", [out], [f"layer{i}.out"], f"layer{i}.relu"))
            last = f"layer{i}.out"
    value = helper.make_tensor_value_info
    whole = helper.make_graph(
        nodes,
        "digits",
        [value("pixels", TensorProto.FLOAT, ["batch", 64])],
        [value("logits", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    main()
