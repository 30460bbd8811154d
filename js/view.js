// The widget of the preview node: picture, heatmap, highlight and timeline of one run, drawn on two canvases.

import { contained, differencePixels, edges, heatPixels, KIND_COLOURS } from "./colours.js"
import { bars, describe, evaluationAt, fileOf, imageOf, latest, mapOf, pictureCount, take, takeInto, takeWords, newRun } from "./run.js"

const COMPARED = 384 // pixels on the longer side of a difference
const PLAYING = 120 // milliseconds an evaluation
const KEPT_PICTURES = 64

function element(tag, className, parent, properties = {}) {
  const made = Object.assign(document.createElement(tag), { className, ...properties })
  parent?.append(made)
  return made
}

export class HighlightView {
  /** `texts`: of texts.js. `fetchJson`: (file) -> what a file of the server holds. `urlOf`: (file) -> where it lies. */
  constructor(texts, fetchJson, urlOf) {
    Object.assign(this, { texts, fetchJson, urlOf })
    this.runs = []
    this.words = new Map() // a run's key -> the file of its words' heatmaps
    this.pictures = []
    this.reference = []
    this.chosen = null // a run's key; null follows the newest
    this.cursor = null // an evaluation; null follows the newest
    this.hovered = null
    this.picture = 0
    this.word = -1
    this.shown = { final: false, heatmap: true, highlight: true, difference: false, merged: false }
    this.images = new Map()
    this.summary = ""
    this.hint = texts.waiting
    this.build()
    this.observer = new ResizeObserver(() => this.schedule())
    this.observer.observe(this.stage)
  }

  build() {
    const { texts } = this
    this.element = element("div", "highlight-view")
    this.bar = element("div", "highlight-bar", this.element)
    this.runSelect = this.select("run", (value) => this.chooseRun(value))
    this.pictureSelect = this.select("picture", (value) => this.set({ picture: Number(value) }))
    this.toggles = Object.keys(this.shown).map((name) => {
      const button = element("button", "", this.bar, { type: "button", textContent: texts[name], title: texts[`${name}_tip`] })
      button.dataset.layer = name
      button.onclick = () => this.toggle(name)
      return button
    })
    this.wordSelect = this.select("words_tip", (value) => this.chooseWord(Number(value)))
    this.playButton = element("button", "", this.bar, { type: "button", textContent: "▶", title: texts.play })
    this.playButton.onclick = () => this.play()
    this.stage = element("div", "highlight-stage", this.element)
    this.canvas = element("canvas", "", this.stage)
    this.hintElement = element("div", "highlight-hint", this.stage)
    this.time = element("div", "highlight-time", this.element, { tabIndex: 0, title: texts.timeline })
    this.time.setAttribute("role", "slider")
    this.time.setAttribute("aria-label", texts.timeline)
    this.timeCanvas = element("canvas", "", this.time)
    this.now = element("div", "highlight-now", this.element)
    this.sum = element("div", "highlight-sum", this.element)
    this.time.onpointerdown = (event) => {
      this.time.setPointerCapture(event.pointerId)
      this.scrubTo(event)
    }
    this.time.onpointermove = (event) => this.hover(event)
    this.time.onpointerleave = () => this.set({ hovered: null })
    this.time.onkeydown = (event) => this.key(event)
    this.schedule()
  }

  select(name, changed) {
    const made = element("select", "", this.bar, { title: this.texts[name], hidden: true })
    made.setAttribute("aria-label", this.texts[name])
    made.onchange = () => changed(made.value)
    return made
  }

  // -- what arrives ----------------------------------------------------------------------------------------------

  /** A message of a run that samples. */
  takeMessage(message) {
    const fresh = !this.runs.some((run) => run.key === message.key)
    this.runs = takeInto(this.runs, message)
    if (fresh) Object.assign(this, { chosen: null, cursor: null, pictures: [], reference: [], summary: "" })
    if (fresh) this.shown.final = false
    if (message.done) this.summary = message.done.summary
    this.schedule()
  }

