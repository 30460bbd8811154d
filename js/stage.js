// The picture of the preview's widget, with heatmap and outlines, and its timeline.

import { contained, differencePixels, edges, filled, heatPixels, KIND_COLOURS } from "./colours.js"
import { bars, fileOf, imageOf, latest, mapOf, pictureCount } from "./run.js"

const COMPARED = 384 // pixels on the longer side of a difference
const KEPT_PICTURES = 64
const MARK = 5 // pixels above the bars, for the mark of the one that is shown

/** Draws one evaluation of a run on a canvas. What is to be seen of it is `what`:
 * {index, picture, word, shown: {final, heatmap, highlight, difference, merged}, pictures, reference}, the last two files. */
export class Stage {
  /** `urlOf`: (file) -> where it lies. `redraw` is called when a picture has come that was missing. */
  constructor(canvas, urlOf, redraw) {
    Object.assign(this, { canvas, urlOf, redraw, images: new Map(), before: null })
  }

  draw(run, what) {
    const { context, width, height } = fitted(this.canvas)
    context.clearRect(0, 0, width, height)
    const cell = run?.cells[what.index]
    if (!cell) return
    const base = what.shown.difference ? this.difference(run, what) : this.base(run, what, what.index, what.shown.final)
    const [frameHeight, frameWidth] = run.shape.slice(-2)
    const box = contained(base?.width ?? frameWidth, base?.height ?? frameHeight, width, height)
    context.imageSmoothingEnabled = true
    if (base) context.drawImage(base.image, 0, base.top, base.width, base.height, box.x, box.y, box.width, box.height)
    drawMap(context, run, what, box, Boolean(base))
    if (what.shown.highlight) drawOutlines(context, run, what, box)
  }

  /** What lies below: the finished picture, or the latent at an evaluation; {image, top, width, height} or null. */
  base(run, what, index, final) {
    const jpeg = latest(run.pictures?.jpegs, index)
    if ((final || !jpeg) && what.pictures.length) return whole(this.image(this.urlOfPicture(run, what, what.pictures)))
    if (!jpeg) return null
    const image = this.image(`data:image/jpeg;base64,${jpeg}`)
    const count = pictureCount(run) // one below the other, each of the size the latent had at this evaluation
    const height = (image?.naturalHeight ?? 0) / count
    if (image) this.before = { image, top: Math.min(what.picture, count - 1) * height, width: image.naturalWidth, height }
    return this.before // what was there stays until this one is read, so that nothing flickers
  }

  /** From the reference, where there is one, else from how the run ended. */
  difference(run, what) {
    const sides = what.reference.length
      ? [what.pictures, what.reference].map((files) => whole(this.image(this.urlOfPicture(run, what, files))))
      : [what.index, run.cells.length - 1].map((index) => this.base(run, what, index, false))
    if (sides.some((side) => !side)) return null
    const scale = Math.min(1, COMPARED / Math.max(sides[0].width, sides[0].height))
    const [width, height] = [sides[0].width, sides[0].height].map((side) => Math.max(1, Math.round(side * scale)))
    const [a, b] = sides.map((side) => {
      const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true })
      context.drawImage(side.image, 0, side.top, side.width, side.height, 0, 0, width, height)
      return context.getImageData(0, 0, width, height).data
    })
    return { image: pixelCanvas(differencePixels(a, b), width, height), top: 0, width, height }
  }

  urlOfPicture(run, what, files) {
    return this.urlOf(files[fileOf(run, what.picture, files.length)])
  }

  /** The picture at a URL once it is there; null until then, and a redraw when it is. */
  image(url) {
    let known = this.images.get(url)
    if (!known) {
      known = new Image()
      known.onload = this.redraw
      known.src = url
      this.images.set(url, known)
      if (this.images.size > KEPT_PICTURES) this.images.delete(this.images.keys().next().value)
    }
    return known.complete && known.naturalWidth ? known : null
  }

  destroy() {
    for (const image of this.images.values()) image.onload = null
    this.images.clear()
    this.before = null
  }
}

/** One bar an evaluation; the shown one and the hovered one are marked. */
export function drawTimeline(canvas, run, index, hovered) {
  const { context, width, height } = fitted(canvas)
  context.clearRect(0, 0, width, height)
  context.fillStyle = "rgba(128, 128, 128, 0.18)"
  context.fillRect(0, 0, width, height)
  const ink = getComputedStyle(canvas).color
  for (const bar of run ? bars(run, width, height - MARK) : []) {
    context.fillStyle = KIND_COLOURS[bar.kind]
    context.fillRect(bar.x, bar.y + MARK, bar.width, bar.height)
    if (bar.index !== index && bar.index !== hovered) continue
    context.fillStyle = ink
    context.fillRect(bar.x, 0, bar.width, MARK - 2)
    context.globalAlpha = 0.25
    context.fillRect(bar.x, MARK, bar.width, height)
    context.globalAlpha = 1
  }
}

function drawMap(context, run, { index, picture, word, shown }, box, overlay) {
  if (shown.difference && !shown.merged) return
  let maps = shown.merged ? latest(run.merged, index) : shown.heatmap ? latest(run.heatmaps, index) : null
  if (shown.heatmap && word >= 0 && run.wordMaps) maps = latest(run.wordMaps, index)?.[word]
  const map = mapOf(maps, imageOf(run, picture))
  if (!map) return
  context.drawImage(pixelCanvas(heatPixels(map, overlay), map.width, map.height), box.x, box.y, box.width, box.height)
}

function drawOutlines(context, run, { index, picture }, box) {
  const image = imageOf(run, picture)
  const mask = latest(run.heatmaps, index) ? mapOf(run.highlight, image) : null
  if (mask) outline(context, mask, box, "#fff")
  const { boxes } = run.cells[index]
  const own = boxes?.[Math.min(image, boxes.length - 1)]
  if (own) outline(context, filled(own, ...run.shape.slice(-2)), box, KIND_COLOURS.partial)
}

function outline(context, mask, box, colour) {
  context.beginPath()
  for (const [x0, y0, x1, y1] of edges(mask)) {
    context.moveTo(box.x + (x0 / mask.width) * box.width, box.y + (y0 / mask.height) * box.height)
    context.lineTo(box.x + (x1 / mask.width) * box.width, box.y + (y1 / mask.height) * box.height)
  }
  stroke(context, colour)
}

function pixelCanvas(pixels, width, height) {
  const canvas = new OffscreenCanvas(width, height)
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0)
  return canvas
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
