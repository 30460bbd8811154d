// One sampling run as messages tell it (engine/messages.py), and what is to be read from it. Pure functions.

export const KINDS = ["dense", "partial", "shallow", "skipped"]
const KEEP = 8 // runs of one node

export function newRun(key) {
  return {
    key, nodes: [], sampler: "", shape: [], expected: 0, fidelity: null, words: [], started: 0, note: "", cells: [], heatmaps: new Map(),
    merged: new Map(), wordMaps: null, highlight: null, pictures: null, done: null
  }
}

/** Take up a message; returns the run. Cells come in order and once; maps and pictures may be left out on the way. */
export function take(run, message) {
  for (const name of ["nodes", "sampler", "shape", "expected", "fidelity", "words", "started", "note"])
    if (message[name] !== undefined) run[name] = message[name]
  for (const cell of message.cells ?? []) run.cells[cell.index] = cell
  for (const name of ["heatmaps", "merged"])
    for (const [index, map] of Object.entries(message[name] ?? {})) run[name].set(Number(index), decoded(map))
  if (message.highlight) run.highlight = decoded(message.highlight)
  if (message.pictures) {
    const { images, frames, size, jpegs } = message.pictures
    run.pictures ??= { jpegs: new Map() }
    Object.assign(run.pictures, { images, frames, size })
    for (const [index, jpeg] of Object.entries(jpegs)) run.pictures.jpegs.set(Number(index), jpeg)
  }
  if (message.done) {
    run.done = message.done
    message.done.ms.forEach((ms, index) => run.cells[index] && (run.cells[index].ms = ms))
  }
  return run
}

/** Heatmaps of single words: {maps: {evaluation: [a map of all images for each word]}}. */
export function takeWords(run, message) {
  run.wordMaps = new Map(Object.entries(message.maps).map(([index, maps]) => [Number(index), maps.map(decoded)]))
  return run
}

/** The list of a node's runs with a message taken up; the newest run last. Those of before stay, up to eight. */
export function takeInto(runs, message) {
  let run = runs.find((other) => other.key === message.key)
  if (!run) {
    run = newRun(message.key)
    runs = [...runs, run].slice(-KEEP)
  }
  take(run, message)
  return runs
}

export function decoded({ shape, data }) {
  return { shape, data: Uint8Array.from(atob(data), (character) => character.charCodeAt(0)) }
}

/** The entry of a map by evaluation at `index`, or the latest before it; null before the first. */
export function latest(entries, index) {
  let best = -1
  for (const key of entries?.keys() ?? []) if (key <= index && key > best) best = key
  return best < 0 ? null : entries.get(best)
}

/** One image's map of maps (n, h, w): {width, height, data}; the last image's where there are not so many. */
export function mapOf(maps, image) {
  if (!maps) return null
  const [count, height, width] = maps.shape
  const start = Math.min(image, count - 1) * height * width
  return { width, height, data: maps.data.subarray(start, start + height * width) }
}

/** How many pictures a run has, frames of videos counted, and of which image one is. */
export const pictureCount = (run) => (run?.pictures ? run.pictures.images * run.pictures.frames : run?.shape?.[0] ?? 1)
export const imageOf = (run, picture) => (run?.pictures ? Math.floor(picture / run.pictures.frames) : picture)

/** Which of `count` files shows this picture of a run, when a run has more or fewer. */
export function fileOf(run, picture, count) {
  const own = Math.max(pictureCount(run), 1)
  return own === count ? picture : Math.min(count - 1, Math.floor((picture * count) / own))
}

export const counts = (run) => Object.fromEntries(KINDS.map((kind) => [kind, run.cells.filter((cell) => cell.kind === kind).length]))

/** The timeline's bars: {index, kind, x, y, width, height}, in a box of this size. Room is kept for what is expected. */
export function bars(run, width, height) {
  const total = run.done ? run.cells.length : Math.max(run.cells.length, run.expected)
  const step = width / Math.max(total, 1)
  const gap = step > 4 ? 1 : 0
  return run.cells.map((cell, index) => {
    const tall = Math.max(3, cell.active * height)
    return { index, kind: cell.kind, x: index * step, y: height - tall, width: Math.max(1, step - gap), height: tall }
  })
}

/** The evaluation under a place of the timeline, or null. */
export function evaluationAt(run, x, width) {
  const total = run.done ? run.cells.length : Math.max(run.cells.length, run.expected)
  const index = Math.floor((x / width) * total)
  return run.cells.length && index >= 0 ? Math.min(index, run.cells.length - 1) : null
}

/** An evaluation in words. */
export function describe(cell, total, text) {
  const parts = [
    `${cell.index + 1}/${total}`, `${text.sigma} ${number(cell.sigma)}`, text[cell.kind], cell.reason,
    `${text.active} ${Math.round(cell.active * 100)}%`
  ]
  if (cell.ms) parts.push(`${number(cell.ms)} ms`)
  if (cell.error != null) parts.push(`${text.error} ${number(cell.error * 100)}%`)
  if (cell.planned && cell.planned !== cell.kind) parts.push(`${text.planned} ${text[cell.planned]}`)
  return parts.join(" · ")
}

/** How far a run is, and how near to the dense one its plan is expected to come. */
export function sampled(run, text) {
  const far = `${text.sampling} ${run.cells.length}/${run.expected}`
  return run.fidelity == null ? far : `${far} · ${text.expected} ${number(run.fidelity)} dB`
}

export const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3))))
