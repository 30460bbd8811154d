import assert from "node:assert/strict"
import { test } from "node:test"
import { locate, located, shownOn, viewers } from "../../js/graph.js"

// Graphs in LiteGraph's form: only what graph.js reads of them.
function graphOf(id, nodes, links, extra = {}) {
  const byId = new Map(nodes.map((node) => [String(node.id), node]))
  return {
    id, getNodeById: (wanted) => byId.get(String(wanted)) ?? null, subgraphs: new Map(),
    links: new Map(links.map(([link, target_id, target_slot]) => [link, { target_id, target_slot }])), ...extra
  }
}
const patch = (id, links) => ({
  id, comfyClass: "HighlightDiffusion", outputs: [{ type: "MODEL", links: [99] }, { type: "HIGHLIGHT_TRACE", links }]
})
const preview = (id) => ({ id, comfyClass: "HighlightMaskPreview", outputs: [] })
const ids = (nodes) => nodes.map((node) => node.id)

test("a trace leads to its preview nodes, over reroutes, and to no other", () => {
  const reroute = { id: 7, type: "Reroute", outputs: [{ links: [2] }] }
  const other = { id: 9, comfyClass: "HighlightReport", outputs: [] }
  const graph = graphOf("root", [patch(5, [1, 3, 4]), reroute, preview(8), preview(10), preview(11), other],
    [[1, 7, 0], [2, 8, 0], [3, 10, 0], [4, 9, 0], [99, 11, 0]])
  assert.deepEqual(ids(viewers(graph, "5")).sort(), [10, 8])
  assert.deepEqual(shownOn(graph, ["5"]).length, 2)
})

test("a node that stands alone shows itself; one that is gone or another shows nothing", () => {
  const graph = graphOf("root", [patch(5, null), preview(8)], [])
  assert.deepEqual(ids(shownOn(graph, ["5"])), [5])
  assert.deepEqual(shownOn(graph, ["6"]), [])
  assert.deepEqual(shownOn(graph, ["8"]), [])
  assert.deepEqual(shownOn(graph, ["5:1"]), [])
  assert.deepEqual(shownOn(undefined, ["5"]), [])
})

test("a run of two nodes is shown on the previews of both, once, else on the first of them", () => {
  const merging = { id: 6, comfyClass: "HighlightSDTM", outputs: [{ type: "HIGHLIGHT_TRACE", links: [2, 3] }] }
  const graph = graphOf("root", [patch(5, [1]), merging, preview(8), preview(9)], [[1, 8, 0], [2, 8, 0], [3, 9, 0]])
  assert.deepEqual(ids(shownOn(graph, ["5", "6"])), [8, 9])
  const alone = graphOf("root", [patch(5, []), { ...merging, outputs: [] }], [])
  assert.deepEqual(ids(shownOn(alone, ["5", "6"])), [5])
})

test("both in one subgraph: the path of the execution id is walked", () => {
  const inner = graphOf("inner", [patch(5, [1]), preview(8)], [[1, 8, 0]])
  const graph = graphOf("root", [{ id: 12, type: "inner", subgraph: inner, outputs: [] }, preview(8)], [])
  graph.subgraphs.set("inner", inner)
  assert.equal(viewers(graph, "12:5")[0], inner.getNodeById(8))
  assert.equal(locate(graph, "12:8").node, inner.getNodeById(8))
  assert.equal(located(graph, "inner:8"), inner.getNodeById(8))
  assert.equal(located(graph, "8"), graph.getNodeById(8))
})

test("a trace leaves a subgraph and enters another", () => {
  const source = graphOf("source", [patch(5, [1])], [[1, -20, 0]])
  const target = graphOf("target", [preview(8)], [[6, 8, 0]], { inputs: [{ linkIds: [6] }] })
  const graph = graphOf("root", [
    { id: 12, type: "source", subgraph: source, outputs: [{ links: [2, 3] }] },
    { id: 13, type: "target", subgraph: target, outputs: [] }, preview(20)
  ], [[2, 13, 0], [3, 20, 0]])
  assert.deepEqual(ids(viewers(graph, "12:5")).sort(), [20, 8])
})

test("a subgraph used twice is left by the way it was entered", () => {
  const source = graphOf("source", [patch(5, [1])], [[1, -20, 0]])
  const graph = graphOf("root", [
    { id: 12, subgraph: source, outputs: [{ links: [2] }] }, { id: 13, subgraph: source, outputs: [{ links: [3] }] },
    preview(20), preview(21)
  ], [[2, 20, 0], [3, 21, 0]])
  assert.deepEqual([ids(viewers(graph, "12:5")), ids(viewers(graph, "13:5"))], [[20], [21]])
})

test("links in a circle end", () => {
  const reroute = { id: 7, type: "Reroute", outputs: [{ links: [2] }] }
  assert.deepEqual(viewers(graphOf("root", [patch(5, [1]), reroute], [[1, 7, 0], [2, 7, 0]]), "5"), [])
})
