"""The pictures of docs/how-it-works.md and of the help pages, of the real frontend: `python run.py screenshots`."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from .console import say
from .server import PACK, Server
from .ui import FLAGS, PATCH, PREVIEW, SAMPLER, Ui

HELP = PACK / "js" / "docs" / "images"
MARGIN = 12  # pixels around a node
QUALITY = 88
GRAPH = f"""() => {{
    const widget = (node, name) => node.widgets.find((other) => other.name === name)
    nodeOf({PREVIEW}).pos = [1120, 40]
    nodeOf({PREVIEW}).setSize([430, 640])
    const add = (type, at) => {{
        const node = LiteGraph.createNode(type)
        app.rootGraph.add(node)
        node.pos = at
        return node
    }}
    const words = add('HighlightWords', [360, 900])
    widget(words, 'prompt').value = widget(nodeOf(2), 'text').value
    nodeOf(2).connect(0, words, 0)
    nodeOf(1).connect(1, words, 1)
    words.connect(0, nodeOf({SAMPLER}), 1)
    window.report = add('HighlightReport', [1600, 40])
    nodeOf({PATCH}).connect(1, report, 0)
    nodeOf({SAMPLER}).connect(0, report, 1)
    window.drawn = add('PreviewImage', [1600, 420])
    report.connect(2, drawn, 0)
    widget(nodeOf({PATCH}), 'correct').value = 'always'
}}"""


def take(browser: Browser, server: Server, renderer: str) -> None:
    """One picture of the whole workflow for docs/; of the classic renderer also those of the help pages."""
    ui = Ui(browser, server, renderer)
    ui.load_template(steps=30)
    ui.run(GRAPH)
    ui.queue()
    ui.wait_until_done()
    ui.run("() => app.canvas.ds.reset?.()")
    show(ui, f"nodeOf({PREVIEW})")
    view = ui.view()
    view.press("End")
    while view.current > 1 and "partial" not in view.text("now"):
        view.press("ArrowLeft")
    ui.page.mouse.move(5, 5)
    ui.page.wait_for_timeout(500)
    whole = node_picture(ui, f"nodeOf({SAMPLER})", f"nodeOf({PREVIEW})")
    save(whole, PACK / "docs" / f"preview-{renderer}.jpg")
    if renderer == "classic":
        save(node_picture(ui, f"nodeOf({PREVIEW})"), HELP / "preview.jpg")
        files = ui.run("() => app.nodeOutputs[String(drawn.id)].images")
        save(Image.open(server.path_of(files[0])).convert("RGB"), HELP / "report.jpg")
    ui.close()


def show(ui: Ui, node: str) -> None:
    """Bring a node into the middle of the canvas at its natural size."""
    ui.run(
        f"() => {{ app.canvas.ds.scale = 1; const node = {node};"
        "app.canvas.ds.offset = [850 - node.pos[0] - node.size[0] / 2, 120 - node.pos[1]]; app.canvas.setDirty(true, true) }"
    )
    ui.page.wait_for_timeout(800)


def node_picture(ui: Ui, *nodes: str) -> Image.Image:
    """The part of the page that these nodes take."""
    x0, y0, x1, y1 = ui.run(
        f"() => {{ const boxes = [{', '.join(nodes)}].map((node) => node.boundingRect ?? node.getBounding());"
        "const {scale, offset} = app.canvas.ds, box = app.canvas.canvas.getBoundingClientRect();"
        "const at = (x, y) => [(x + offset[0]) * scale + box.x, (y + offset[1]) * scale + box.y];"
        "return [...at(Math.min(...boxes.map((b) => b[0])), Math.min(...boxes.map((b) => b[1]))),"
        "...at(Math.max(...boxes.map((b) => b[0] + b[2])), Math.max(...boxes.map((b) => b[1] + b[3])))] }"
    )
    shot = Image.open(io.BytesIO(ui.page.screenshot())).convert("RGB")
    left, top = max(0, round(x0 - MARGIN)), max(0, round(y0 - MARGIN))
    return shot.crop((left, top, min(shot.width, round(x1 + MARGIN)), min(shot.height, round(y1 + MARGIN))))


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "JPEG", quality=QUALITY, optimize=True)
    say(f"{path.relative_to(PACK)}: {picture.width}x{picture.height}")


def main() -> int:
    comfyui, chromium = os.environ.get("COMFYUI_PATH"), os.environ.get("CHROMIUM_PATH")
    if not comfyui or not chromium:
        raise SystemExit("screenshots need COMFYUI_PATH and CHROMIUM_PATH; run.py sets both where it finds them")
    with Server(Path(comfyui)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        for renderer in ("classic", "vue"):
            take(browser, server, renderer)
        browser.close()
    return 0
