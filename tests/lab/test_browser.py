"""The examples of interactive programs, in a real browser: TensorBoard shows curves, JupyterLab computes on the cluster."""

import json
import os
import re
import time
from pathlib import Path

from conftest import ROOT, folder_of, said, verdict
from project import load
from terminal import on_terminal

browser = load("tests/browser/conftest.py").browser
PICTURES = os.environ.get("PICTURES")  # a folder for a picture of each page

CURVE = """
import math, os, sys, time
import tensorflow as tf

steps, seconds = int(sys.argv[1]), float(sys.argv[2])
with tf.summary.create_file_writer(os.environ["TF_RUN_DIR"]).as_default():
    for step in range(steps):
        tf.summary.scalar("loss", math.exp(-step / steps * 3), step)
        tf.summary.flush()
        time.sleep(seconds)
"""
# The columns of a picture that have a pixel of a colour, as a share of the picture's width.
COLUMNS = """(async () => {
  const bytes = Uint8Array.from(atob('%s'), each => each.charCodeAt(0)), colour = '%s'.match(/\\d+/g);
  const picture = await createImageBitmap(new Blob([bytes], {type: 'image/png'}));
  const context = new OffscreenCanvas(picture.width, picture.height).getContext('2d');
  context.drawImage(picture, 0, 0);
  const data = context.getImageData(0, 0, picture.width, picture.height).data, found = new Set();
  for (let i = 0; i < data.length; i += 4)
    if ([0, 1, 2].every(c => Math.abs(data[i + c] - colour[c]) < 16)) found.add((i / 4) %% picture.width);
  return found.size / picture.width;
})()"""
CHART = "document.querySelector('scalar-card line-chart')"
SWATCHES = "[...document.querySelectorAll('.run-color-swatch')].map(each => getComputedStyle(each).backgroundColor)"


def start(cluster, program, seconds=300, **variables):
    """Start a detached run and return its ID."""
    given = json.dumps({"program": str(program), "detach": True, **variables})
    done = cluster.playbook("playbooks/run.yml", f"--extra-vars={given}", seconds=seconds)
    assert done.returncode == 0, said(done)
    return re.search(r"The run (\S+) continues", said(done))[1]


def forward(cluster, browser, run, port, use):
    """Forward a port on a terminal, let ``use`` use its URL, press Ctrl-C, and return what was printed."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MOLECULE_"))}
    settings |= {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "TERM": "xterm"}
    command = [
        "ansible-playbook",
        *cluster.inventory,
        "playbooks/forward.yml",
        f"--extra-vars=run={run}",
        f"--extra-vars=port={port}",
    ]

    def press(text):
        try:
            use(re.search(r"http://127\.0\.0\.1:\S+", text)[0])
        finally:
            if PICTURES:
                Path(PICTURES).mkdir(exist_ok=True)
                browser.picture(Path(PICTURES) / f"{port}.png")
        return b"\x03"

    status, text = on_terminal(command, ROOT, settings, "press Ctrl-C", press, seconds=300)
    assert status == 0, text
    assert f"the forward of port {port} is closed" in text
    return text


def cancel(cluster, run):
    """Cancel a run and return its verdict and its folder on the controller."""
    done = cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={run}")
    assert done.returncode == 0, said(done)
    return verdict(folder_of(done)), folder_of(done)


def test_tensorboard_shows_a_finished_run_and_a_running_run(cluster, browser, tmp_path):
    (tmp_path / "curve.py").write_text(CURVE, encoding="utf-8")
    done, _folder = cluster.run(tmp_path / "curve.py", "--extra-vars", json.dumps({"program_args": "50 0"}))
    assert done.returncode == 0, said(done)
    finished = verdict(folder_of(done))["run_id"]
    running = start(cluster, tmp_path / "curve.py", program_args="10000 1")
    # The run that is running has all tasks: TensorBoard needs none.
    board = start(cluster, ROOT / "examples/tensorboard", run_tasks=0, program_args=[finished, running])

    def use(url):
        deadline, shares = time.monotonic() + 90, [0]
        while min(shares) < 0.2 and time.monotonic() < deadline:
            browser.open(url)  # the curve of the run that is running has grown
            browser.wait(f"['{finished}', '{running}'].every(run => document.body.innerText.includes(run))")
            browser.wait(f"{CHART} && {SWATCHES}.length >= 2")
            time.sleep(3)  # until it is drawn
            box = browser.value(f"{CHART}.getBoundingClientRect().toJSON()")
            clip = {name: box[name] for name in ("x", "y", "width", "height")} | {"scale": 1}
            picture = browser.ask("Page.captureScreenshot", clip=clip)["data"]
            shares = [browser.value(COLUMNS % (picture, colour)) for colour in browser.value(SWATCHES)]
        assert min(shares) >= 0.2, shares  # the curve of each run
        assert len(shares) == 2

    try:
        forward(cluster, browser, board, 6006, use)
    finally:
        cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={board},{running}")


def test_a_notebook_computes_on_the_cluster(cluster, browser, tmp_path):
    begun = time.monotonic()
    requirements = ROOT / "examples/jupyterlab/requirements.txt"
    run = start(cluster, ROOT / "examples/jupyterlab", program_requirements=str(requirements))
    result = "/job:worker/replica:0/task:1/device:CPU:0 [[7.0, 10.0], [15.0, 22.0]]"
    took = []

    def use(url):
        browser.open(url)
        browser.wait("document.body.innerText.includes('Python 3 (ipykernel) | Idle')")
        for prompt in (f"document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')[{number}]" for number in range(2)):
            deadline = time.monotonic() + 60
            while browser.value(f"{prompt}.innerText") == "[ ]:" and time.monotonic() < deadline:
                browser.click(prompt)
                browser.press("Enter", 13, modifiers=8)  # with Shift: runs the cell
                time.sleep(1)
        browser.wait(f"[...document.querySelectorAll('.jp-OutputArea-output')].some(each => each.innerText.includes('{result}'))")
        took.append(time.monotonic() - begun)
        browser.press("s", 83, modifiers=2)  # with Ctrl: saves the notebook
        browser.wait("!document.querySelector('.jp-mod-dirty')")

    try:
        forward(cluster, browser, run, 8888, use)
    finally:
        found, folder = cancel(cluster, run)
    print(f"seconds from the command to the first result of the notebook: {took[0]:.1f}")
    assert found["result"] == {"device": "/job:worker/replica:0/task:1/device:CPU:0", "product": [[7.0, 10.0], [15.0, 22.0]]}
    assert result in (folder / "first_steps.ipynb").read_text(encoding="utf-8")
