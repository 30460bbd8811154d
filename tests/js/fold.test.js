import assert from "node:assert/strict"
import { test } from "node:test"
import { addFold, changed, foldable, LINE, lineOf } from "../../js/fold.js"
import { TEXTS } from "../../js/texts.js"

// A node in LiteGraph's form: only what fold.js uses of it.
const INPUT = {
  required: { preset: ["COMBO", { default: "fast" }], pace: ["FLOAT", { default: 0.5, advanced: true }] },
  optional: { memory: ["COMBO", { default: "device", advanced: true }], mask: ["MASK", { advanced: true }] }
}
class Node {
  static nodeData = { input: INPUT }
  size = [300, 200]
  widgets = Object.entries({ preset: "fast", pace: 0.5, memory: "device" }).map(([name, value]) => ({ name, value }))
  inputs = [{ name: "mask", link: 3 }, ...this.widgets.map(({ name }) => ({ name, widget: { name }, link: null }))]
  addWidget(type, name, value, callback, options) {
    this.widgets.push({ type, name, value, callback, options })
    return this.widgets.at(-1)
  }
  setSize(size) {
    this.size = size
  }
  computeSize() {
    return [200, 50 + 24 * shown(this).length]
  }
}
const shown = (node) => node.widgets.filter((widget) => !widget.hidden).map((widget) => widget.name)
const folded = (off = () => false) => {
  const node = new Node()
  addFold(node, TEXTS.en, off)
  return node
}

test("what is advanced is hidden until the line opens it, and its values stay where they were", () => {
  const node = folded()
  assert.deepEqual([shown(node), node.size], [["preset", LINE], [300, 98]])
  const line = node.widgets.at(-1)
  assert.equal(line.label, "More settings (2)")
  line.callback()
  assert.deepEqual([shown(node), node.size, node.showAdvanced], [["preset", "pace", "memory", LINE], [300, 146], true])
  assert.equal(line.label, "Fewer settings")
  line.callback()
  assert.deepEqual([shown(node), node.size, node.showAdvanced], [["preset", LINE], [300, 98], false])
  assert.deepEqual(node.widgets.map(({ value }) => value), ["fast", 0.5, "device", null])
  assert.ok(line.serialize === false && line.options.serialize === false)
})

test("the line counts what is not at its default", () => {
  const node = folded()
  node.widgets[1].value = 2
  assert.deepEqual([changed(node), lineOf(node, TEXTS.en)], [1, "More settings (2, 1 changed)"])
})

test("a linked setting stays in sight and is not counted", () => {
  const node = folded()
  Object.assign(node.inputs[2], { link: 7 })
  node.onConnectionsChange(1, 2, true, {}, node.inputs[2])
  assert.deepEqual([shown(node), node.size, foldable(node).length], [["preset", "pace", LINE], [300, 122], 1])
  Object.assign(node.inputs[2], { link: null })
  node.onConnectionsChange(1, 2, false, {}, node.inputs[2])
  assert.deepEqual([shown(node), node.size], [["preset", LINE], [300, 98]])
})

test("a workflow from before comes closed and smaller, open where something was changed", () => {
  const node = folded()
  node.onConfigure({ size: [400, 222] })
  assert.deepEqual([node.showAdvanced, node.size], [false, [400, 198]])
  const own = folded()
  own.widgets[2].value = "offload"
  own.onConfigure({ size: [400, 100] })
  assert.deepEqual([own.showAdvanced, own.size], [true, [400, 146]])
})

test("what was saved comes back as it was", () => {
  for (const showAdvanced of [true, false]) {
    const node = folded()
    node.showAdvanced = showAdvanced // as LiteGraph does before it calls onConfigure
    node.widgets[1].value = 2
    node.onConfigure({ size: [400, 250], showAdvanced })
    assert.deepEqual([node.showAdvanced, node.size], [showAdvanced, [400, 250]])
  }
})

test("who wants to see all settings has no fold, and a node without advanced ones neither", () => {
  assert.deepEqual(shown(folded(() => true)), ["preset", "pace", "memory"])
  const node = new Node()
  node.widgets = node.widgets.slice(0, 1)
  addFold(node, TEXTS.en, () => false)
  assert.deepEqual([node.widgets.length, node.showAdvanced], [1, undefined])
})

test("what another extension hides stays hidden, and the copy of a widget on a subgraph's edge is not", () => {
  const node = folded()
  assert.ok(!("hidden" in { ...node.widgets[1] }))
  node.widgets[0].hidden = node.widgets[1].hidden = true
  node.widgets.at(-1).callback()
  assert.deepEqual(shown(node), ["memory", LINE])
})
