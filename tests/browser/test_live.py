"""The highlight while it is sampled and afterwards, in both of ComfyUI's renderers."""

import json

import pytest
from highlight_diffusion.tools.ui import PATCH, PREVIEW, SAMPLER, STEPS, Ui, View


def test_frames_arrive_on_the_preview_node_while_it_samples(ui: Ui):
    ui.load_template()
    view = ui.view()
    assert "Queue the workflow" in view.text("hint")
    ui.queue()
    view.wait("element.querySelector('.highlight-sum').textContent.startsWith('sampling')")
    shown = "Number(element.querySelector('.highlight-time').getAttribute('aria-valuemax'))"
    view.wait(f"{shown} >= 3 && {shown} < {STEPS} && element.querySelector('.highlight-hint').hidden")
    ui.screenshot("while_sampling")
    ui.wait_until_done()
    assert view.evaluations == view.current == STEPS and view.colours > 100
    assert f"{STEPS} evaluations" in view.text("sum") and "times faster than dense" in view.text("sum")
    told = ui.run("() => told")
    assert len(told) >= 3 and [cell["index"] for message in told for cell in message["cells"]] == list(range(STEPS))
    assert all(message["nodes"] == [str(PATCH)] for message in told)
    assert max(len(json.dumps(message)) for message in told) < 20_000
    assert not ui.run(f"() => Boolean(viewOf(nodeOf({PATCH})))")  # its preview shows it


def test_afterwards_evaluations_are_scrubbed_layers_toggled_and_places_hovered(ui: Ui):
    ui.sample()
    view = ui.view()
    last = view.drawn
    view.press("Home")
    assert view.current == 1 and view.text("now").startswith(f"1/{STEPS} · sigma ") and "warm-up" in view.text("now")
    assert view.drawn != last
    view.press("ArrowRight")
    assert view.current == 2
    view.click_timeline(7.5 / STEPS)
    assert view.current == 8 and "ms" in view.text("now")
    view.press("End")
    for layer in ("heatmap", "highlight", "difference", "final"):
        before = view.drawn
        view.toggle(layer)
        assert view.drawn != before, layer
        view.toggle(layer)
        assert view.drawn == before, layer
    assert view.ask("element.querySelector('[data-layer=merged]').hidden")  # nothing merged here


def test_the_view_follows_the_size_of_its_node(ui: Ui):
    ui.load_template()
    view = ui.view()
    size = "(({ width, height }) => [width, height])(element.getBoundingClientRect())"
    before = view.ask(size)
    ui.run(f"() => {{ const node = nodeOf({PREVIEW}); node.setSize([node.size[0] + 200, node.size[1] + 150]) }}")
    ui.run("() => app.canvas.setDirty(true, true)")
    view.wait(f"{size}[0] > {before[0]} + 50 && {size}[1] > {before[1]} + 40", seconds=10)
    view.wait("element.querySelector('.highlight-stage canvas').width >= element.querySelector('.highlight-stage').clientWidth")


def test_nothing_of_it_is_saved_or_queued(ui: Ui):
    ui.load_template()
    ui.page.wait_for_timeout(500)
    saved = "() => JSON.stringify(app.rootGraph.serialize())"
    before = ui.run(saved)
    ui.queue()
    ui.wait_until_done()
    after = ui.run(saved)
    assert json.loads(after)["nodes"] == json.loads(before)["nodes"]
    assert "highlight_view" not in after
    node = next(n for n in json.loads(after)["nodes"] if n["type"] == "HighlightMaskPreview")
    assert node["widgets_values"] == [0, 1, "overlay", "", 0, "picture"]
    prompt = ui.run("async () => (await app.graphToPrompt()).output")
    sockets, widgets = {"trace", "samples", "images"}, {"image_index", "every", "show", "word", "run", "mask_size"}
    assert set(prompt[str(PREVIEW)]["inputs"]) == sockets | widgets


