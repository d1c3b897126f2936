// What the pack adds to ComfyUI's page. ComfyUI loads every .js file of a pack's web folder with the page.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

// The pack's folder may have any name: this file's address is /extensions/<folder>/stand_in.js.
const MODULE = `custom_nodes.${decodeURIComponent(import.meta.url.split("/").at(-2))}`
const TEXT = "text" // the widget's name, and the output's
const HEIGHT = 110 // of the text in pixels: six lines, and more are scrolled to

let words = {} // language -> the files of locales/<language>, of all packs

app.registerExtension({
  name: "StandIn",

  async init() {
    words = await api.getCustomNodesI18n()
  },

  nodeCreated(node) {
    if (!isOurs(node)) return
    nameChoices(node)
    const onExecuted = node.onExecuted
    node.onExecuted = function (output) {
      onExecuted?.call(this, output)
      showText(this, output)
    }
  },

  // a workflow's tab is opened again, or a job of the queue: ComfyUI brings back the outputs without a run
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs)) {
      const node = located(locator)
      if (node && isOurs(node)) showText(node, output)
    }
  },
})

function isOurs(node) {
  return node.constructor.nodeData?.python_module === MODULE
}

// "<id>", or "<subgraph>:<id>" for a node inside a subgraph
function located(locator) {
  const [id, subgraph] = locator.split(":").reverse()
  const graph = subgraph ? app.rootGraph.subgraphs.get(subgraph) : app.rootGraph
  return graph?.getNodeById(id)
}

// ComfyUI translates names and tooltips by itself, and choices not. The value in the workflow stays the English one.
// Where the user takes another language, ComfyUI makes the nodes anew.
function nameChoices(node) {
  const language = app.extensionManager.setting.get("Comfy.Locale")
  const inputs = words[language]?.nodeDefs?.[node.comfyClass]?.inputs ?? {}
  for (const widget of node.widgets ?? []) {
    const choices = inputs[widget.name]?.options
    if (choices) widget.options.getOptionLabel = (value) => choices[value] ?? value
  }
}

// ComfyUI sends a node's text with every run, also where it has the result already; it shows that of its own nodes alone.
function showText(node, output) {
  if (!output?.text) return
  const box = node.widgets?.find((widget) => widget.name === TEXT) ?? addBox(node)
  box.value = output.text.join("\n")
}

// An element of the page's own is drawn by both renderings of nodes, the canvas and Vue.
function addBox(node) {
  const element = document.createElement("textarea")
  element.readOnly = true
  element.className = "comfy-multiline-input" // ComfyUI's colours
  element.style.cssText = `font: 12px/1.4 sans-serif; min-height: ${HEIGHT}px`
  element.dataset.captureWheel = "true" // Vue's nodes then let the wheel scroll
  const box = node.addDOMWidget(TEXT, TEXT, element, {
    getValue: () => element.value,
    setValue: (text) => (element.value = text),
    getMinHeight: () => HEIGHT + 20, // with the margins
    serialize: false, // no input of the prompt
  })
  box.serialize = false // and not in the saved workflow
  node.expandToFitContent()
  return box
}
