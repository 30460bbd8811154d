// Which nodes are to show what a node that patches a MODEL tells. Pure functions of a LiteGraph graph.

export const PATCHES = new Set(["HighlightDiffusion", "HighlightSDTM"])
export const PREVIEW = "HighlightMaskPreview"
export const REPORT = "HighlightReport"
export const OURS = new Set([...PATCHES, PREVIEW, REPORT, "HighlightProfile"]) // the nodes with something of the frontend's

const TRACE = "HIGHLIGHT_TRACE"
const SUBGRAPH_OUTPUT = -20 // LiteGraph's id for the right edge of a subgraph

export const kindOf = (node) => node?.comfyClass ?? node?.type

/** The node of an execution id ("5", or "12:5" within the subgraph node 12), and the way to it; null if there is none. */
export function locate(root, executionId) {
  const path = String(executionId).split(":")
  const outer = []
  let graph = root
  for (const id of path.slice(0, -1)) {
    const node = nodeById(graph, id)
    if (!node?.subgraph) return null
    outer.push({ graph, node })
    graph = node.subgraph
  }
  const node = nodeById(graph, path.at(-1))
  return node ? { graph, node, outer } : null
}

/** The preview nodes that the trace of the patch node with this execution id reaches, over reroutes and the
 * edges of subgraphs. */
export function viewers(root, executionId) {
  const place = locate(root, executionId)
  if (!place) return []
  const found = new Set()
  const slots = (place.node.outputs ?? []).filter((output) => output.type === TRACE)
  for (const slot of slots) follow(slot.links, place.graph, place.outer, found, new Set())
  return [...found]
}

/** Where a run is shown that nodes with these execution ids have in their traces: on their preview nodes, else on the first
 * of themselves. */
export function shownOn(root, executionIds) {
  const found = new Set(executionIds.flatMap((id) => viewers(root, id)))
  return found.size ? [...found] : patches(root, executionIds).slice(0, 1)
}

/** The patch nodes with these execution ids that are there. */
export function patches(root, executionIds) {
  return executionIds.map((id) => locate(root, id)?.node).filter((node) => PATCHES.has(kindOf(node)))
}

/** The node of a locator id: "5", or "<subgraph's uuid>:5". */
export function located(root, locator) {
  const [first, second] = String(locator).split(":")
  if (second === undefined) return nodeById(root, first)
  return nodeById(root?.subgraphs?.get?.(first), second)
}

function nodeById(graph, id) {
  return graph?.getNodeById?.(id) ?? graph?.getNodeById?.(Number(id)) ?? null
}

function linkOf(graph, id) {
  return graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id]
}

function follow(links, graph, outer, found, seen) {
  for (const id of links ?? []) {
    const link = linkOf(graph, id)
    const mark = `${graph.id}/${id}/${outer.length}`
    if (!link || seen.has(mark)) continue
    seen.add(mark)
    if (Number(link.target_id) === SUBGRAPH_OUTPUT) {
      const parent = outer.at(-1)
      if (parent) follow(parent.node.outputs?.[link.target_slot]?.links, parent.graph, outer.slice(0, -1), found, seen)
      continue
    }
    const node = nodeById(graph, link.target_id)
    if (!node) continue
    if (kindOf(node) === PREVIEW) found.add(node)
    else if (node.subgraph) {
      const inner = node.subgraph.inputs?.[link.target_slot]?.linkIds
      follow(inner, node.subgraph, [...outer, { graph, node }], found, seen)
    } else if (kindOf(node) === "Reroute") follow(node.outputs?.[0]?.links, graph, outer, found, seen)
  }
}
