// Draws a timeline on its canvas: the whole window above, then a row a workload, what both did at once, and the axis.

const GUTTER = 66, MARGIN = 10, OVERVIEW = 24, ROW = 54, BOTH_ROW = 28, GAP = 9, AXIS = 24;
const LEAST_BAR_PX = 1, MOST_BAR_PX = 4; // a level's factor apart: at every zoom just one level lies between

function rowTops(viewer) {
  const names = viewer.data.workloads, both = names.length === 2;
  const rows = names.map((name, place) => ({ name, place, top: OVERVIEW + GAP + place * (ROW + GAP), height: ROW }));
  const top = OVERVIEW + GAP + names.length * (ROW + GAP);
  return both ? [...rows, { name: "both", place: -1, top, height: BOTH_ROW }] : rows;
}

function heightOf(viewer) {
  const last = rowTops(viewer).at(-1);
  return last.top + last.height + AXIS;
}

// The coarsest level whose bins are at most MOST_BAR_PX wide, else the finest there is.
function levelFor(data, nsPerPx) {
  return data.levels.findLast((level) => level.binNs <= MOST_BAR_PX * nsPerPx) || data.levels[0];
}

// What is drawn of the stretch in view: kernels where they are held and not too many for its width, else bins.
function shownAt(viewer) {
  const { data, from, to } = viewer, nsPerPx = (to - from) / viewer.plotPx;
  const level = levelFor(data, nsPerPx);
  const held = data.rows && from >= data.kernelsNs[0] && to <= data.kernelsNs[1];
  const count = held ? data.rows.reduce((sum, rows) => { const [a, b] = touching(rows, from, to); return sum + b - a; }, 0) : 0;
  const few = held && (count <= viewer.plotPx / 2 || level.binNs > MOST_BAR_PX * nsPerPx);
  return few ? { kernels: true, count } : { kernels: false, level, held };
}

function draw(viewer) {
  const { canvas, data } = viewer, ratio = window.devicePixelRatio || 1;
  const width = viewer.plotPx + GUTTER + MARGIN, height = heightOf(viewer);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const paint = { pen, ratio, ink: getComputedStyle(viewer.box).color, font: getComputedStyle(viewer.box).fontFamily };
  drawOverview(viewer, paint);
  const rows = rowTops(viewer);
  for (const row of rows) {
    label(paint, row.name, row.top + row.height / 2);
    ground(paint, row.top, row.height, viewer.plotPx);
  }
  pen.save();
  pen.beginPath();
  pen.rect(GUTTER, 0, viewer.plotPx, height);
  pen.clip();
  const toX = (ns) => GUTTER + (ns - viewer.from) / (viewer.to - viewer.from) * viewer.plotPx;
  for (const row of rows) {
    if (viewer.shown.kernels) drawKernels(viewer, paint, row, toX); else drawBins(viewer, paint, row, viewer.shown.level, toX);
  }
  if (viewer.cursor) drawCursor(viewer, paint, rows[viewer.cursor.place], toX);
  pen.restore();
  drawAxis(viewer, paint, rows.at(-1).top + rows.at(-1).height, toX);
}

function ground(paint, top, height, width) {
  paint.pen.globalAlpha = 0.07;
  paint.pen.fillStyle = paint.ink;
  paint.pen.fillRect(GUTTER, top, width, height);
  paint.pen.globalAlpha = 1;
}

function label(paint, words, middle) {
  paint.pen.fillStyle = paint.ink;
  paint.pen.font = `12px ${paint.font}`;
  paint.pen.textAlign = "left";
  paint.pen.textBaseline = "middle";
  paint.pen.fillText(words, 0, middle);
}

// Bars whose heights are shares of their bins; edges lie on device pixels, so that neighbours leave no seam.
function bars(paint, values, level, windowNs, toX, bottom, height, [first, last]) {
  const snap = (x) => Math.round(x * paint.ratio) / paint.ratio;
  for (let i = first; i < last; i++) {
    if (!values[i]) continue;
    const start = i * level.binNs, end = Math.min(start + level.binNs, windowNs);
    const left = snap(toX(start)), tall = values[i] / (end - start) * height;
    paint.pen.fillRect(left, bottom - tall, Math.max(snap(toX(end)) - left, 1 / paint.ratio), tall);
  }
}

function binsIn(level, from, to) {
  return [Math.max(0, Math.floor(from / level.binNs)), Math.min(level.both.length, Math.ceil(to / level.binNs))];
}

function drawBins(viewer, paint, row, level, toX) {
  const values = row.place < 0 ? level.both : level.busy[row.place];
  paint.pen.fillStyle = row.place < 0 ? paint.ink : viewer.colours[row.place];
  const range = binsIn(level, viewer.from, viewer.to);
  bars(paint, values, level, viewer.data.windowNs, toX, row.top + row.height, row.height, range);
}

function drawOverview(viewer, paint) {
  const { data, plotPx } = viewer, pen = paint.pen, toX = (ns) => GUTTER + ns / data.windowNs * plotPx;
  const level = levelFor(data, data.windowNs / plotPx), part = OVERVIEW / data.workloads.length;
  label(paint, "all", OVERVIEW / 2);
  ground(paint, 0, OVERVIEW, plotPx);
  data.workloads.forEach((_, place) => {
    pen.fillStyle = viewer.colours[place];
    bars(paint, level.busy[place], level, data.windowNs, toX, (place + 1) * part, part - 1, [0, level.both.length]);
  });
  const left = toX(viewer.from), width = Math.max(toX(viewer.to) - left, 3);
  pen.strokeStyle = paint.ink;
  pen.lineWidth = 2;
  pen.strokeRect(Math.min(left, GUTTER + plotPx - width) + 1, 1, Math.max(width - 2, 1), OVERVIEW - 2);
}

