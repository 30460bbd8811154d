import assert from "node:assert/strict"
import { readdirSync } from "node:fs"
import { test } from "node:test"
import { TEXTS, textsOf } from "../../js/texts.js"

test("every language has every text, and is one of ours", () => {
  for (const [language, texts] of Object.entries(TEXTS)) {
    assert.deepEqual(Object.keys(texts).sort(), Object.keys(TEXTS.en).sort(), language)
    assert.ok(Object.values(texts).every((text) => text.trim()), language)
  }
  assert.deepEqual(Object.keys(TEXTS).sort(), readdirSync(new URL("../../locales", import.meta.url)).sort())
})

test("a locale without texts gets English, a regional one its language", () => {
  assert.equal(textsOf("fr"), TEXTS.en)
  assert.equal(textsOf(undefined), TEXTS.en)
  assert.equal(textsOf("zh-TW"), TEXTS.zh)
})
