import assert from "node:assert/strict"
import { test } from "node:test"
import { contained, differencePixels, edges, filled, heatPixels, inferno } from "../../js/colours.js"

const luminance = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b

test("heat gets lighter all the way, so that it is read without colours", () => {
  const light = Array.from({ length: 256 }, (_, heat) => luminance(inferno(heat)))
  assert.ok(light.every((value, i) => i === 0 || value >= light[i - 1]))
  assert.ok(light[0] < 5 && light[255] > 230)
})

test("an overlay is the stronger the hotter, a map alone is opaque", () => {
  const map = { width: 2, height: 1, data: Uint8Array.of(0, 255) }
  const [cold, hot] = [heatPixels(map, true)[3], heatPixels(map, true)[7]]
  assert.ok(cold > 0 && cold < hot && hot < 255)
  assert.deepEqual([heatPixels(map, false)[3], heatPixels(map, false)[7]], [255, 255])
})

test("a mask's outline lies between cells, not along the frame", () => {
  const mask = { width: 3, height: 2, data: Uint8Array.of(0, 255, 0, 0, 255, 0) }
  assert.deepEqual(edges(mask), [[1, 0, 1, 1], [2, 0, 2, 1], [1, 1, 1, 2], [2, 1, 2, 2]])
  assert.deepEqual(edges({ width: 2, height: 2, data: new Uint8Array(4).fill(255) }), [])
})

test("boxes that touch have one outline", () => {
  const mask = filled([[0, 2, 1, 2], [1, 2, 2, 3]], 2, 4)
  assert.deepEqual([...mask.data], [0, 255, 0, 0, 0, 255, 255, 0])
  assert.ok(!edges(mask).some(([x0, y0, x1, y1]) => x0 === 2 && x1 === 2 && y0 === 1 && y1 === 2))
})

test("equal pictures differ nowhere, others by as much as they do", () => {
  const a = Uint8ClampedArray.of(10, 10, 10, 255), b = Uint8ClampedArray.of(20, 20, 20, 255)
  assert.deepEqual([...differencePixels(a, a)], [...inferno(0), 255])
  assert.deepEqual([...differencePixels(a, b, 8)], [...inferno(80), 255])
})

test("a picture is shown whole, in the middle", () => {
  assert.deepEqual(contained(100, 50, 200, 200), { x: 0, y: 50, width: 200, height: 100 })
})
