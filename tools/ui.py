"""The real frontend in a real browser, and the few things that tests and screenshots do with it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page

from .server import PACK, Server

OURS = ("/extensions/highlight-diffusion/", "highlight_diffusion.")
PATCH, SAMPLER, DECODE, PREVIEW = 5, 6, 7, 9  # ids of the demo template
STEPS = 14
ARTEFACTS = PACK / "out" / "browser"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


class Ui:
    """One page of ComfyUI, drawn by one of its renderers."""

    def __init__(self, browser: Browser, server: Server, renderer: str, theme: str = "dark", locale: str = "en"):
        self.server, self.renderer, self.seed = server, renderer, 0
        settings = {
            "Comfy.VueNodes.Enabled": renderer == "vue", "Comfy.TutorialCompleted": True, "Comfy.Locale": locale,
            "Comfy.ColorPalette": theme, "Comfy.Workflow.Persist": False, "Comfy.VueNodes.AutoScaleLayout": False,
        }  # fmt: skip
        server.open("/settings", json.dumps(settings).encode())
        self.complaints: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": 1700, "height": 1050})
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self._note(f"{error}\n{error.stack}"))
        self.open()

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._note(f"{message.text} {message.location.get('url', '')}")

    def _note(self, text: str) -> None:
        if any(name in text for name in OURS):
            self.complaints.append(text)

    def open(self) -> None:
        """Load the page, or load it again."""
        self.page.goto(f"http://127.0.0.1:{self.server.port}/")
        self.page.wait_for_function("Boolean(window.app?.rootGraph && window.app.extensionManager?.setting)", timeout=120_000)
        self.page.wait_for_function("Boolean(LiteGraph.registered_node_types.HighlightMaskPreview)", timeout=60_000)
        self.run(
            """() => {
                window.told = []
                app.api.addEventListener('highlight_diffusion.run', ({ detail }) => told.push(detail))
                window.viewOf = (node) => node?.widgets?.find((widget) => widget.name === 'highlight_view')?.element
                window.nodeOf = (id) => app.rootGraph.getNodeById(id)
            }"""
        )

    def run(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def wait(self, script: str, argument: Any = None, seconds: float = 30) -> None:
        self.page.wait_for_function(script, arg=argument, timeout=seconds * 1000)

    def load_template(self, **inputs: Any) -> None:
        """Load the demo template as the template browser does, with few steps and a small picture, and with a seed and an area
        that nothing is cached of; `inputs` are widgets of the sampler."""
        self.seed += 1
        fresh = self.seed + 500 * (self.renderer == "vue")
        self.run(
            """async ([inputs, fresh]) => {
                const answer = await fetch('/api/workflow_templates/highlight-diffusion/highlight_demo.json')
                await app.loadGraphData(await answer.json())
                const set = [[4, { width: 256, height: 256 }], [5, { max_area: 0.6 - fresh / 1e6 }], [6, inputs]]
                for (const [id, values] of set)
                    for (const [name, value] of Object.entries(values))
                        nodeOf(id).widgets.find((widget) => widget.name === name).value = value
                told.length = 0
            }""",
            [{"steps": STEPS, "seed": fresh, **inputs}, fresh],
        )
        self.wait("() => viewOf(nodeOf(9))?.isConnected")

    def queue(self) -> None:
        self.run("() => { told.length = 0; window.queued = app.queuePrompt(0) }")

    def wait_until_done(self, runs: int = 1) -> None:
        """Until so many runs were told to their end and the queue is empty."""
        self.wait("(runs) => told.filter((message) => message.done).length >= runs", runs, seconds=60)
        self.wait_until_idle()

    def wait_until_idle(self, seconds: float = 60) -> None:
        """Until nothing runs or waits, and what that sent has been drawn. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while any(self.server.get("/queue").values()):
            if time.monotonic() > end:
                raise TimeoutError(f"the queue was not done within {seconds:.0f} s")
            self.page.wait_for_timeout(100)
        self.page.wait_for_timeout(500)

    def sample(self, **inputs: Any) -> None:
        """Load the template, queue it and wait for the end."""
        self.load_template(**inputs)
        self.queue()
        self.wait_until_done()

    def view(self, node: int = PREVIEW) -> View:
        return View(self, f"nodeOf({node})")

    def screenshot(self, name: str) -> Path:
        """Keep a screenshot under out/browser."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        path = ARTEFACTS / f"{name}-{self.renderer}.png"
        self.page.screenshot(path=path)
        return path

    def close(self) -> None:
        self.page.close()


class View:
    """The widget on a node, which a piece of JavaScript finds."""

    def __init__(self, ui: Ui, node: str):
        self.ui, self.node = ui, node

    def ask(self, script: str) -> Any:
        """What an expression of `element` and `node` gives."""
        return self.ui.run(f"() => {{ const node = {self.node}, element = viewOf(node); return {script} }}")

    def wait(self, script: str, seconds: float = 30) -> None:
        self.ui.wait(
            f"() => {{ const node = {self.node}, element = viewOf(node); return element && ({script}) }}", None, seconds
        )

    def text(self, part: str) -> str:
        return self.ask(f"element.querySelector('.highlight-{part}').textContent")

    @property
    def evaluations(self) -> int:
        return int(self.ask("element.querySelector('.highlight-time').getAttribute('aria-valuemax')") or 0)

    @property
    def current(self) -> int:
        return int(self.ask("element.querySelector('.highlight-time').getAttribute('aria-valuenow')") or 0)

    @property
    def drawn(self) -> str:
        """The picture as it is drawn now."""
        self.ui.page.wait_for_timeout(250)
        return self.ask("element.querySelector('.highlight-stage canvas').toDataURL()")

    @property
    def colours(self) -> int:
        """How many colours the picture has."""
        return self.ask(
            "(() => { const canvas = element.querySelector('.highlight-stage canvas');"
            "const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
            "return new Set(new Uint32Array(data.buffer)).size })()"
        )

    def press(self, key: str) -> None:
        self.ask("element.querySelector('.highlight-time').focus()")
        self.ui.page.keyboard.press(key)
        self.ui.page.wait_for_timeout(150)

    def click_timeline(self, share: float) -> None:
        """A real click, where this share of the timeline is on the screen."""
        box = self.ask(
            "(({ x, y, width, height }) => ({ x, y, width, height }))"
            "(element.querySelector('.highlight-time').getBoundingClientRect())"
        )
        self.ui.page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        self.ui.page.wait_for_timeout(150)

    def toggle(self, layer: str) -> None:
        self.ask(f"element.querySelector('[data-layer={layer}]').click()")

    def options(self, select: int) -> list[str]:
        """The options of a select: 0 the runs, 1 the pictures, 2 the words; none while it is hidden."""
        return self.ask(
            f"(select => select.hidden ? [] : [...select.options].map((option) => option.textContent))"
            f"(element.querySelectorAll('select')[{select}])"
        )

    def choose(self, select: int, option: int) -> None:
        self.ask(
            f"(select => {{ select.selectedIndex = {option}; select.dispatchEvent(new Event('change')) }})"
            f"(element.querySelectorAll('select')[{select}])"
        )
