"""Another language and a light theme."""

from collections.abc import Iterator

import pytest
from highlight_diffusion.tools.ui import PREVIEW, Ui

CONTRAST = """(() => {
    const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    const style = getComputedStyle(element), sides = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b)
    return (sides[1] + 0.05) / (sides[0] + 0.05)
})()"""


@pytest.fixture(scope="module")
def chinese(browser, server) -> Iterator[Ui]:
    ui = Ui(browser, server, "vue", theme="light", locale="zh")
    yield ui
    ui.screenshot("chinese_light")
    ui.close()


def test_nodes_widgets_and_help_speak_chinese(chinese: Ui):
    chinese.load_template()
    view = chinese.view()
    assert "运行工作流" in view.text("hint")
    chinese.wait("() => document.body.textContent.includes('高亮遮罩预览')", seconds=10)
    page = chinese.run("async () => (await fetch('/extensions/highlight-diffusion/docs/HighlightReport/zh.md')).text()")
    assert page.startswith("# 高亮报告")
    assert chinese.complaints == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_legible_in_every_theme(chinese: Ui, theme):
    chinese.run("(theme) => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
    chinese.page.wait_for_timeout(500)
    chinese.view(PREVIEW).wait(f"{CONTRAST} >= 4.5", seconds=10)  # WCAG 2.1, level AA
