// The frontend of Highlight Diffusion. One listener takes what runs tell and hands it to the nodes that show it.
// Every .js file here is loaded by ComfyUI; only this one does anything when it is.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { addFold } from "./fold.js"
import { kindOf, locate, located, OURS, PATCHES, patches, PREVIEW, REPORT, shownOn } from "./graph.js"
import { textsOf } from "./texts.js"
import { HighlightView } from "./view.js"

const EVENT = "highlight_diffusion.run"
const WIDGET = "highlight_view" // name and type; ComfyUI draws what has one of its own types itself
const VIEW_HEIGHT = 280
const REPORT_HEIGHT = 140
const WIDTH = 380
const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets"

const views = new WeakMap() // node -> its view
const reports = new WeakMap() // node -> its element

const root = () => app.rootGraph ?? app.graph
const setting = (id) => app.extensionManager?.setting?.get(id)
const texts = () => textsOf(setting("Comfy.Locale"))
const urlOf = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`)

async function fetchJson(file) {
  const response = await api.fetchApi(`/view?${new URLSearchParams(file)}`, { cache: "no-store" })
  return response.ok ? response.json() : null // temporary files go when ComfyUI restarts
}

/** A widget that is shown and nothing else: in neither the saved workflow nor the prompt. */
function addWidget(node, element, height) {
  const widget = node.addDOMWidget(WIDGET, WIDGET, element, {
    serialize: false, getValue: () => "", setValue: () => {}, getMinHeight: () => height
  })
  widget.serialize = false
  return widget
}

function grow(node) {
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], WIDTH, width), Math.max(node.size[1], height)])
}

function onRemoved(node, then) {
  const before = node.onRemoved
  node.onRemoved = function (...given) {
    then()
    return before?.apply(this, given)
  }
}

function addView(node) {
  const view = new HighlightView(texts(), fetchJson, urlOf)
  views.set(node, view)
  view.widget = addWidget(node, view.element, VIEW_HEIGHT)
  onRemoved(node, () => removeView(node))
  return view
}

function removeView(node) {
  views.get(node)?.destroy()
  views.delete(node)
}

/** The view of a node; a patch node gets one when it has something to show and no preview node does. */
function viewOf(node) {
  const known = views.get(node)
  if (known || !PATCHES.has(kindOf(node))) return known
  const height = node.size[1]
  const view = addView(node)
  grow(node)
  view.grown = node.size[1] - height
  return view
}

/** Nothing of a view is saved, its height on a patch node neither. */
function saveWithoutView(node) {
  const before = node.onSerialize
  node.onSerialize = function (saved) {
    before?.call(this, saved)
    const grown = views.get(node)?.grown
    if (grown && saved.size) saved.size = [saved.size[0], saved.size[1] - grown]
  }
}

function dropView(node) {
  const { widget, grown } = views.get(node)
  removeView(node)
  node.removeWidget(widget)
  node.setSize([node.size[0], node.size[1] - grown])
}

function takeMessage({ detail }) {
  const shown = shownOn(root(), detail.nodes)
  for (const patch of patches(root(), detail.nodes)) if (views.has(patch) && !shown.includes(patch)) dropView(patch)
  for (const node of shown) viewOf(node)?.takeMessage(detail)
}

function takeOutput(node, output) {
  if (!node || !output) return
  if (kindOf(node) === PREVIEW) views.get(node)?.takeOutput(output)
  if (kindOf(node) === REPORT && reports.has(node)) reports.get(node).textContent = (output.text ?? []).join("\n")
}

function addReport(node) {
  const element = Object.assign(document.createElement("div"), {
    className: "highlight-view highlight-report", textContent: texts().report
  })
  reports.set(node, element)
  addWidget(node, element, REPORT_HEIGHT)
  onRemoved(node, () => reports.delete(node))
}

app.registerExtension({
  name: "highlight_diffusion.preview",

  setup() {
    const href = new URL("./highlight.css", import.meta.url).href
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }))
    api.addEventListener(EVENT, takeMessage)
    api.addEventListener("executed", ({ detail }) => {
      const id = detail.display_node ?? detail.node
      takeOutput(locate(root(), id)?.node, detail.output)
    })
  },

  nodeCreated(node) {
    if (OURS.has(kindOf(node))) addFold(node, texts(), () => Boolean(setting(ALWAYS)))
    if (kindOf(node) === PREVIEW) addView(node)
    else if (kindOf(node) === REPORT) addReport(node)
    else if (PATCHES.has(kindOf(node))) return saveWithoutView(node)
    else return
    grow(node)
  },

  /** ComfyUI brings outputs back, after another workflow was looked at or something was undone. */
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs)) takeOutput(located(root(), locator), output)
  }
})
