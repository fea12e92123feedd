"""Runs an adaptive network that `prance export --adaptive` wrote, with numpy and onnxruntime alone.

python run.py IMAGE.npy [PRICE]    # (C, H, W) uint8
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


class AdaptiveModel:
    """Network, policy and menu in one graph.

    Args:
        path: The file that was exported.
        threads: Of the CPU.
    """

    def __init__(self, path: "str | Path", threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["adaptive"])
        self.outputs = [o.name for o in self.session.get_outputs()]

    def __call__(self, image: np.ndarray, price: "float | None" = None) -> "dict[str, np.ndarray]":
        """One image (1, C, H, W), as `about` says it is taken, to logits, picked, patches and macs by name."""
        given, prices = {"image": image}, self.about["prices"]
        if prices is not None:
            if price is None or not prices[0] <= price <= prices[1]:  # which the graph would answer all the same
                raise ValueError(f"price={price} must lie in {prices}, the range that the agent was trained for.")
            given["price"] = np.array(price, np.float64)
        return dict(zip(self.outputs, self.session.run(self.outputs, given), strict=True))


if __name__ == "__main__":
    model = AdaptiveModel(Path(__file__).with_name("model.onnx"))
    image = np.load(sys.argv[1])[None]
    if model.about["takes"] == "float32":
        mean, std = (np.array(model.about[k], np.float32)[:, None, None] for k in ("mean", "std"))
        image = (image / np.float32(255) - mean) / std
    try:
        found = model(image, float(sys.argv[2]) if len(sys.argv) > 2 else None)
    except ValueError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
    name = model.about["classes"][int(found["logits"].argmax())]
    print(name, int(found["macs"]), found["patches"].tolist())
