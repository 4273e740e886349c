"""The page of a run in a real browser: it shows what the trace holds, and has nothing to complain of.

With ``PICTURES=FOLDER`` a picture of each page is left there.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from project import ROOT
from test_report import MATRIX, Collected

PICTURES = os.environ.get("PICTURES")
BARS = "[...document.querySelectorAll('#trace .barlayer .point')]"


@pytest.fixture
def run(tmp_path):
    """Return a run that left a result."""
    run = Collected(tmp_path / "output/20260101-000000-demo-ab12")
    run.write("result.json", json.dumps({"matrix": MATRIX}))
    return run


@pytest.fixture(params=["demo", "train"])
def traced(request, run):
    """Return a run with the trace of a real one, and the trace's events that took time."""
    text = (ROOT / f"tests/unit/recorded/{request.param}_trace.json").read_text(encoding="utf-8")
    run.write("trace.json", text)
    run.report(trace=True, task="host:0", machine="m3", program=f"{request.param}.py")
    return run, [event for event in json.loads(text)["traceEvents"] if event["ph"] == "X"]


@pytest.fixture
def look(browser):
    """Return a function that opens a run's page, by day or by night, and returns the browser."""

    def look(run, scheme="light", drawn=True):
        browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.open(run.folder / "report.html")
        if drawn:
            browser.wait(f"{BARS}.length > 0")
        if PICTURES:
            Path(PICTURES).mkdir(exist_ok=True)
            browser.picture(Path(PICTURES) / f"{os.environ['PYTEST_CURRENT_TEST'].split('::')[1].split(' ')[0]}-{scheme}.png")
        return browser

    return look


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_the_trace(traced, look, scheme):
    run, events = traced
    browser = look(run, scheme)
    names = browser.value(f"{BARS}.map(bar => bar.querySelector('text').dataset.unformatted)")
    assert Counter(names) == Counter(event["name"].rsplit("/", 1)[-1] for event in events)
    assert browser.complaints == []
    assert browser.requests == [(run.folder / "report.html").as_uri()]  # itself and nothing else


def test_every_bar_is_visible_in_the_lane_of_its_thread(traced, look):
    run, events = traced
    browser = look(run)
    boxes = browser.value(f"{BARS}.map(bar => (box => [box.y, box.width, box.height])(bar.querySelector('path').getBBox()))")
    strokes = browser.value(f"new Set({BARS}.map(bar => bar.querySelector('path').style.strokeWidth)).size")
    assert strokes == 1
    assert all(height > 5 for _y, _width, height in boxes)
    assert len({round(y) for y, _width, _height in boxes}) == len({event["tid"] for event in events})


def test_a_step_can_be_selected(traced, look):
    run, _events = traced
    browser = look(run)
    views = browser.value("document.querySelectorAll('#view option').length")
    begun = browser.value("document.getElementById('trace').layout.xaxis.range[0]")
    browser.value("document.getElementById('next').click()")
    browser.wait(f"document.getElementById('trace').layout.xaxis.range[0] {'!=' if views > 1 else '=='} {begun}")
    chosen = browser.value("document.getElementById('view').selectedOptions[0].textContent")
    assert chosen.startswith("step 1:" if views == 1 else "all")
    assert browser.complaints == []


def test_a_bar_has_a_tooltip(traced, look):
    run, _events = traced
    browser = look(run)
    find = "bar => /^(c|MatMul)$/.test(bar.querySelector('text').dataset.unformatted)"
    box = f"{BARS}.filter({find}).at(-1).querySelector('path').getBoundingClientRect()"
    place = f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})"
    browser.value(f"{BARS}.at(-1).scrollIntoView({{block: 'center'}})")
    x, y = browser.value(place)
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.wait("document.querySelector('#trace .hoverlayer .hovertext')")
    assert "step" in browser.value("document.querySelector('#trace .hoverlayer').textContent")


def test_the_page_of_a_failed_run_shows_the_failure(run, look):
    output = ["step 1", "Traceback (most recent call last):", '  File "x.py", line 1', "ZeroDivisionError: division by zero"]
    run.write("stdout.log", "\n".join(output))
    run.report("the program exited with status 1")
    browser = look(run, drawn=False)
    assert "The program exited with status 1." in browser.value("document.querySelector('.failure').textContent")
    assert browser.value("[...document.querySelectorAll('.error')].map(line => line.textContent)") == output[1:]
    assert browser.value("document.scripts.length") == 0
    assert browser.complaints == []


def test_the_page_runs_only_scripts_of_the_project(traced, look):
    run, _events = traced
    page = run.text("report.html")
    run.write(
        "report.html", page.replace("</body>", "<script>document.title = 'taken'</script><img src=http://192.0.2.1/x></body>")
    )
    browser = look(run)
    assert browser.value("document.title") != "taken"
    assert len(browser.complaints) == 2  # so what a page complains of is seen here


def test_the_page_fits_a_narrow_screen(traced, look, browser):
    run, _events = traced
    browser.ask("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=1, mobile=True)
    try:
        look(run)
        assert browser.value("document.documentElement.scrollWidth") <= 420
    finally:
        browser.ask("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_benchmark_shows_a_heat_map_of_the_links(run, look, scheme):
    names = ["worker:0", "worker:1"]
    links = [{"from": a, "to": b, "gigabytes_per_second": 1.5, "step_milliseconds": 2.0} for a in names for b in names if a != b]
    computed = [{"task": name, "machine": "m1", "device": "CPU:0", "gigaflops": 50.0} for name in names]
    found = {
        "format": "tf-cluster-benchmark-1",
        "tasks": names,
        "links": links,
        "computed": computed,
        "findings": ["<b>slow</b>"],
    }
    run.write("result.json", json.dumps({"benchmark": found}))
    run.report()
    browser = look(run, scheme, drawn=False)
    browser.wait("document.querySelectorAll('#links .heatmaplayer image, #links .heatmaplayer .hm').length > 0")
    assert "<b>slow</b>" in browser.value("document.body.innerText")
    assert browser.complaints == []
    fetched = [address for address in browser.requests if not address.startswith("data:")]  # the cells are a picture in the page
    assert fetched == [(run.folder / "report.html").as_uri()]