  /** The outputs of the preview node, which ran after the sampler. */
  async takeOutput(output) {
    const files = output.highlight_files ?? []
    this.pictures = output.highlight_pictures ?? []
    this.reference = output.highlight_reference ?? []
    this.summary = (output.text ?? []).join("\n")
    if (!files.length) Object.assign(this, { runs: [], hint: this.texts.empty })
    const told = await Promise.all(files.map((file) => this.fetchJson(file)))
    if (this.gone) return
    const known = new Map(this.runs.map((run) => [run.key, run]))
    this.runs = told.filter(Boolean).map((message) => take(known.get(message.key) ?? newRun(message.key), message))
    this.words = new Map(this.runs.map((run, i) => [run.key, output.highlight_words?.[i]]))
    if (!this.runs.some((run) => run.pictures)) this.shown.final = true
    this.schedule()
  }

  get run() {
    return this.runs.find((run) => run.key === this.chosen) ?? this.runs.at(-1) ?? null
  }

  get index() {
    const last = (this.run?.cells.length ?? 0) - 1
    return Math.min(this.cursor ?? last, last)
  }

  // -- what the user does ----------------------------------------------------------------------------------------

  set(changes) {
    Object.assign(this, changes)
    this.schedule()
  }

  chooseRun(key) {
    this.set({ chosen: key === this.runs.at(-1)?.key ? null : key, cursor: null, word: -1 })
  }

  toggle(name) {
    this.shown[name] = !this.shown[name]
    if (name === "merged" && this.shown.merged) this.shown.heatmap = false
    if (name === "heatmap" && this.shown.heatmap) this.shown.merged = false
    this.schedule()
  }

  async chooseWord(word) {
    const { run } = this
    this.set({ word })
    const file = run && this.words.get(run.key)
    if (word >= 0 && file && !run.wordMaps) {
      const told = await this.fetchJson(file)
      if (told) takeWords(run, told)
      this.schedule()
    }
  }

  at(event) {
    const box = this.time.getBoundingClientRect()
    return this.run && evaluationAt(this.run, event.clientX - box.left, box.width)
  }

  scrubTo(event) {
    const index = this.at(event)
    if (index !== null) this.set({ cursor: index === this.run.cells.length - 1 ? null : index, hovered: index })
  }

  hover(event) {
    if (event.buttons & 1) this.scrubTo(event)
    else this.set({ hovered: this.at(event) })
  }

