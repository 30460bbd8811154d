// Heat to colours, masks to outlines. Pure functions on arrays; the colours are those of engine/overlay.py.

// Okabe and Ito's colours, told apart by colour-blind readers
export const KIND_COLOURS = { dense: "#0073b3", partial: "#e69e00", shallow: "#56b4e9", skipped: "#9e9e9e" }

// Nine samples of matplotlib's "inferno", a CC0 table whose lightness rises evenly
const INFERNO = [
  [0.001, 0.0, 0.014], [0.121, 0.047, 0.283], [0.316, 0.072, 0.485], [0.494, 0.122, 0.508], [0.671, 0.195, 0.455],
  [0.841, 0.3, 0.331], [0.954, 0.468, 0.162], [0.988, 0.685, 0.072], [0.988, 0.998, 0.645]
]

/** Heat in 0..255 -> [r, g, b] in 0..255. */
export function inferno(heat) {
  const position = (Math.min(255, Math.max(0, heat)) / 255) * (INFERNO.length - 1)
  const low = Math.min(Math.floor(position), INFERNO.length - 2)
  return INFERNO[low].map((from, i) => Math.round(255 * (from + (INFERNO[low + 1][i] - from) * (position - low))))
}

const TABLE = Array.from({ length: 256 }, (_, heat) => inferno(heat))

/** A map's RGBA pixels; as an overlay the hotter the less transparent, else opaque. */
export function heatPixels({ width, height, data }, overlay) {
  const pixels = new Uint8ClampedArray(width * height * 4)
  for (let i = 0; i < data.length; i++) {
    pixels.set(TABLE[data[i]], 4 * i)
    pixels[4 * i + 3] = overlay ? 25 + 0.55 * data[i] : 255
  }
  return pixels
}

/** How far two RGBA pictures are apart, times `gain`, as RGBA. */
export function differencePixels(a, b, gain = 8) {
  const pixels = new Uint8ClampedArray(a.length)
  for (let i = 0; i < a.length; i += 4) {
    const apart = (Math.abs(a[i] - b[i]) + Math.abs(a[i + 1] - b[i + 1]) + Math.abs(a[i + 2] - b[i + 2])) / 3
    pixels.set(TABLE[Math.min(255, Math.round(apart * gain))], i)
    pixels[i + 3] = 255
  }
  return pixels
}

/** The edges between the inside and the outside of a mask: [x0, y0, x1, y1] in cells. The frame's edge is none. */
export function edges({ width, height, data }) {
  const lines = []
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const inside = data[y * width + x] > 127
      if (x + 1 < width && inside !== data[y * width + x + 1] > 127) lines.push([x + 1, y, x + 1, y + 1])
      if (y + 1 < height && inside !== data[(y + 1) * width + x] > 127) lines.push([x, y + 1, x + 1, y + 1])
    }
  return lines
}

/** The mask of a frame that is inside its boxes [y0, y1, x0, x1]. */
export function filled(boxes, height, width) {
  const data = new Uint8Array(height * width)
  for (const [y0, y1, x0, x1] of boxes) for (let y = y0; y < y1; y++) data.fill(255, y * width + x0, y * width + x1)
  return { width, height, data }
}

/** Where a picture of this size lies in a box, whole and centred: {x, y, width, height}. */
export function contained(width, height, boxWidth, boxHeight) {
  const scale = Math.min(boxWidth / width, boxHeight / height)
  return { x: (boxWidth - width * scale) / 2, y: (boxHeight - height * scale) / 2, width: width * scale, height: height * scale }
}
