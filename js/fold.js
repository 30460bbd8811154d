// Folds a node's advanced settings behind one line, in the classic renderer; Nodes 2.0 folds them itself. Both go by the
// node's `showAdvanced`, which ComfyUI saves with the workflow. Functions of LiteGraph nodes, no DOM.

export const LINE = "highlight_fold"
const ROW = 24 // pixels that a widget of one line takes
const AWAY = -1e5 // where the sockets of hidden widgets are: a link that is dragged over the node must not find them

function specOf(node, name) {
  const { required, optional } = node.constructor.nodeData?.input ?? {}
  return (required?.[name] ?? optional?.[name])?.[1]
}

/** The widgets of a node's advanced inputs. */
export const advanced = (node) => (node.widgets ?? []).filter((widget) => specOf(node, widget.name)?.advanced)

const linked = (node, widget) => (node.inputs ?? []).some((input) => input.widget?.name === widget.name && input.link != null)

/** The widgets that the closed fold hides; what a link gives stays in sight. */
export const foldable = (node) => advanced(node).filter((widget) => !linked(node, widget))

/** How many of these hold another value than their default. */
export const changed = (node) => foldable(node).filter((widget) => widget.value !== specOf(node, widget.name).default).length

/** What the line says. */
export function lineOf(node, texts) {
  if (node.showAdvanced) return texts.fewer
  const [count, other] = [foldable(node).length, changed(node)]
  return (other ? texts.more_changed : texts.more).replace("{count}", count).replace("{changed}", other)
}

/** Give a node with advanced settings its line, and close it. `off`: () -> whether the user wants to see all settings. */
export function addFold(node, texts, off) {
  if (!advanced(node).length) return
  const line = node.addWidget("button", LINE, null, () => turn(node), { serialize: false, canvasOnly: true })
  line.serialize = false
  Object.defineProperty(line, "label", { configurable: true, get: () => lineOf(node, texts), set() {} })
  hideWhile(line, off)
  for (const widget of advanced(node)) hideWhile(widget, () => !off() && !node.showAdvanced && !linked(node, widget))
  node.showAdvanced = false
  resize(node, -Infinity)
  after(node, "onConfigure", (saved) => restore(node, saved))
  after(node, "onConnectionsChange", (...change) => follow(node, ...change))
}

/** Open or close the fold. The node keeps its width, and the height that its user gave it beyond what it needs. */
function turn(node) {
  node.showAdvanced = !node.showAdvanced
  resize(node, (node.showAdvanced ? ROW : -ROW) * foldable(node).length)
}

/** A workflow from before there was a fold comes closed, its node smaller by what that hides; open where it has settings
 * that are not the default, so that what its author changed is seen. */
function restore(node, saved) {
  if (saved.size) node.setSize([...saved.size])
  if (saved.showAdvanced == null) {
    node.showAdvanced = changed(node) > 0
    resize(node, node.showAdvanced ? 0 : ROW - ROW * foldable(node).length)
  } else park(node)
}

/** A link to a hidden setting brings it to sight, its end hides it again. */
function follow(node, _kind, _index, connected, _link, slot) {
  const own = advanced(node).some((widget) => widget.name === slot?.widget?.name)
  if (own && !node.showAdvanced) resize(node, connected ? ROW : -ROW)
}

function resize(node, change) {
  park(node)
  if (!globalThis.LiteGraph?.vueNodesMode) node.setSize([node.size[0], Math.max(node.computeSize()[1], node.size[1] + change)])
  node.setDirtyCanvas?.(true, true)
}

function park(node) {
  for (const widget of foldable(node)) if (widget.hidden) widget.y = AWAY
}

/** Hide a widget as long as `when` says so. Not enumerable: the copy of a widget on the edge of a subgraph is not hidden. */
function hideWhile(widget, when) {
  let hidden = widget.hidden
  const set = (value) => (hidden = value)
  Object.defineProperty(widget, "hidden", { configurable: true, enumerable: false, get: () => Boolean(hidden) || when(), set })
}

function after(node, name, then) {
  const before = node[name]
  node[name] = function (...given) {
    const answer = before?.apply(this, given)
    then(...given)
    return answer
  }
}
