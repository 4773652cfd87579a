"""The page in a real browser: nothing fetched, nothing on the console, every figure drawn."""

import shutil

import numpy as np
import pytest
import torch

from zsq.contract import QuantizedTensor
from zsq.measure.gap import gaps_from_rows, rows_from_runs
from zsq.report.build import build_report
from zsq.report.data import ReportData

SOURCES = {"real": 0.0, "dsg": 0.6, "zeroq": 0.9, "deepinversion": 0.8, "noise": 70.0}
STUDENTS = {("lsq-kd", "W4A4"): 87.0, ("lsq-kd", "W2A4"): 77.0, ("ptq", "W4A4"): 84.3, ("ptq", "W8A8"): 88.0}
LAYERS = [f"layer{stage}.{block}.bn{i}" for stage in (1, 2, 3) for block in (0, 1, 2) for i in (1, 2)]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    random = np.random.default_rng(0)
    records = [
        {
            "source": source,
            "shard_set": k,
            "seed": 0,
            "student": student,
            "bits": bits,
            "first_last": 8,
            "options": {},
            "num_images": 256,
            "metrics": {"accuracy": top - lost * (student != "ptq") + random.normal() / 4, "agreement": 90.0},
            "seconds": 40.0,
        }
        for (student, bits), top in STUDENTS.items()
        for source, lost in SOURCES.items()
        for k in range(3)
    ]
    rows = rows_from_runs(records)
    sheets = {s: torch.from_numpy(random.integers(0, 256, (32, 3, 32, 32), dtype=np.uint8)) for s in SOURCES}
    tensors = [QuantizedTensor(f"{name}.weight", "weight", 4, 16, True) for name in LAYERS]
    data = ReportData(
        title="A report in a browser",
        teacher={
            "name": "cifar10:resnet20",
            "weights_sha256": "ab" * 32,
            "accuracy": 88.16,
            "num_outputs": 10,
        },
        settings={"count": 256},
        rows=rows,
        gaps=gaps_from_rows(rows),
        layer_names=LAYERS,
        bn_distance={s: random.lognormal(lost / 20 - 2, 0.3, 18).tolist() for s, lost in SOURCES.items()},
        cost={"dsg": 250.0, "zeroq": 250.0, "deepinversion": 2000.0, "noise": 0.0},
        sheets=sheets,
        quantized_tensors={"lsq-kd W4A4": tensors},
    )
    return build_report(data, tmp_path_factory.mktemp("report"))


@pytest.mark.enable_socket
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_opens_alone_and_draws_everything(browser, report, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_load_state("load")

    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    images = page.eval_on_selector_all("img", "all => all.map(i => [i.complete, i.naturalWidth, i.width])")
    assert len(images) == 4 and all(done and natural > 0 and shown > 0 for done, natural, shown in images)
    boxes = page.eval_on_selector_all("svg", "all => all.map(s => s.getBBox()).map(b => [b.width, b.height])")
    assert len(boxes) == 3 and all(w > 100 and h > 100 for w, h in boxes)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("table").first.locator("tbody tr").count() == 20
    page.close()


@pytest.mark.enable_socket
def test_details_open_and_ink_follows_the_scheme(browser, report):
    inks = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(report.as_uri())
        for summary in page.locator("summary").all():
            summary.click()
        assert page.get_by_text("layer1.0.bn1.weight").is_visible()
        assert page.get_by_text('"count": 256').is_visible()
        text = "svg text"
        inks.append(page.eval_on_selector(text, "t => getComputedStyle(t).fill"))
        assert inks[-1] == page.eval_on_selector("body", "b => getComputedStyle(b).color")
        page.close()
    assert inks[0] != inks[1]