function drawKernels(viewer, paint, row, toX) {
  const { data, from, to } = viewer;
  if (row.place < 0) {
    const both = intersection(...data.rows.map((rows) => unionOf(rows, from, to)));
    paint.pen.fillStyle = paint.ink;
    both.start.forEach((start, i) => paint.pen.fillRect(toX(start), row.top, toX(both.end[i]) - toX(start), row.height));
    return;
  }
  const rows = data.rows[row.place], [first, last] = touching(rows, from, to);
  for (let i = first; i < last; i++) if (rows.end[i] > from) drawKernel(viewer, paint, row, rows, i, toX);
  fade(paint, row, rows.out, from, to, toX);
  for (let i = first; i < last; i++) if (rows.end[i] > from) drawName(viewer, paint, row, rows, i, toX);
}

function drawKernel(viewer, paint, row, rows, i, toX) {
  const left = Math.max(toX(rows.start[i]), GUTTER - 2);
  const right = Math.min(toX(rows.end[i]), GUTTER + viewer.plotPx + 2), wide = right - left;
  paint.pen.fillStyle = viewer.colours[row.place];
  paint.pen.fillRect(left, row.top, Math.max(wide - (wide > 3 ? 0.75 : 0), 0.5), row.height);
  if (wide < 4) return;
  // Where it begins is seen beside another as well.
  paint.pen.fillStyle = viewer.inks[row.place];
  paint.pen.globalAlpha = 0.4;
  paint.pen.fillRect(left, row.top, 0.75, row.height);
  paint.pen.globalAlpha = 1;
}

// A kernel's name in it, where there is room; up to where it goes pale, or from there in the colour of words.
function drawName(viewer, paint, row, rows, i, toX) {
  const pen = paint.pen, from = Math.max(rows.start[i], viewer.from), next = below(rows.out.end, from + 1e-6);
  const pale = rows.out.start[next] <= from, turn = (pale ? rows.out.end : rows.out.start)[next] ?? Infinity;
  const left = toX(from), wide = toX(Math.min(rows.end[i], viewer.to, turn)) - left;
  if (wide < 44) return;
  pen.save();
  pen.beginPath();
  pen.rect(left, row.top, wide - 4, row.height);
  pen.clip();
  pen.fillStyle = pale ? paint.ink : viewer.inks[row.place];
  pen.font = `11px ${paint.font}`;
  pen.textAlign = "left";
  pen.textBaseline = "middle";
  pen.fillText(shortName(viewer.data.names[rows.name[i]]), left + 4, row.top + row.height / 2);
  pen.restore();
}

// Without what many names begin with: the result's type and namespaces.
function shortName(name) {
  return name.replace(/^void /, "").replace(/^(?:\w+::|\(anonymous namespace\)::)+/, "");
}

// Where the context was switched out, kernels that had begun are pale.
function fade(paint, row, out, from, to, toX) {
  paint.pen.globalCompositeOperation = "destination-out";
  paint.pen.globalAlpha = 0.72;
  for (let i = below(out.end, from); i < out.start.length && out.start[i] < to; i++) {
    paint.pen.fillRect(toX(out.start[i]), row.top, toX(out.end[i]) - toX(out.start[i]), row.height);
  }
  paint.pen.globalAlpha = 1;
  paint.pen.globalCompositeOperation = "source-over";
}

function drawCursor(viewer, paint, row, toX) {
  const left = toX(viewer.cursor.from), wide = Math.max(toX(viewer.cursor.to) - left, 2);
  paint.pen.strokeStyle = paint.ink;
  paint.pen.lineWidth = 2;
  paint.pen.strokeRect(left - 1, row.top - 2, wide + 2, row.height + 4);
}

function drawAxis(viewer, paint, top, toX) {
  const { from, to, plotPx } = viewer, pen = paint.pen;
  const step = roundUp((to - from) / Math.max(plotPx / 110, 1));
  pen.fillStyle = pen.strokeStyle = paint.ink;
  pen.lineWidth = 1;
  pen.font = `12px ${paint.font}`;
  pen.textAlign = "left";
  pen.textBaseline = "top";
  for (let tick = Math.ceil(from / step); tick * step <= to; tick++) {
    const x = toX(tick * step), words = timeAt(tick * step, to - from, step), width = pen.measureText(words).width;
    pen.fillRect(Math.round(x), top, 1, 5);
    pen.fillText(words, Math.min(Math.max(x - width / 2, GUTTER - 8), GUTTER + plotPx + MARGIN - width), top + 8);
  }
}

// 1, 2 or 5 times a power of ten, at least `value`.
function roundUp(value) {
  const decade = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((digit) => digit * decade).find((step) => step >= value * 0.999999);
}

function number(value, digits) {
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

// A moment in the unit of the stretch it is told in, so exact as `stepNs` asks.
function timeAt(ns, spanNs, stepNs) {
  const [unit, name] = spanNs < 1e6 ? [1e3, "us"] : [1e6, "ms"];
  return `${number(ns / unit, Math.max(0, Math.ceil(-Math.log10(stepNs / unit) - 1e-9)))} ${name}`;
}

// A length of time with four digits or so.
function lasting(ns) {
  const [unit, name] = ns < 1e6 ? [1e3, "us"] : [1e6, "ms"], value = ns / unit;
  return `${number(value, Number.isInteger(value) ? 0 : value < 10 ? 3 : value < 100 ? 2 : 1)} ${name}`;
}
