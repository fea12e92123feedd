"""The page shows what an evaluation says, needs no network, and answers to mouse and keys in a real browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adaptive_models import price_minded, saved
from command_line import refusal
from helpers import make_engine, settings_for
from image_files import engine_with_a_stand_in

from agents import AdaptiveViT, FullAgent
from prance_env.settings import EnvSettings
from supernet import Supernet
from train.deploy.opening import Opened
from train.deploy.page import TEMPLATE, page_data, run_page
from train.evaluate import evaluate
from train.evaluate.budget import at_price

BROWSER = next((b for name in ("chromium", "chromium-browser", "google-chrome") if (b := shutil.which(name))), None)
IMAGES = 36

# What a reader would do, and what the page then shows.
VISIT = """
<script>
const found = {}, $q = s => [...document.querySelectorAll(s)];
const set = (id, v) => { $(id).value = v; $(id).dispatchEvent(new Event("input")); };
const key = k => (document.activeElement ?? document.body).dispatchEvent(
  new KeyboardEvent("keydown", {key: k, bubbles: true}));
addEventListener("load", () => { try {
  found.cards = $q(".card").length;
  found.summary = $("summary").textContent;
  found.price = $("price").textContent;
  set("budget", 0); found.cheapest = $("price").textContent;
  set("budget", $("budget").max); found.dearest = $("price").textContent;
  set("answer", "wrong"); found.wrong = $q(".card .wrong").length === $q(".card").length && $q(".card").length;
  set("answer", ""); set("class", $("class").options[1].value);
  found.labels = [...new Set($q(".card").map(c => String(D.images[+c.dataset.image].label) === $("class").value))];
  set("class", ""); set("difficulty", "2"); found.difficulty = $q(".card").length;
  set("difficulty", ""); set("order", "up");
  found.sorted = $q(".card").map(c => run().rows[+c.dataset.image].macs).every((v, i, a) => !i || a[i - 1] <= v);
  set("order", ""); set("most", "0"); found.none = $q(".none").length; set("most", "100");
  key("ArrowRight"); key("ArrowRight"); found.focused = document.activeElement.dataset.image;
  key("-"); found.cheaper = $("budget").value; found.stillFocused = document.activeElement.dataset.image;
  document.activeElement.click();
  found.open = $("detail").open; found.steps = $q("#detail figure").length; found.blocks = $q("#detail .big i").length;
  key("ArrowRight"); found.next = $("detailtitle").textContent;
  found.loaded = performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).length;
  found.fits = document.documentElement.scrollWidth <= innerWidth;
} catch (e) { found.error = String(e); }
const pre = document.createElement("pre");
pre.id = "found"; pre.textContent = JSON.stringify(found); document.body.append(pre); });
</script>
"""


@pytest.fixture(scope="module")
def opened(digits_net: Supernet) -> Opened:
    model = price_minded(digits_net)
    settings = settings_for(make_engine(digits_net, IMAGES))
    fields = {**{k: v for k, v in vars(settings).items() if not k.startswith("_") and k != "conditioning"}}
    conditioned = type(settings)(**{**fields, "cost_conditioning": (0.01, 1.0)})
    return Opened(model, lambda: conditioned)


def test_the_page_holds_what_an_evaluation_says(opened: Opened) -> None:
    settings = opened.settings
    assert settings is not None
    data = page_data(opened, settings, settings.engine(), np.arange(IMAGES))
    assert len(data["images"]) == IMAGES
    for run in data["runs"][::3]:
        expected = evaluate(opened.model.agent, at_price(settings, run["price"]))
        assert [row["class"] for row in run["rows"]] == expected.prediction.tolist()
        np.testing.assert_allclose([row["macs"] for row in run["rows"]], expected.macs_fraction, atol=1e-4)
        assert run["accuracy"] == expected.correct.mean()
        for row in run["rows"]:
            bits = [np.unpackbits(np.frombuffer(base64.b64decode(k), np.uint8)).sum() for k in row["kept"]]
            assert bits == row["left"]


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_a_picture_in_the_place_of_a_broken_one_has_its_own_label(tmp_path: Path) -> None:
    engine, labels = engine_with_a_stand_in(tmp_path)
    opened = Opened(AdaptiveViT(engine.net, FullAgent(engine.config)), None)
    data = page_data(opened, settings_for(engine), engine, np.arange(12))
    assert [image["label"] for image in data["images"]] == labels
    assert data["images"][3]["index"] == 4
    right = np.array(data["full"]["prediction"]) == labels
    assert data["full"]["accuracy"] == right.mean()
    assert data["runs"][0]["accuracy"] == np.mean(np.array([r["class"] for r in data["runs"][0]["rows"]]) == labels)


def test_names_of_classes_cannot_end_the_script(opened: Opened) -> None:
    names = ["</script><b>", *"bcdefghij"]
    model = AdaptiveViT(
        opened.model.net, opened.model.agent, conditioning=opened.model.interface.conditioning, names=names
    )
    page = run_page(Opened(model, opened.run), 3)
    assert page.count("</script>") == TEMPLATE.read_text().count("</script>") == 1
    assert not re.findall(r"https?://", page)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium (apt install chromium)")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_reader_can_filter_sort_and_walk_in_a_real_browser(opened: Opened, width: int, tmp_path: Path) -> None:
    page = run_page(opened, IMAGES)
    (tmp_path / "view.html").write_text(page.replace("</body>", VISIT + "</body>"))
    found = visited(tmp_path / "view.html", width)
    assert "error" not in found, found["error"]
    assert found["cards"] == IMAGES
    assert f"{IMAGES} of {IMAGES} val images" in found["summary"]
    assert found["cheapest"] != found["price"] != found["dearest"]
    assert found["wrong"] > 0
    assert found["labels"] == [True]
    assert found["difficulty"] == IMAGES // 3
    assert found["sorted"]
    assert found["none"] == 1
    assert found["focused"] == found["stillFocused"] == "1"
    assert found["cheaper"] == "5"
    assert found["open"]
    assert found["steps"] == 4
    assert found["blocks"] == 10
    assert found["next"].startswith("Image 2:")
    assert found["loaded"] == 0
    assert found["fits"]


def visited(page: Path, width: int) -> dict[str, Any]:
    """What the visit found."""
    assert BROWSER is not None
    words = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        f"--window-size={width},900",
    ]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    done = subprocess.run(
        [BROWSER, *words, profile, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    text = match[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    return dict(json.loads(text))


def test_what_has_no_images_is_refused(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_net: Supernet
) -> None:
    model = saved(opened.model, tmp_path / "model")
    with pytest.raises(ValueError, match="does not know its images"):
        run_page(Opened(model, None))
    assert "pass the run folder" in refusal(monkeypatch, "view", str(tmp_path / "model"))
    assert "There is no folder" in refusal(monkeypatch, "view", str(tmp_path / "none"))
    assert EnvSettings is not None
