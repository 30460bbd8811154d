"""The advanced settings of a node are folded, in the classic renderer by us, in Nodes 2.0 by ComfyUI."""

import pytest
from highlight_diffusion.tools.ui import PATCH, Ui

ADVANCED = [
    "interval", "pace", "warmup", "start_percent", "end_percent", "threshold", "halo", "levels", "max_area", "forecast",
    "memory", "control", "shallow", "speed", "fidelity", "learn",
]  # fmt: skip
SEEN = ["enabled", "preset", "correct"]
LINE = "highlight_fold"
ROW = 24
HELP = """() => {
    window.seen = (node) => node.widgets.filter((widget) => node.isWidgetVisible(widget)).map(({ name }) => name)
    window.widgetOf = (node, name) => node.widgets.find((widget) => widget.name === name)
    window.frameOf = (node) => document.querySelector(`[data-node-id="${node.id}"]`)
}"""


def load(ui: Ui, workflow: dict | None = None) -> None:
    """Load a saved workflow, by default the demo template as it is shipped."""
    ui.run(HELP)
    ui.run("(workflow) => app.loadGraphData(workflow)", workflow or template(ui))
    ui.wait(f"() => nodeOf({PATCH})")
    settle(ui)


def settle(ui: Ui) -> None:
    """Until what was changed has been drawn."""
    ui.run("() => app.canvas.setDirty(true, true)")
    ui.page.wait_for_timeout(400)


def template(ui: Ui) -> dict:
    return ui.server.get("/api/workflow_templates/highlight-diffusion/highlight_demo.json")


def shown(ui: Ui, node: str = f"nodeOf({PATCH})") -> list[str]:
    """The settings that are to be seen on a node, as its renderer draws them."""
    if ui.renderer == "classic":
        return [name for name in ui.run(f"() => seen({node})") if name not in (LINE, "highlight_view")]
    return ui.run(
        f"""() => {{
            const parts = [...frameOf({node}).querySelectorAll(`[data-testid="node-widget"] *`)]
            const texts = parts.map((part) => part.textContent.trim())
            return {node}.widgets.map(({{ name }}) => name).filter((name) => texts.includes(name))
        }}"""
    )


def press(ui: Ui) -> None:
    """A real click on what opens and closes the fold of the patch node."""
    ui.run(f"() => {{ app.canvas.ds.offset[1] = 100 - nodeOf({PATCH}).pos[1] }}")  # so that all of it is in sight
    settle(ui)
    if ui.renderer == "vue":
        ui.page.locator(f"[data-node-id='{PATCH}'] [data-testid='advanced-inputs-button']").click()
    else:
        x, y = ui.run(
            f"""() => {{
                const node = nodeOf({PATCH}), line = widgetOf(node, '{LINE}'), {{ scale, offset }} = app.canvas.ds
                const box = app.canvas.canvas.getBoundingClientRect()
                const at = [node.pos[0] + node.size[0] / 2, node.pos[1] + line.y + 10]
                return [0, 1].map((i) => (at[i] + offset[i]) * scale + [box.x, box.y][i])
            }}"""
        )
        ui.page.mouse.click(x, y)
    settle(ui)


def saved(ui: Ui) -> dict:
    return ui.run("() => app.rootGraph.serialize()")


def node_of(workflow: dict, number: int = PATCH) -> dict:
    return next(node for node in workflow["nodes"] if node["id"] == number)


def prompt(ui: Ui) -> dict:
    return ui.run("async () => (await app.graphToPrompt()).output")


def test_advanced_settings_are_folded_at_the_first_look_and_open(ui: Ui):
    load(ui)
    assert shown(ui) == SEEN
    press(ui)
    assert shown(ui) == [*SEEN, *ADVANCED]
    ui.screenshot("unfolded")
    press(ui)
    assert shown(ui) == SEEN
    if ui.renderer == "classic":
        assert ui.run(f"() => widgetOf(nodeOf({PATCH}), '{LINE}').label") == f"More settings ({len(ADVANCED)})"
    else:
        assert "More settings" not in ui.run("() => document.body.textContent")


