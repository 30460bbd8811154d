import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import * as runs from "../../js/run.js"
import { TEXTS } from "../../js/texts.js"

// A real run as engine/report/messages.py tells it, written by tests/unit/test_messages.py
const told = JSON.parse(readFileSync(process.env.HIGHLIGHT_TOLD, "utf8"))

test("a run told in pieces is the run told at once", () => {
  let pieces = []
  for (const message of told.pieces) pieces = runs.takeInto(pieces, message)
  const [whole] = runs.takeInto([], told.whole)
  assert.equal(pieces.length, 1)
  assert.deepEqual(pieces[0].cells, whole.cells)
  assert.deepEqual(pieces[0].done, whole.done)
  assert.deepEqual([...pieces[0].heatmaps.keys()], told.captured)
  assert.deepEqual(pieces[0].highlight, whole.highlight)
})

test("a lost message costs maps, not evaluations that later ones repeat", () => {
  const run = runs.newRun("a")
  runs.take(run, { cells: [{ index: 0, kind: "dense" }] })
  runs.take(run, { cells: [{ index: 1, kind: "skipped" }], done: { ms: [5, 0.5] } })
  assert.deepEqual(run.cells.map((cell) => cell.ms), [5, 0.5])
})

test("a node keeps its last eight runs, the newest last", () => {
  let kept = []
  for (let i = 0; i < 10; i++) kept = runs.takeInto(kept, { key: String(i) })
  assert.deepEqual(kept.map((run) => run.key), ["2", "3", "4", "5", "6", "7", "8", "9"])
  assert.equal(runs.takeInto(kept, { key: "9", note: "again" }).at(-1).note, "again")
})

test("maps are decoded and those of the latest evaluation are shown", () => {
  const map = { shape: [2, 1, 2], data: Buffer.from([0, 255, 7, 9]).toString("base64") }
  const run = runs.take(runs.newRun("a"), { heatmaps: { 3: map, 6: map } })
  assert.equal(runs.latest(run.heatmaps, 2), null)
  assert.equal(runs.latest(run.heatmaps, 5), run.heatmaps.get(3))
  const second = runs.mapOf(run.heatmaps.get(3), 1)
  assert.deepEqual([second.width, second.height, ...second.data], [2, 1, 7, 9])
  assert.deepEqual(runs.mapOf(run.heatmaps.get(3), 5), second)
  assert.equal(runs.mapOf(null, 0), null)
})

test("the timeline keeps room for what is expected, and finds evaluations again", () => {
  const run = runs.take(runs.newRun("a"), {
    expected: 4, cells: [{ index: 0, kind: "dense", active: 1 }, { index: 1, kind: "skipped", active: 0 }]
  })
  const [dense, skipped] = runs.bars(run, 400, 30)
  assert.deepEqual([dense.x, dense.height, skipped.x], [0, 30, 100])
  assert.ok(skipped.height > 0 && skipped.height < 5)
  assert.equal(runs.evaluationAt(run, 150, 400), 1)
  assert.equal(runs.evaluationAt(run, 399, 400), 1)
  assert.equal(runs.evaluationAt(run, -1, 400), null)
  assert.equal(runs.evaluationAt(runs.newRun("b"), 10, 400), null)
  run.done = { ms: [] }
  assert.equal(runs.bars(run, 400, 30)[1].x, 200)
})

test("an evaluation is told in words", () => {
  const cell = { index: 4, sigma: 3.14159, kind: "dense", planned: "partial", reason: "no forecast yet", active: 1, ms: 12.345 }
  assert.equal(
    runs.describe({ ...cell, error: 0.0213 }, 30, TEXTS.en),
    "5/30 · sigma 3.14 · dense · no forecast yet · active area 100% · 12.3 ms · forecast off by 2.13% · planned partial"
  )
  assert.ok(!runs.describe({ ...cell, planned: "dense", ms: 0, error: null }, 30, TEXTS.en).includes("planned"))
})

test("while it samples a run says how near it is expected to come, where that is known", () => {
  const run = runs.take(runs.newRun("a"), { expected: 20, fidelity: 28.46, cells: [{ index: 0, kind: "dense", active: 1 }] })
  assert.equal(runs.sampled(run, TEXTS.en), "sampling 1/20 · expected 28.5 dB")
  assert.equal(runs.sampled(runs.take(runs.newRun("b"), { expected: 20, fidelity: null, cells: [] }), TEXTS.en), "sampling 0/20")
})

test("pictures of batches and videos find their images and their files", () => {
  const video = { pictures: { images: 1, frames: 5 }, shape: [1, 16, 21, 60, 104] }
  assert.deepEqual([runs.pictureCount(video), runs.imageOf(video, 4)], [5, 0])
  assert.deepEqual([0, 2, 4].map((picture) => runs.fileOf(video, picture, 81)), [0, 32, 64])
  const batch = { pictures: { images: 3, frames: 1 }, shape: [3, 4, 64, 64] }
  assert.deepEqual([runs.pictureCount(batch), runs.imageOf(batch, 2), runs.fileOf(batch, 2, 3)], [3, 2, 2])
  assert.equal(runs.pictureCount({ shape: [2, 4, 8, 8] }), 2)
})
