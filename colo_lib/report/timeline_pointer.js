// What lies under the pointer or the cursor of a timeline, and how pointer and wheel move it.

const MOST_DESCRIBED = 3; // kernels at one moment

// Row `place` at time `at`: words about it, and the span they are about; null where there is nothing.
function tellAt(viewer, place, at) {
  const { data, shown } = viewer;
  if (!shown.kernels) return describeBin(viewer, Math.floor(at / shown.level.binNs));
  const wanted = place < data.workloads.length ? [place] : data.workloads.keys();
  const described = [...wanted].map((row) => [row, runningAt(data.rows[row], at)]).filter(([, kernels]) => kernels.length)
    .map(([row, kernels]) => describeKernels(viewer, row, kernels));
  return described.length ? { ...described[0], lines: described.flatMap((row) => row.lines) } : null;
}

function describeKernels(viewer, place, kernels) {
  const { data } = viewer, rows = data.rows[place];
  const lines = kernels.slice(0, MOST_DESCRIBED).flatMap((i) => {
    const from = rows.start[i], to = rows.end[i], blocks = rows.blocks[i];
    const out = to - from - lengthOf(intersection({ start: [from], end: [to] }, outside(rows.out, from, to)));
    const facts = [`from ${number(from / 1e3, 3)} us`, `lasts ${lasting(to - from)}`];
    if (out > 0) facts.push(`of it switched out ${lasting(out)}`);
    if (blocks > 0) facts.push(`${number(blocks, 0)} block${blocks === 1 ? "" : "s"}`);
    return [data.names[rows.name[i]], `${data.workloads[place]}: ${facts.join(", ")}`];
  });
  if (kernels.length > MOST_DESCRIBED) lines.push(`and ${kernels.length - MOST_DESCRIBED} more at this moment`);
  return { place, from: rows.start[kernels[0]], to: rows.end[kernels[0]], lines };
}

function describeBin(viewer, bin) {
  const { data, shown: { level } } = viewer;
  if (bin < 0 || bin >= level.both.length) return null;
  const from = bin * level.binNs, to = Math.min(from + level.binNs, data.windowNs), span = to - from;
  const lines = [`${timeAt(from, span, span / 10)} to ${timeAt(to, span, span / 10)}`];
  data.workloads.forEach((name, place) => {
    const count = level.starts[place][bin];
    lines.push(`${name}: busy ${percent(level.busy[place][bin], span)}, ${number(count, 0)} kernel${count === 1 ? " starts" : "s start"}`);
  });
  if (data.workloads.length === 2) lines.push(`both at once: ${percent(level.both[bin], span)}`);
  return { place: viewer.row, from, to, lines };
}

function showTip(viewer, description, x, y) {
  const { tip, stage } = viewer;
  tip.hidden = !description;
  if (!description) return;
  tip.textContent = description.lines.join("\n");
  tip.style.left = `${Math.max(0, Math.min(x + 12, stage.clientWidth - tip.offsetWidth))}px`;
  const under = y + 16 + tip.offsetHeight <= stage.clientHeight || y < tip.offsetHeight;
  tip.style.top = `${under ? y + 16 : y - tip.offsetHeight - 8}px`;
}

// The next (1) or previous (-1) kernel or bin of the chosen row, brought into view and told.
function step(viewer, by) {
  const { data, row, shown } = viewer, middle = (viewer.from + viewer.to) / 2;
  const inView = viewer.cursor && viewer.cursor.to > viewer.from && viewer.cursor.from < viewer.to;
  const place = Math.min(row, data.workloads.length - 1);
  let description;
  if (shown.kernels) {
    const rows = data.rows[place], known = inView && viewer.cursor.kernel !== undefined && viewer.cursor.place === place;
    const next = known ? viewer.cursor.kernel + by : below(rows.start, middle) - (by < 0 ? 1 : 0);
    if (next < 0 || next >= rows.start.length) return;
    description = { ...describeKernels(viewer, place, [next]), kernel: next };
  } else {
    const at = inView ? (by > 0 ? viewer.cursor.to : viewer.cursor.from - 1) : middle;
    description = describeBin(viewer, Math.floor(at / shown.level.binNs));
  }
  if (description) reveal(viewer, description);
}