def test_the_fold_is_saved_and_comes_back(ui: Ui):
    load(ui)
    press(ui)
    opened = saved(ui)
    ui.open()
    load(ui, opened)
    assert shown(ui) == [*SEEN, *ADVANCED]
    press(ui)
    closed = saved(ui)
    load(ui, closed)
    assert shown(ui) == SEEN
    for workflow in (opened, closed):
        load(ui, workflow)
        assert node_of(saved(ui))["widgets_values"] == node_of(workflow)["widgets_values"]
        if ui.renderer == "classic":  # in Nodes 2.0 the page says how high a node is
            assert node_of(saved(ui))["size"] == pytest.approx(node_of(workflow)["size"])


def test_values_and_prompt_are_the_same_folded_and_unfolded(ui: Ui):
    load(ui)
    folded, before = prompt(ui), node_of(saved(ui))["widgets_values"]
    press(ui)
    unfolded, after = prompt(ui), node_of(saved(ui))["widgets_values"]
    came_later = ["auto", 0, 0, False]  # shallow, speed, fidelity and learn
    assert folded == unfolded and before == after == [*node_of(template(ui))["widgets_values"], *came_later]
    assert list(folded[str(PATCH)]["inputs"]) == [*SEEN, *ADVANCED, "model"]
    assert LINE not in str(folded) and LINE not in str(saved(ui))


def test_every_node_of_the_pack_with_advanced_settings_has_a_fold(ui: Ui):
    load(ui)
    found = {}
    for kind, info in ui.server.get("/object_info").items():
        given = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        names = {name for name, spec in given.items() if len(spec) > 1 and spec[1].get("advanced")}
        if "highlight" not in info["python_module"] or not names:
            continue
        ui.run("(kind) => { window.made = LiteGraph.createNode(kind); made.pos = [0, 1500]; app.rootGraph.add(made) }", kind)
        settle(ui)
        if ui.renderer == "classic":
            assert not names & set(shown(ui, "made")) and ui.run("() => seen(made)").count(LINE) == 1, kind
            assert ui.run("() => made.size[1] - made.computeSize()[1]") == 0, kind
        ui.run(f"() => widgetOf(made, '{LINE}').callback()")
        settle(ui)
        found[kind] = names & set(ui.run("() => seen(made)"))
        assert found[kind] == names & set(ui.run("() => made.widgets.map(({ name }) => name)")), kind
        ui.run("() => app.rootGraph.remove(made)")
    assert set(found) == {
        "HighlightDiffusion", "HighlightSDTM", "HighlightProfile", "HighlightMaskPreview", "HighlightReport",
    }  # fmt: skip


def test_a_linked_setting_stays_in_sight(ui: Ui):
    load(ui)
    before = ui.run(f"() => [...nodeOf({PATCH}).size]")
    ui.run(
        f"""() => {{
            window.number = LiteGraph.createNode('PrimitiveInt')
            number.pos = [-300, 300]
            app.rootGraph.add(number)
            number.connect(0, nodeOf({PATCH}), nodeOf({PATCH}).inputs.findIndex(({{ name }}) => name === 'halo'))
        }}"""
    )
    settle(ui)
    assert shown(ui) == [*SEEN, "halo"]
    if ui.renderer == "classic":
        linked = ui.run(f"() => [...nodeOf({PATCH}).size]")
        assert linked == pytest.approx([before[0], before[1] + ROW])
        slot = ui.run(f"() => nodeOf({PATCH}).getInputPos(nodeOf({PATCH}).inputs.findIndex((i) => i.name === 'halo'))")
        top = ui.run(f"() => nodeOf({PATCH}).pos[1]")
        assert top < slot[1] < top + linked[1]
    ui.screenshot("linked_setting")
    workflow = saved(ui)
    load(ui, workflow)
    assert shown(ui) == [*SEEN, "halo"]
    assert prompt(ui)[str(PATCH)]["inputs"]["halo"][1] == 0
    if ui.renderer == "classic":
        assert ui.run(f"() => [...nodeOf({PATCH}).size]") == pytest.approx(linked)
    ui.run(f"() => nodeOf({PATCH}).disconnectInput(nodeOf({PATCH}).inputs.findIndex((i) => i.name === 'halo'))")
    settle(ui)
    assert shown(ui) == SEEN
    if ui.renderer == "classic":
        assert ui.run(f"() => [...nodeOf({PATCH}).size]") == pytest.approx(before)


