"""A client of `prance serve`: starts a service, sends it scenes, eight at a time, and reads classes and costs."""

import io
import json
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from agents import AdaptiveViT, ConfidenceAgent, ConfidenceRule
from prance_env import EnvSettings

settings = EnvSettings.from_id("Prance-Digits-v0", split="val")
size = settings.config().space.action_size
small = (*(1.0 for _ in range(size - 1)), 0.25)  # full widths, a quarter of the way from the fewest patches to all
rule = ConfidenceRule("max_prob", (0.5,), ((1.0,) * size, small))  # where the early exit is sure, few patches do
agent = ConfidenceAgent([rule] * 3, settings.config())  # or what `prance train agent` has trained
AdaptiveViT.from_settings(settings, agent).save_pretrained("model")

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
url = f"http://127.0.0.1:{port}"
command = [sys.executable, "-m", "train", "serve", "--model", "model", "--port", str(port)]
service = subprocess.Popen(command, cwd=Path.cwd())


def ask(image: np.ndarray) -> dict:
    """What the service says about pixels (H, W)."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    with urllib.request.urlopen(f"{url}/predict?top=3", png.getvalue()) as answer:
        return json.load(answer)


try:
    while service.poll() is None:
        try:
            print(urllib.request.urlopen(f"{url}/healthz").read().decode())
            break
        except OSError:
            time.sleep(0.2)
    source, index = settings.engine().dataset, np.arange(512)
    scenes, labels = source.fetch(index).numpy()[:, 0], source.labels.numpy()[index]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(ask, scenes))
    print("one of them:", rows[0])
    right = np.mean([row["label"] == label for row, label in zip(rows, labels, strict=True)])
    macs = np.mean([row["macs_fraction"] for row in rows])
    print({"accuracy": round(float(right), 4), "macs": round(float(macs), 4)})
finally:
    service.terminate()  # answers what has arrived, and ends
    service.wait()