  key(event) {
    const last = (this.run?.cells.length ?? 0) - 1
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: -5, PageUp: 5, Home: -last, End: last }
    if (last < 0 || !(event.key in steps)) return
    event.preventDefault()
    event.stopPropagation()
    const index = Math.min(last, Math.max(0, this.index + steps[event.key]))
    this.set({ cursor: index === last ? null : index, hovered: null })
  }

  play() {
    clearInterval(this.playing)
    if (!this.run?.cells.length) return
    this.set({ cursor: 0 })
    this.playing = setInterval(() => {
      const next = this.index + 1
      if (!this.run || next >= this.run.cells.length) {
        clearInterval(this.playing)
        this.set({ cursor: null })
      } else this.set({ cursor: next })
    }, PLAYING)
  }

  destroy() {
    this.observer.disconnect()
    clearInterval(this.playing)
    cancelAnimationFrame(this.frame)
    this.images.clear()
    this.runs = []
    this.gone = true
  }

  // -- drawing ---------------------------------------------------------------------------------------------------

  schedule() {
    if (this.frame || this.gone) return
    this.frame = requestAnimationFrame(() => {
      this.frame = 0
      if (!this.gone) this.render()
    })
  }

  render() {
    const { run } = this
    this.controls(run)
    this.hintElement.hidden = Boolean(run?.cells.length)
    this.hintElement.textContent = this.hint
    this.sum.textContent = run && !run.done ? `${this.texts.sampling} ${run.cells.length}/${run.expected}` : this.summary
    this.sum.title = this.sum.textContent
    const told = run?.cells[this.hovered ?? this.index]
    this.now.textContent = told ? describe(told, run.cells.length, this.texts) : ""
    this.now.title = this.now.textContent
    this.drawTime(run)
    this.drawStage(run)
  }

  controls(run) {
    const label = (other) => `${other.sampler} ${other.shape.slice(-2).reverse().join("x")}, ${other.cells.length}`
    fill(this.runSelect, this.runs.map((other, i) => [other.key, `${i + 1}: ${label(other)}`]), run?.key, 1)
    const pictures = run ? pictureCount(run) : 1
    fill(this.pictureSelect, Array.from({ length: pictures }, (_, i) => [i, `${this.texts.picture} ${i + 1}`]), this.picture, 1)
    const words = run && this.words.get(run.key) ? run.words : []
    fill(this.wordSelect, [[-1, this.texts.words], ...words.map((word, i) => [i, word])], this.word, 1)
    for (const button of this.toggles) {
      const name = button.dataset.layer
      button.setAttribute("aria-pressed", String(this.shown[name]))
      button.hidden = (name === "final" && !this.pictures.length) || (name === "merged" && !run?.merged.size)
    }
    this.playButton.hidden = !run?.done
  }

  drawTime(run) {
    const { context, width, height } = fitted(this.timeCanvas)
    context.clearRect(0, 0, width, height)
    context.fillStyle = "rgba(128, 128, 128, 0.18)"
    context.fillRect(0, 0, width, height)
    if (!run) return
    const { index } = this
    for (const bar of bars(run, width, height - 5)) {
      context.fillStyle = KIND_COLOURS[bar.kind]
      context.fillRect(bar.x, bar.y + 5, bar.width, bar.height)
      if (bar.index === index || bar.index === this.hovered) {
        context.fillStyle = getComputedStyle(this.element).color
        context.fillRect(bar.x, 0, bar.width, 3)
        context.globalAlpha = 0.25
        context.fillRect(bar.x, 5, bar.width, height)
        context.globalAlpha = 1
      }
    }
    this.time.setAttribute("aria-valuemin", "1")
    this.time.setAttribute("aria-valuemax", String(run.cells.length))
    this.time.setAttribute("aria-valuenow", String(index + 1))
    this.time.setAttribute("aria-valuetext", this.now.textContent)
  }

  drawStage(run) {
    const { context, width, height } = fitted(this.canvas)
    context.clearRect(0, 0, width, height)
    const cell = run?.cells[this.index]
    if (!cell) return
    const base = this.shown.difference ? this.difference(run) : this.base(run, this.index, this.shown.final)
    const [frameHeight, frameWidth] = run.shape.slice(-2)
    const box = contained(base?.width ?? frameWidth, base?.height ?? frameHeight, width, height)
    context.imageSmoothingEnabled = true
    if (base) context.drawImage(base.image, 0, base.top, base.width, base.height, box.x, box.y, box.width, box.height)
    this.drawMap(context, run, box, Boolean(base))
    if (this.shown.highlight) this.drawOutlines(context, run, cell, box)
  }

  drawMap(context, run, box, overlay) {
    const image = imageOf(run, this.picture)
    let maps = this.shown.merged ? latest(run.merged, this.index) : this.shown.heatmap ? latest(run.heatmaps, this.index) : null
    if (this.shown.heatmap && this.word >= 0 && run.wordMaps) maps = latest(run.wordMaps, this.index)?.[this.word]
    const map = mapOf(maps, image)
    if (!map || (this.shown.difference && !this.shown.merged)) return
    const small = new OffscreenCanvas(map.width, map.height)
    small.getContext("2d").putImageData(new ImageData(heatPixels(map, overlay), map.width, map.height), 0, 0)
    context.drawImage(small, box.x, box.y, box.width, box.height)
  }

  drawOutlines(context, run, cell, box) {
    const image = imageOf(run, this.picture)
    const mask = latest(run.heatmaps, this.index) ? mapOf(run.highlight, image) : null
    if (mask) {
      context.beginPath()
      for (const [x0, y0, x1, y1] of edges(mask)) {
        context.moveTo(box.x + (x0 / mask.width) * box.width, box.y + (y0 / mask.height) * box.height)
        context.lineTo(box.x + (x1 / mask.width) * box.width, box.y + (y1 / mask.height) * box.height)
      }
      stroke(context, "#fff")
    }
    const [frameHeight, frameWidth] = run.shape.slice(-2)
    const own = cell.boxes?.[Math.min(image, cell.boxes.length - 1)] ?? []
    context.beginPath()
    for (const [y0, y1, x0, x1] of own) {
      const [left, top] = [box.x + (x0 / frameWidth) * box.width, box.y + (y0 / frameHeight) * box.height]
      context.rect(left, top, ((x1 - x0) / frameWidth) * box.width, ((y1 - y0) / frameHeight) * box.height)
    }
    stroke(context, KIND_COLOURS.partial)
  }

  // -- pictures --------------------------------------------------------------------------------------------------

  /** What lies below: the finished picture, or the latent at this evaluation; {image, top, width, height} or null. */
  base(run, index, final) {
    if (final && this.pictures.length) return whole(this.image(this.fileUrl(this.pictures)))
    const jpeg = latest(run.pictures?.jpegs, index)
    if (!jpeg) return this.pictures.length && run === this.runs.at(-1) ? whole(this.image(this.fileUrl(this.pictures))) : null
    const image = this.image(`data:image/jpeg;base64,${jpeg}`)
    const [height, width] = run.pictures.size
    const place = Math.min(this.picture, pictureCount(run) - 1)
    if (image) this.before = { image, top: place * height, width, height }
    return this.before ?? null // what was there stays until this one is read, so that nothing flickers
  }

  difference(run) {
    const compared = this.reference.length
      ? [whole(this.image(this.fileUrl(this.pictures))), whole(this.image(this.fileUrl(this.reference)))]
      : [this.base(run, this.index, false), this.base(run, run.cells.length - 1, false)]
    if (compared.some((side) => !side)) return null
    const scale = Math.min(1, COMPARED / Math.max(compared[0].width, compared[0].height))
    const [width, height] = [compared[0].width, compared[0].height].map((side) => Math.max(1, Math.round(side * scale)))
    const [a, b] = compared.map((side) => {
      const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true })
      context.drawImage(side.image, 0, side.top, side.width, side.height, 0, 0, width, height)
      return context.getImageData(0, 0, width, height).data
    })
    const drawn = new OffscreenCanvas(width, height)
    drawn.getContext("2d").putImageData(new ImageData(differencePixels(a, b), width, height), 0, 0)
    return { image: drawn, top: 0, width, height }
  }

  fileUrl(files) {
    return this.urlOf(files[fileOf(this.run, this.picture, files.length)])
  }

  /** The picture at a URL once it is there; null until then, and a redraw when it is. */
  image(url) {
    let known = this.images.get(url)
    if (!known) {
      known = new Image()
      known.onload = () => this.schedule()
      known.src = url
      this.images.set(url, known)
      if (this.images.size > KEPT_PICTURES) this.images.delete(this.images.keys().next().value)
    }
    return known.complete && known.naturalWidth ? known : null
  }
}

