// The widget of the preview node: what arrives, what the user chooses, and the controls. stage.js draws.

import { describe, evaluationAt, newRun, pictureCount, sampled, take, takeInto, takeWords } from "./run.js"
import { drawTimeline, Stage } from "./stage.js"

const PLAYING = 120 // milliseconds an evaluation

function element(tag, className, parent, properties = {}) {
  const made = Object.assign(document.createElement(tag), { className, ...properties })
  parent?.append(made)
  return made
}

export class HighlightView {
  /** `texts`: of texts.js. `fetchJson`: (file) -> what a file of the server holds. `urlOf`: (file) -> where it lies. */
  constructor(texts, fetchJson, urlOf) {
    Object.assign(this, { texts, fetchJson })
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
    this.summary = ""
    this.hint = texts.waiting
    this.build(urlOf)
    this.observer = new ResizeObserver(() => this.schedule())
    this.observer.observe(this.canvas)
  }

  build(urlOf) {
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
    const stage = element("div", "highlight-stage", this.element)
    this.canvas = element("canvas", "", stage)
    this.stage = new Stage(this.canvas, urlOf, () => this.schedule())
    this.hintElement = element("div", "highlight-hint", stage)
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
    this.stage.destroy()
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
    this.sum.textContent = run && !run.done ? sampled(run, this.texts) : this.summary
    this.sum.title = this.sum.textContent
    const told = run?.cells[this.hovered ?? this.index]
    this.now.textContent = told ? describe(told, run.cells.length, this.texts) : ""
    this.now.title = this.now.textContent
    for (const [name, value] of [["min", 1], ["max", run?.cells.length ?? 0], ["now", this.index + 1]])
      this.time.setAttribute(`aria-value${name}`, String(value))
    this.time.setAttribute("aria-valuetext", this.now.textContent)
    drawTimeline(this.timeCanvas, run, this.index, this.hovered)
    const { index, picture, word, shown, pictures, reference } = this
    this.stage.draw(run, { index, picture, word, shown, pictures, reference })
  }

  controls(run) {
    const label = ({ sampler, shape, cells, started }) =>
      `${sampler} ${shape.slice(-2).reverse().join("x")}, ${cells.length}, ${new Date(started * 1000).toLocaleTimeString()}`
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
