"""The real ComfyUI, its real frontend and Debian's Chromium."""

from collections.abc import Iterator

import pytest
from highlight_diffusion.tools.ui import FLAGS, Ui
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="module")  # no longer: its event loop would be in the way of other tests
def browser(chromium) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture(scope="module", params=["classic", "vue"])
def shared_ui(request, browser, server) -> Iterator[Ui]:
    ui = Ui(browser, server, request.param)
    yield ui
    ui.close()


@pytest.fixture
def ui(shared_ui, request) -> Iterator[Ui]:
    """The page, which keeps an artefact of how each test ended and fails it for any complaint about our files."""
    shared_ui.complaints.clear()
    yield shared_ui
    shared_ui.screenshot(request.node.originalname.removeprefix("test_"))
    assert shared_ui.complaints == []
