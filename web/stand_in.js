// What the pack adds to ComfyUI's page. ComfyUI loads every .js file of a pack's web folder with the page.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { ComfyWidgets } from "../../scripts/widgets.js"

// The pack's folder may have any name: this file's address is /extensions/<folder>/stand_in.js.
const MODULE = `custom_nodes.${decodeURIComponent(import.meta.url.split("/").at(-2))}`
const TEXT = "text" // the widget's name, and the output's

let words = {} // language -> the files of locales/<language>, of all packs

app.registerExtension({
  name: "StandIn",

  async init() {
    words = await api.getCustomNodesI18n()
  },

  nodeCreated(node) {
    if (!isOurs(node)) return
    nameChoices(node)
    followPresets(node)
    const onExecuted = node.onExecuted
    node.onExecuted = function (output) {
      onExecuted?.call(this, output)
      showText(this, output)
    }
  },

  // ComfyUI brings back the outputs without a run where a workflow's tab is opened again
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

// A preset turns the widgets that it sets, and such a widget that is turned by hand shows the preset that fits or the
// first, which sets nothing. So what is shown is what runs.
function followPresets(node) {
  const presets = node.constructor.nodeData.input?.optional?.preset?.[1]?.presets
  if (!presets) return
  const widget = (name) => node.widgets?.find((each) => each.name === name)
  const fits = (settings) => Object.entries(settings).every(([name, value]) => widget(name)?.value === value)
  const [[none], ...named] = Object.entries(presets)
  whenTurned(widget("preset"), (preset) => {
    for (const [name, value] of Object.entries(presets[preset] ?? {})) widget(name).value = value
  })
  for (const name of new Set(named.flatMap(([, settings]) => Object.keys(settings)))) {
    whenTurned(widget(name), () => {
      widget("preset").value = named.find(([, settings]) => fits(settings))?.[0] ?? none
    })
  }
}

function whenTurned(widget, act) {
  const callback = widget.callback
  widget.callback = function (value, ...rest) {
    callback?.call(this, value, ...rest)
    act(value)
  }
}

// ComfyUI sends a node's text with every run, also where it has the result already; it shows that of its own nodes alone.
function showText(node, output) {
  if (!output?.text) return
  const box = node.widgets?.find((widget) => widget.name === TEXT) ?? addBox(node)
  box.value = output.text.join("\n")
}

// ComfyUI's own box for several lines, which both renderings of nodes know: the canvas and Vue.
function addBox(node) {
  const box = ComfyWidgets.STRING(node, TEXT, ["STRING", { multiline: true }], app).widget
  box.serialize = false // not in the saved workflow,
  box.options.serialize = false // and no input of the prompt
  box.element.readOnly = true // on the canvas,
  box.options.read_only = true // and in Vue
  box.options.getMinHeight = () => 130 // pixels: nine lines on the canvas; more are scrolled to
  node.expandToFitContent()
  return box
}