def test_without_a_preview_node_the_patch_node_shows_it_and_hands_it_back(ui: Ui):
    ui.load_template()
    ui.run(f"() => app.rootGraph.remove(nodeOf({PREVIEW}))")
    saved = ui.run(f"() => nodeOf({PATCH}).serialize()")
    ui.queue()
    ui.wait_until_done()
    alone = ui.view(PATCH)
    alone.wait("element.isConnected")
    assert alone.evaluations == STEPS and alone.colours > 100
    again = ui.run(f"() => nodeOf({PATCH}).serialize()")
    assert again["widgets_values"] == saved["widgets_values"]
    if ui.renderer == "classic":
        assert again["size"][1] == pytest.approx(saved["size"][1])
    ui.screenshot("patch_node_alone")
    ui.run(
        f"""() => {{
            const preview = LiteGraph.createNode('HighlightMaskPreview')
            app.rootGraph.add(preview)
            nodeOf({PATCH}).connect(1, preview, 0)
            nodeOf({SAMPLER}).connect(0, preview, 1)
            nodeOf({SAMPLER}).widgets[0].value += 500
            window.added = preview
        }}"""
    )
    ui.queue()
    ui.wait_until_done()
    assert View(ui, "added").evaluations == STEPS
    assert not ui.run(f"() => Boolean(viewOf(nodeOf({PATCH})))")


def test_in_a_subgraph_frames_find_the_inner_node(ui: Ui):
    """Also when ComfyUI has cached what is now inside, under the ids it had outside."""
    ui.sample()
    ui.run(
        f"""() => {{
            const {{ node }} = app.rootGraph.convertToSubgraph(new Set([{PATCH}, {SAMPLER}, {PREVIEW}].map(nodeOf)))
            window.outer = node
            node.subgraph.nodes.find(({{ type }}) => type === 'KSampler').widgets[0].value += 100
        }}"""
    )
    assert not ui.run(f"() => Boolean(nodeOf({PREVIEW}))")
    ui.queue()
    ui.wait_until_done()
    assert ":" in ui.run("() => told.at(-1).nodes[0]")
    inner = View(ui, "outer.subgraph.nodes.find((node) => node.type === 'HighlightMaskPreview')")
    ui.run("() => app.canvas.openSubgraph(outer.subgraph, outer)")
    inner.wait("element.isConnected")
    inner.wait(f"element.querySelector('.highlight-time').getAttribute('aria-valuemax') === '{STEPS}'", seconds=10)
    assert inner.colours > 100
    ui.screenshot("subgraph")
    ui.run("() => app.canvas.setGraph(app.rootGraph)")


def test_a_trace_that_leaves_a_subgraph_is_followed(ui: Ui):
    ui.load_template()
    ui.run(f"() => {{ window.outer = app.rootGraph.convertToSubgraph(new Set([{PATCH}, {SAMPLER}].map(nodeOf))).node }}")
    ui.queue()
    ui.wait_until_done()
    assert ":" in ui.run("() => told.at(-1).nodes[0]")
    assert ui.view().evaluations == STEPS and ui.view().colours > 100


def test_a_copy_shows_what_its_own_trace_tells(ui: Ui):
    ui.load_template()
    ui.run(
        f"""() => {{
            app.canvas.selectItems([nodeOf({PREVIEW})])
            app.canvas.copyToClipboard()
            app.canvas.pasteFromClipboard()
            window.copy = app.rootGraph.nodes.find((node) => node.type === 'HighlightMaskPreview' && node.id != {PREVIEW})
        }}"""
    )
    copy = View(ui, "copy")
    copy.wait("element.isConnected")
    assert copy.ask(f"element !== viewOf(nodeOf({PREVIEW}))")
    ui.run(f"() => {{ nodeOf({PATCH}).connect(1, copy, 0); nodeOf({SAMPLER}).connect(0, copy, 1) }}")
    ui.queue()
    ui.wait_until_done()
    assert copy.evaluations == ui.view().evaluations == STEPS and copy.colours > 100


def test_a_deleted_node_leaves_nothing_behind(ui: Ui):
    ui.sample()
    ui.run(f"() => {{ window.left = viewOf(nodeOf({PREVIEW})); app.rootGraph.remove(nodeOf({PREVIEW})) }}")
    ui.wait("() => !left.isConnected && !document.querySelector('.highlight-view')", seconds=10)


