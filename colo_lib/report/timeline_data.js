// What `packed.py` packed, as arrays; and what of it lies in a stretch. All times are ns since the window's start.

const EMPTY = { start: [], end: [] };

async function unpack(text) {
  const deflated = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = new DataView(raw.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(raw.subarray(4, 4 + size)));
  const next = columnsOf(raw, 4 + size, header.columns);
  const levels = header.bins_ns.map((binNs) => {
    const busy = [], starts = [];
    for (const _ of header.workloads) { busy.push(next()); starts.push(next()); }
    return { binNs, busy, starts, both: next() };
  });
  const rows = header.kernels_ns ? header.workloads.map(() => rowsOf(next)) : null;
  return {
    windowNs: header.window_ns, workloads: header.workloads.map(String), names: header.names.map(String), levels,
    rows, kernelsNs: header.kernels_ns,
  };
}

// Gives one column after another: byte planes, the lowest first; signed numbers fold 0, -1, 1, -2, … to 0, 1, 2, 3, …
function columnsOf(raw, at, shapes) {
  let place = 0;
  return () => {
    const [count, width, signed] = shapes[place++];
    const values = new Float64Array(count);
    for (let plane = 0, unit = 1; plane < width; plane++, unit *= 256, at += count) {
      for (let i = 0; i < count; i++) values[i] += raw[at + i] * unit;
    }
    if (signed) {
      for (let i = 0; i < count; i++) values[i] = values[i] % 2 ? -(values[i] + 1) / 2 : values[i] / 2;
    }
    return values;
  };
}

function rowsOf(next) {
  const kernels = spansOf(next(), next());
  const name = next(), blocks = next();
  const out = spansOf(next(), next());
  const reach = new Float64Array(kernels.end); // the latest end of all that began until here
  for (let i = 1; i < reach.length; i++) reach[i] = Math.max(reach[i], reach[i - 1]);
  return { ...kernels, reach, name, blocks, out };
}

// Starts and ends of spans given as the hole before each and its length.
function spansOf(hole, length) {
  const start = new Float64Array(hole.length), end = new Float64Array(hole.length);
  for (let i = 0, before = 0; i < hole.length; i++) {
    start[i] = before + hole[i];
    before = end[i] = start[i] + length[i];
  }
  return { start, end };
}

// How many of the sorted `values` are below `limit`.
function below(values, limit) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < limit) low = middle + 1; else high = middle;
  }
  return low;
}

// Places [first, last) between which all kernels lie that run in [from, to).
function touching(rows, from, to) {
  return [below(rows.reach, from), below(rows.start, to)];
}

// Kernels that run at `at`, the one that began last first.
function runningAt(rows, at) {
  const running = [];
  for (let i = below(rows.start, at + 1e-6) - 1; i >= 0 && rows.reach[i] > at; i--) if (rows.end[i] > at) running.push(i);
  return running;
}

// The union of a workload's kernels in [from, to), without the time in which its context was switched out.
function unionOf(rows, from, to) {
  const union = { start: [], end: [] };
  const [first, last] = touching(rows, from, to);
  for (let i = first; i < last; i++) {
    const start = Math.max(rows.start[i], from), end = Math.min(rows.end[i], to), top = union.end.length - 1;
    if (end <= start) continue;
    if (top >= 0 && start <= union.end[top]) union.end[top] = Math.max(union.end[top], end);
    else { union.start.push(start); union.end.push(end); }
  }
  return rows.out.start.length ? intersection(union, outside(rows.out, from, to)) : union;
}

function outside(spans, from, to) {
  const holes = { start: [from], end: [] };
  for (let i = below(spans.end, from); i < spans.start.length && spans.start[i] < to; i++) {
    holes.end.push(Math.max(spans.start[i], from));
    holes.start.push(spans.end[i]);
  }
  holes.end.push(Math.max(to, holes.start[holes.start.length - 1]));
  return holes;
}

function intersection(left, right) {
  const common = { start: [], end: [] };
  for (let i = 0, j = 0; i < left.start.length && j < right.start.length;) {
    const start = Math.max(left.start[i], right.start[j]), end = Math.min(left.end[i], right.end[j]);
    if (end > start) { common.start.push(start); common.end.push(end); }
    if (left.end[i] < right.end[j]) i++; else j++;
  }
  return common;
}

function lengthOf(spans) {
  return spans.end.reduce((sum, end, i) => sum + end - spans.start[i], 0);
}
