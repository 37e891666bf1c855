// Browsers refuse workers to pages that are opened as files. The search then works in a hidden frame of the same page.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const waiting = []
      this.postMessage = message => waiting.push(message)
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = "<!doctype html><title>search</title>"
      frame.addEventListener("load", () => {
        const inside = frame.contentWindow
        const tell = (target, message) => target.dispatchEvent(new MessageEvent("message", { data: message }))
        inside.postMessage = message => tell(this, message)
        const script = inside.document.createElement("script")
        script.src = url
        script.addEventListener("load", () => {
          this.postMessage = message => tell(inside, message)
          waiting.forEach(this.postMessage)
        })
        inside.document.head.append(script)
      }, { once: true })
      document.documentElement.append(frame)
    }
    terminate() {}
  }
}