def test_a_reloaded_page_shows_a_cached_run_again(ui: Ui):
    ui.sample()
    saved = ui.run("() => app.rootGraph.serialize()")
    ui.open()
    ui.run("async (saved) => { await app.loadGraphData(saved); told.length = 0 }", saved)
    view = ui.view()
    view.wait("element.isConnected")
    assert view.evaluations == 0
    ui.queue()
    view.wait(f"element.querySelector('.highlight-time').getAttribute('aria-valuemax') === '{STEPS}'")
    assert ui.run("() => told.length") == 0  # nothing was sampled
    ui.wait_until_idle()
    assert view.colours > 100


def test_an_interrupted_run_says_so_and_the_next_one_shows(ui: Ui):
    ui.load_template(steps=500)
    view = ui.view()
    ui.queue()
    view.wait("Number(element.querySelector('.highlight-time').getAttribute('aria-valuemax')) >= 2")
    ui.run("() => app.api.interrupt(null)")
    ui.wait_until_done()
    assert "interrupted" in view.text("sum") and 2 <= view.evaluations < 500
    ui.run(f"(steps) => {{ nodeOf({SAMPLER}).widgets.find((widget) => widget.name === 'steps').value = steps }}", STEPS)
    ui.queue()
    ui.wait_until_done()
    assert view.evaluations == STEPS and "interrupted" not in view.text("sum")


def test_batches_second_passes_and_words_are_chosen_from(ui: Ui):
    """A batch of two, sampled twice as a hi-res fix does, with Highlight Words."""
    ui.load_template()
    ui.run(
        f"""() => {{
            const widget = (node, name) => node.widgets.find((other) => other.name === name)
            widget(nodeOf(4), 'batch_size').value = 2
            const second = LiteGraph.createNode('KSampler')
            app.rootGraph.add(second)
            second.pos = [800, 520]
            for (const [name, value] of [['steps', 8], ['denoise', 0.5], ['cfg', 3]]) widget(second, name).value = value
            const words = LiteGraph.createNode('HighlightWords')
            app.rootGraph.add(words)
            words.pos = [360, 900]
            widget(words, 'prompt').value = widget(nodeOf(2), 'text').value
            nodeOf(2).connect(0, words, 0)
            nodeOf(1).connect(1, words, 1)
            for (const sampler of [nodeOf({SAMPLER}), second]) words.connect(0, sampler, 1)
            nodeOf({PATCH}).connect(0, second, 0)
            nodeOf(3).connect(0, second, 2)
            nodeOf({SAMPLER}).connect(0, second, 3)
            second.connect(0, nodeOf(7), 0)
            second.connect(0, nodeOf({PREVIEW}), 1)
        }}"""
    )
    ui.queue()
    ui.wait_until_done(runs=2)
    view = ui.view()
    assert len(view.options(0)) == 2 and len(view.options(1)) == 2
    assert view.options(2)[0] == "All words" and {"circle", "star"} <= set(view.options(2))
    assert view.evaluations == 8
    first = view.drawn
    view.choose(1, 1)
    assert view.drawn != first
    second = view.drawn
    with ui.page.expect_response(lambda response: "_words.json" in response.url):  # on demand
        view.choose(2, view.options(2).index("star"))
    assert view.drawn != second
    view.choose(0, 0)
    ui.page.wait_for_timeout(200)
    assert view.evaluations == STEPS


def test_an_empty_trace_is_explained(ui: Ui):
    ui.load_template()
    ui.run(f"() => nodeOf(1).connect(0, nodeOf({SAMPLER}), 0)")  # past Highlight Diffusion
    ui.queue()
    view = ui.view()
    view.wait("element.querySelector('.highlight-hint').textContent.includes('No sampling run')")
    ui.wait_until_idle()


def test_the_report_node_shows_its_text(ui: Ui):
    ui.load_template()
    ui.run(
        f"""() => {{
            window.report = LiteGraph.createNode('HighlightReport')
            app.rootGraph.add(report)
            report.pos = [1560, 80]
            nodeOf({PATCH}).connect(1, report, 0)
            nodeOf({SAMPLER}).connect(0, report, 1)
        }}"""
    )
    ui.queue()
    ui.wait_until_done()
    report = View(ui, "report")
    report.wait("element.textContent.includes('times faster than dense')", seconds=10)
    assert "no fall-backs" in report.ask("element.textContent")
