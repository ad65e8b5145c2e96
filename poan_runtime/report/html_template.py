"""The frame of the page that `poan-run --report out.html` writes; ``@NAME@`` is filled in."""

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>poan: @TITLE@</title>
<style>
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1180px;padding:16px;color:#1b1b1b}
h1{font-size:22px}h2{font-size:17px;margin:28px 0 8px}
.views{display:grid;grid-template-columns:1fr 1fr;gap:8px}
.views figure{margin:0}.views div{height:480px;background:#000}.views canvas{display:block}
figcaption{font-size:13px;color:#444}
.row{display:flex;flex-wrap:wrap;gap:10px}.row figure{margin:0}.row img{display:block}
table{border-collapse:collapse}td,th{text-align:left;padding:2px 14px 2px 0;vertical-align:top}
code{font-size:12px;word-break:break-all}svg text{font:12px system-ui,sans-serif}
.warn{background:#fff3d6;border-left:4px solid #d90;padding:6px 10px;margin:4px 0}
.notice{font-weight:600}
</style></head><body data-state="loading">
<h1>@TITLE@</h1>
<p class="notice">AI-processed, not for diagnosis. Research software, not a medical device.</p>
<p>@SUMMARY@</p>
@WARNINGS@
<h2>Input and output</h2>
<p>@VIEWS@ Move in one view and the other follows; the wheel changes the slice.</p>
@OVERLAY@
<div class="views">
<figure><div><canvas id="before"></canvas></div>
<figcaption>input, as the network saw it</figcaption></figure>
<figure><div><canvas id="after"></canvas></div>
<figcaption>super-resolved</figcaption></figure></div>
<h2>A crop of the middle slice</h2><div class="row">@CROPS@</div>
<div class="row"><div><h2>Histogram</h2>@HISTOGRAM@</div>
<div><h2>Spectrum</h2>@SPECTRUM@</div></div>
<h2>Facts</h2><table>@FACTS@</table>
<script type="application/octet-stream" id="niivue">@NIIVUE@</script>
<script type="application/octet-stream" id="lr">@LR@</script>
<script type="application/octet-stream" id="sr">@SR@</script>
@CHANGED@
<script>
"use strict";
const held = id => document.getElementById(id);
const text = id => held(id).textContent.trim();
const fail = why => { document.body.dataset.state = "failed: " + why; };
window.addEventListener("error", e => fail(e.message));
window.addEventListener("unhandledrejection", e => fail(String(e.reason)));
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(text(id)), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return await new Response(stream).text();
}
async function view(canvas, id) {
  const nv = new niivue.Niivue({show3Dcrosshair: false, backColor: [0, 0, 0, 1], isColorbar: false,
                                logLevel: "error", crosshairWidth: 0.5, sagittalNoseLeft: false});
  await nv.attachToCanvas(held(canvas));
  const image = await niivue.NVImage.loadFromBase64(
    {base64: text(id), name: id + ".nii.gz", cal_min: 0, cal_max: 255, trustCalMinMax: true});
  nv.addVolume(image);
  nv.setInterpolation(true);
  nv.setSliceType(@PLANE@);
  return nv;
}
async function main() {
  const script = document.createElement("script");
  script.textContent = await unpacked("niivue");
  document.head.append(script);
  const before = await view("before", "lr"), after = await view("after", "sr");
  if (held("changed")) {
    const map = await niivue.NVImage.loadFromBase64(
      {base64: text("changed"), name: "changed.nii.gz", colormap: "hot", opacity: 0,
       cal_min: 1, cal_max: 255, trustCalMinMax: true});
    after.addVolume(map);
    held("opacity").addEventListener("input", e => after.setOpacity(1, Number(e.target.value)));
    after.setOpacity(1, Number(held("opacity").value));
  }
  before.broadcastTo([after], {"2d": true, "3d": true});
  after.broadcastTo([before], {"2d": true, "3d": true});
  before.drawScene(); after.drawScene();
  document.body.dataset.state = "ready";
}
main().catch(e => fail(String(e && e.stack || e)));
</script></body></html>
"""
