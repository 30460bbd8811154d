"""Every shipped workflow opens in the real frontend, which makes of it the prompt that the host tests execute."""

from collections.abc import Iterator

import pytest
from highlight_diffusion.tools.server import PACK
from highlight_diffusion.tools.ui import Ui
from highlight_diffusion.tools.workflow import to_prompt

from host import packs

WORKFLOWS = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
OPEN = """async (name) => {
    const answer = await fetch(`/api/workflow_templates/highlight-diffusion/${name}.json`)
    await app.loadGraphData(await answer.json())
    return (await app.graphToPrompt()).output
}"""


@pytest.fixture(scope="module")
def page(browser, server_of_workflows) -> Iterator[Ui]:
    ui = Ui(browser, server_of_workflows, "classic")
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
