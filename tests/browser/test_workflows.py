"""Every shipped workflow opens in the real frontend, which makes of it the prompt that the host tests execute."""

from collections.abc import Iterator

import pytest
from highlight_diffusion.tools.server import PACK
from highlight_diffusion.tools.ui import Ui
from highlight_diffusion.tools.workflow import to_prompt

from host import packs

WORKFLOWS = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
OVERLAPS = """() => {
    const boxes = app.rootGraph.nodes.map((node) => {
        const drawn = document.querySelector(`[data-node-id="${node.id}"]`), { scale, offset } = app.canvas.ds
        if (!drawn) return [node, [...node.boundingRect]]
        const { x, y, width, height } = drawn.getBoundingClientRect(), box = app.canvas.canvas.getBoundingClientRect()
        return [node, [(x - box.x) / scale - offset[0], (y - box.y) / scale - offset[1], width / scale, height / scale]]
    })
    const apart = ([x, y, w, h], [u, v, k, l]) => x + w <= u || u + k <= x || y + h <= v || v + l <= y
    return boxes.flatMap(([a, first], i) => boxes.slice(i + 1).filter(([, second]) => !apart(first, second))
        .map(([b, second]) => `${a.id} ${a.title} ${first.map(Math.round)}, ${b.id} ${b.title} ${second.map(Math.round)}`))
}"""
SHOW = """() => {
    const boxes = app.rootGraph.nodes.map((node) => node.boundingRect)
    const [x0, y0] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])))
    const [x1, y1] = [0, 1].map((i) => Math.max(...boxes.map((box) => box[i] + box[i + 2])))
    app.canvas.ds.scale = Math.min(1500 / (x1 - x0), 900 / (y1 - y0))
    app.canvas.ds.offset = [80 / app.canvas.ds.scale - x0, 100 / app.canvas.ds.scale - y0]
    app.canvas.setDirty(true, true)
}"""
OPEN = """async (name) => {
    const answer = await fetch(`/api/workflow_templates/highlight-diffusion/${name}.json`)
    await app.loadGraphData(await answer.json())
    return (await app.graphToPrompt()).output
}"""


@pytest.fixture(scope="module", params=["classic", "vue"])
def page(request, browser, server_of_workflows) -> Iterator[Ui]:
    ui = Ui(browser, server_of_workflows, request.param)
    yield ui
    ui.close()


def executed(prompt: dict) -> dict:
    """A prompt without the titles of its nodes."""
    return {number: (node["class_type"], node["inputs"]) for number, node in prompt.items()}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_frontend_sends_what_the_host_tests_execute(page: Ui, name):
    workflow = page.server.get(f"/api/workflow_templates/highlight-diffusion/{name}.json")
    packs.needed_by(workflow)
    sent, tested = page.run(OPEN, name), to_prompt(workflow, page.server.get("/object_info"))
    assert executed(sent) == executed(tested)
    assert page.complaints == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_node_lies_over_another(page: Ui, name):
    page.run(OPEN, name)
    page.page.wait_for_timeout(600)
    page.run(SHOW)
    page.page.wait_for_timeout(600)
    page.screenshot(f"workflow_{name}")
    assert page.run(OVERLAPS) == []
    assert page.complaints == []