function reveal(viewer, description) {
  const span = viewer.to - viewer.from, centre = (description.from + description.to) / 2;
  viewer.cursor = description;
  const away = centre < viewer.from || centre > viewer.to;
  go(viewer, ...(away ? [centre - span / 2, centre + span / 2] : [viewer.from, viewer.to]));
  const row = rowTops(viewer)[description.place];
  showTip(viewer, description, xOf(viewer, Math.max(description.from, viewer.from)), row.top + row.height - 8);
  viewer.status.textContent = description.lines.join("; ");
}

function changeRow(viewer, by) {
  const count = viewer.data.workloads.length;
  viewer.row = (viewer.row + by + count) % count;
  viewer.cursor = null;
  go(viewer, viewer.from, viewer.to);
  viewer.status.textContent = `Row ${viewer.data.workloads[viewer.row]}. ${viewer.status.textContent}`;
}

function xOf(viewer, ns) {
  return GUTTER + (ns - viewer.from) / (viewer.to - viewer.from) * viewer.plotPx;
}

function timeOf(viewer, x) {
  return viewer.from + (x - GUTTER) / viewer.plotPx * (viewer.to - viewer.from);
}

function onMove(viewer, event, held) {
  const box = viewer.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  if (held.kind === "overview") {
    const centre = (x - GUTTER) / viewer.plotPx * viewer.data.windowNs, half = (viewer.to - viewer.from) / 2;
    const start = Math.min(Math.max(centre - half, 0), viewer.data.windowNs - 2 * half);
    return go(viewer, start, start + 2 * half);
  }
  if (held.kind === "rows") {
    pan(viewer, (held.x - x) / viewer.plotPx);
    held.x = x;
    return undefined;
  }
  const place = rowTops(viewer).findIndex((row) => y >= row.top && y < row.top + row.height);
  return showTip(viewer, place < 0 || x < GUTTER ? null : tellAt(viewer, place, timeOf(viewer, x)), x, y);
}

function onWheel(viewer, event) {
  // A wheel over the picture scrolls the page until the reader has turned to the picture.
  if (!event.ctrlKey && document.activeElement !== viewer.stage) return;
  const lines = event.deltaMode === 1 ? 16 : 1, whole = viewer.to - viewer.from >= viewer.data.windowNs;
  if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    pan(viewer, (event.deltaX || event.deltaY) * lines / viewer.plotPx);
  } else {
    if (whole && event.deltaY > 0) return;
    const x = event.clientX - viewer.canvas.getBoundingClientRect().left;
    zoom(viewer, Math.exp(Math.max(-1, Math.min(1, event.deltaY * lines * 0.002))), timeOf(viewer, Math.max(x, GUTTER)));
  }
  event.preventDefault();
}

function listen(viewer) {
  const { stage, canvas } = viewer, held = { kind: "", x: 0 };
  for (const part of [viewer.tools, stage]) part.addEventListener("keydown", (event) => onKey(viewer, event));
  stage.addEventListener("wheel", (event) => onWheel(viewer, event), { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    const box = canvas.getBoundingClientRect();
    Object.assign(held, { kind: event.clientY - box.top < OVERVIEW ? "overview" : "rows", x: event.clientX - box.left });
    canvas.setPointerCapture(event.pointerId);
    if (held.kind === "overview") onMove(viewer, event, held);
  });
  canvas.addEventListener("pointermove", (event) => onMove(viewer, event, held));
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { held.kind = ""; });
  canvas.addEventListener("pointerleave", () => { viewer.tip.hidden = true; });
  canvas.addEventListener("dblclick", (event) => {
    zoom(viewer, 0.5, timeOf(viewer, event.clientX - canvas.getBoundingClientRect().left));
  });
  // A finger does not hover.
  canvas.addEventListener("click", (event) => onMove(viewer, event, { kind: "" }));
  followLook(viewer);
}

// Draw anew when the room or the colours change. An output that the notebook has replaced must not be kept by this.
function followLook(viewer) {
  const weak = new WeakRef(viewer);
  const again = (always) => {
    const known = weak.deref();
    if (!known || !known.stage.clientWidth || (!always && plotPx(known) === known.plotPx)) return;
    known.plotPx = plotPx(known);
    go(known, known.from, known.to);
  };
  new ResizeObserver(() => again(false)).observe(viewer.stage);
  // Light to dark and back: the system's look, and JupyterLab's.
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => again(true));
  new MutationObserver(() => again(true)).observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
}
