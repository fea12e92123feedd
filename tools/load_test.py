"""Many clients at once on a running `prance serve`: what they wait, and whether its memory grows.

    python -m tools.load_test http://127.0.0.1:8000 --clients 200 --seconds 300 --pid PID

Pictures are noise of mixed sizes and formats. Nothing is asked of other machines.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

SIZES = ((48, 48), (96, 128), (224, 224), (300, 500), (640, 480), (1024, 768))
EVERY = 1.0


def pictures(seed: int = 0) -> list[bytes]:
    """Files of mixed sizes and formats."""
    random, files = np.random.default_rng(seed), []
    for i, (height, width) in enumerate(SIZES):
        out = io.BytesIO()
        small = random.integers(0, 255, (height // 8, width // 8, 3), np.uint8)
        Image.fromarray(small).resize((width, height)).save(out, ("PNG", "JPEG", "WEBP")[i % 3])
        files.append(out.getvalue())
    return files


def resident_mb(pid: int) -> float:
    """Memory of a process in MiB, on Linux."""
    line = next(s for s in Path(f"/proc/{pid}/status").read_text().splitlines() if s.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def load(url: str, clients: int, seconds: float, pid: int | None = None, query: str = "") -> dict[str, Any]:
    """Asks for so long, every client one picture after the other on a connection of its own.

    Args:
        url: Of the service.
        clients: How many.
        seconds: How long.
        pid: Process of the service, whose memory is watched; None: nothing is.
        query: After /predict.

    Returns:
        `answers`, `errors` (by kind in `problems`), `per_second`, `p50_ms`, `p99_ms`, `max_ms`, and `memory_mb`, one
        number a second.
    """
    files, place, until = pictures(), urlsplit(url), time.monotonic() + seconds
    times: list[float] = []
    problems: list[str] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)
        turn = number
        while time.monotonic() < until:
            begun = time.monotonic()
            try:
                connection.request("POST", f"/predict{query}", files[turn % len(files)])
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    problems.append(f"{answer.status} {body[:200].decode()}")
            except (OSError, http.client.HTTPException) as e:
                problems.append(repr(e))
                connection.close()
            times.append(time.monotonic() - begun)
            turn += 1
        connection.close()

    threads = [threading.Thread(target=client, args=(i,), daemon=True) for i in range(clients)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    memory = []
    while pid is not None and time.monotonic() < until:
        memory.append(round(resident_mb(pid), 1))
        time.sleep(EVERY)
    for thread in threads:
        thread.join()
    taken = 1e3 * np.array(times)
    return {
        "answers": len(times) - len(problems),
        "errors": len(problems),
        "problems": {p: problems.count(p) for p in sorted(set(problems))[:8]},
        "per_second": round(len(times) / (time.monotonic() - begun), 1),
        "p50_ms": round(float(np.quantile(taken, 0.5)), 1),
        "p99_ms": round(float(np.quantile(taken, 0.99)), 1),
        "max_ms": round(float(taken.max()), 1),
        "memory_mb": memory,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--pid", type=int)
    parser.add_argument("--query", default="")
    options = parser.parse_args()
    result = load(options.url, options.clients, options.seconds, options.pid, options.query)
    memory = result.pop("memory_mb")
    if memory:
        third = max(len(memory) // 3, 1)
        result["memory_mb"] = {"first third": max(memory[:third]), "last third": max(memory[-third:])}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
