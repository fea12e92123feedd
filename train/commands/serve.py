"""`prance serve`."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from importlib.util import find_spec

from ..deploy.listening import bound, serve
from ..deploy.opening import Opened, open_adaptive
from ..options import DatasetOption, Threads, Trust, set_threads
from ..own_modules import Imports

NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Answer over HTTP what pictures show: POST /predict, GET /healthz, /metrics (Prometheus) and a page at /.

    Requests that arrive while the network is busy are computed together. Bound to this machine alone unless --host says
    otherwise; there is no authentication. SIGTERM answers what has arrived, and ends.

    For example:

        prance serve --model runs/agent
        prance serve --model saved --budget 45% --port 9000
        curl --data-binary @cat.jpg 'http://127.0.0.1:8000/predict?top=3'
    """

    model: str
    """Run folder of `prance train agent`, a folder that save_pretrained wrote, or OWNER/NAME of the hub."""
    budget: str | None = None
    """For requests without one: a price, a share of the MACs such as 40%, or milliseconds such as 12ms, of
    one picture on this machine; of a saved model, on the one that it was calibrated on."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is all of them."""
    port: int = 8000
    """Port; 0 takes a free one."""
    menu: bool = False
    """Choose from the model's menu."""
    latency_ms: float = 100
    """A batch should take no longer."""
    batch_size: int = 64
    """Pictures in a batch, at most."""
    waiting: int = 1024
    """Requests that may wait; more are refused with 503."""
    max_mb: float = 10
    """Size of a body, at most."""
    max_megapixels: float = 50
    """Size of a picture before it is brought to size, at most."""
    calibration_images: int = 256
    """Of a run: validation images on which it is measured first what the model spends at which price, so that budgets
    can be shares of the MACs; 0: prices only."""
    checkpoint: str | None = None
    """Of a run: another supernet than that of the training, such as that of prance train joint."""
    dataset: DatasetOption | None = None
    """Of a run: where its images lie now; JSON says anew how they are prepared, too (docs/images.md)."""
    trust: Trust = False
    threads: Threads = 1
    device: str = "cpu"
    """Where the network runs."""
    page: bool = True
    """Whether / shows validation images of a run with what is kept of them."""
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            raise ModuleNotFoundError(f"prance serve needs {', '.join(missing)}: pip install -e '.[serve]'.")
        from agents.deployed.budgets import parse

        from ..deploy.batching import Limits
        from ..deploy.page import run_page
        from ..deploy.service import ServiceSettings, make_service

        self._check()
        place = bound(self.host, self.port)
        set_threads(self.threads)
        timed = 1 if self.budget is not None and parse(self.budget)[1] == "ms" else None
        entries = 16 if self.menu else None
        opened = open_adaptive(
            self.model,
            self.checkpoint,
            self.dataset,
            images=self.calibration_images,
            entries=entries,
            timed=timed,
            trust=self.trust,
            device=self.device,
        )
        limits = Limits(self.latency_ms / 1e3, self.batch_size, self.waiting)
        settings = ServiceSettings(
            self.budget, int(self.max_mb * 2**20), int(self.max_megapixels * 1e6), self.menu, limits
        )
        page = (lambda: run_page(opened)) if self.page and _has_images(opened) else None
        app = make_service(opened.model, settings, page)
        serve(app, place)

    def _check(self) -> None:
        """Refuses limits that no request could keep to."""
        for name, value, least in (
            ("batch-size", self.batch_size, 1),
            ("waiting", self.waiting, 1),
            ("calibration-images", self.calibration_images, 0),
        ):
            if value < least:
                raise ValueError(f"--{name} {value} must be at least {least}.")
        for name, number in (
            ("latency-ms", self.latency_ms),
            ("max-mb", self.max_mb),
            ("max-megapixels", self.max_megapixels),
        ):
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"--{name} {number:g} must be a finite number above 0.")


def _has_images(opened: Opened) -> bool:
    """Whether a page can show validation images; one of a run that has lost them is not worth a refusal."""
    try:
        return opened.settings is not None
    except (ImportError, OSError, ValueError) as e:
        warnings.warn(f"The page at / shows no images: {e}", stacklevel=2)
        return False