def test_a_workflow_from_before_is_folded_unless_it_has_settings_of_its_own(ui: Ui):
    workflow = template(ui)
    assert "showAdvanced" not in node_of(workflow)
    node_of(workflow)["size"] = [420, 248 + ROW * len(ADVANCED)]  # all settings, and 60 pixels more
    load(ui, workflow)
    assert shown(ui) == SEEN
    if ui.renderer == "classic":
        assert ui.run(f"() => [...nodeOf({PATCH}).size]") == pytest.approx([420, 248 + ROW])
    node_of(workflow)["widgets_values"][4] = 3.5  # pace
    load(ui, workflow)
    assert shown(ui) == [*SEEN, *ADVANCED]
    press(ui)
    assert shown(ui) == SEEN
    if ui.renderer == "classic":
        assert ui.run(f"() => widgetOf(nodeOf({PATCH}), '{LINE}').label") == f"More settings ({len(ADVANCED)}, 1 changed)"
    load(ui, saved(ui))
    assert shown(ui) == SEEN


def test_the_size_that_a_user_gave_the_node_is_kept(ui: Ui):
    load(ui)
    ui.run(f"() => nodeOf({PATCH}).setSize([517, nodeOf({PATCH}).computeSize()[1] + 40])")
    settle(ui)
    width, height = ui.run(f"() => [...nodeOf({PATCH}).size]")
    for rows in (len(ADVANCED), 0):
        press(ui)
        now = ui.run(f"() => [...nodeOf({PATCH}).size]")
        assert now[0] == pytest.approx(width) == 517
        if ui.renderer == "classic":  # in Nodes 2.0 the page says how high a node is
            assert now[1] == pytest.approx(height + rows * ROW)


def test_who_wants_all_settings_shown_sees_them(ui: Ui):
    load(ui)
    always = "async (value) => app.extensionManager.setting.set('Comfy.Node.AlwaysShowAdvancedWidgets', value)"
    ui.run(always, True)
    settle(ui)
    everything = shown(ui), ui.run(f"() => seen(nodeOf({PATCH})).includes('{LINE}')")
    ui.run(always, False)
    settle(ui)
    assert everything == ([*SEEN, *ADVANCED], False)
    assert shown(ui) == SEEN


def test_what_was_opened_in_one_renderer_is_open_in_the_other(ui: Ui):
    load(ui)
    press(ui)
    other = "async (vue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)"
    mine, ui.renderer = ui.renderer, "classic" if ui.renderer == "vue" else "vue"
    try:
        ui.run(other, ui.renderer == "vue")
        ui.page.wait_for_timeout(1500)
        settle(ui)
        assert shown(ui) == [*SEEN, *ADVANCED]
        press(ui)
        assert shown(ui) == SEEN
    finally:
        ui.renderer = mine
        ui.run(other, mine == "vue")
        ui.page.wait_for_timeout(1500)


def test_a_setting_on_the_edge_of_a_subgraph_is_seen_within_and_without(ui: Ui):
    load(ui)
    ui.run(
        f"""() => {{
            window.outer = app.rootGraph.convertToSubgraph(new Set([nodeOf({PATCH})])).node
            window.inner = outer.subgraph.nodes.find(({{ type }}) => type === 'HighlightDiffusion')
            const input = inner.inputs.find(({{ name }}) => name === 'pace')
            outer.subgraph.addInput('pace', 'FLOAT').connect(input, inner)
        }}"""
    )
    settle(ui)
    assert ui.run("() => seen(outer)") == ["pace"]
    assert ui.run("() => seen(inner)") == [*SEEN, "pace", LINE]
    ui.run("() => { outer.widgets[0].value = 2.5 }")
    sent = next(node for node in prompt(ui).values() if node["class_type"] == "HighlightDiffusion")
    assert list(sent["inputs"]) == [*SEEN, *ADVANCED, "model"] and sent["inputs"]["pace"] == 2.5