const whole = (image) => image && { image, top: 0, width: image.naturalWidth, height: image.naturalHeight }

/** A line that is seen on any ground. */
function stroke(context, colour) {
  for (const [width, style] of [[3.5, "rgba(0, 0, 0, 0.6)"], [1.5, colour]]) {
    context.lineWidth = width
    context.strokeStyle = style
    context.stroke()
  }
}

/** A canvas with as many pixels as it has on the screen, in units of CSS. */
function fitted(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas
  const ratio = window.devicePixelRatio || 1
  const [wide, tall] = [Math.round(width * ratio), Math.round(height * ratio)]
  if (canvas.width !== wide || canvas.height !== tall) Object.assign(canvas, { width: wide, height: tall })
  const context = canvas.getContext("2d")
  context.setTransform(ratio, 0, 0, ratio, 0, 0)
  return { context, width, height }
}

/** Give a select its options, where they changed; it is hidden while there are not more than `few`. */
function fill(select, options, chosen, few) {
  const mark = JSON.stringify(options)
  if (select.dataset.mark !== mark) {
    select.dataset.mark = mark
    select.replaceChildren(...options.map(([value, text]) => Object.assign(document.createElement("option"), { value, text })))
  }
  select.hidden = options.length <= few
  select.value = String(chosen ?? "")
}
