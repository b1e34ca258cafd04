// A timeline to zoom: takes its place in every .colo-timeline that the page holds, whose words stay as they were.

const HELP = "Zoom: + and \u2212, or the wheel once the picture was clicked. Move: drag, or arrows left and right. 0: all. "
  + "Kernel by kernel: n and p; up and down change the row.";
const LABEL = "Zoomable timeline. Plus and minus zoom, arrows left and right move, 0 shows all, n and p go to the next "
  + "and previous kernel or bin, up and down change the row.";
const BUTTONS = [["+", "Zoom in"], ["\u2212", "Zoom out"], ["\u25C0", "Earlier"], ["\u25B6", "Later"], ["All", "Show all"]];
const LEAST_SPAN_NS = 500, FEWEST_BINS = 12;

function startTimelines() {
  for (const box of document.querySelectorAll(".colo-timeline:not([data-state])")) {
    box.dataset.state = "reading";
    unpack(box.dataset.packed).then((data) => show(box, data)).catch((error) => {
      box.dataset.state = "failed";
      box.querySelector(".colo-without, .colo-status").textContent = `This browser cannot draw the timeline to zoom: ${error}`;
    });
  }
}

function show(box, data) {
  const make = (tag, name) => Object.assign(document.createElement(tag), { className: name });
  const tools = make("div", "colo-tools"), stage = make("div", "colo-stage"), canvas = make("canvas", "");
  const tip = make("div", "colo-tip"), status = make("p", "colo-status"), help = make("p", "colo-help");
  const known = box.dataset.colours.split(" ");
  const colours = data.workloads.map((name) => known[name === "embedder" ? 1 : 0]);
  const viewer = { box, data, tools, stage, canvas, tip, status, colours, inks: colours.map(inkOn), row: 0, cursor: null };
  stage.tabIndex = 0;
  stage.setAttribute("role", "application");
  stage.setAttribute("aria-label", LABEL);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", box.querySelector(".colo-words").textContent);
  status.setAttribute("role", "status");
  help.textContent = HELP;
  tip.hidden = true;
  for (const [words, title] of BUTTONS) {
    const button = Object.assign(make("button", ""), { type: "button", textContent: words, title });
    button.setAttribute("aria-label", title);
    button.addEventListener("click", () => act(viewer, title));
    tools.append(button);
  }
  // JupyterLab's own keys stay out of what has the focus here: x cuts the cell, 0 0 restarts the kernel.
  for (const part of [stage, ...tools.children]) part.dataset.lmSuppressShortcuts = "true";
  stage.append(canvas, tip);
  box.querySelector(".colo-without").replaceWith(tools, stage, status, help);
  viewer.plotPx = plotPx(viewer);
  go(viewer, 0, data.windowNs);
  listen(viewer);
  box.dataset.state = "ready";
}

function plotPx(viewer) {
  return Math.max(viewer.canvas.clientWidth - GUTTER - MARGIN, 50);
}

// Black or white, whichever is read better on the colour.
function inkOn(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => (parseInt(colour.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#000000" : "#ffffff";
}

// Show [from, to) ns, as much of it as there is.
function go(viewer, from, to) {
  const { data, box } = viewer;
  const least = Math.min(data.rows ? LEAST_SPAN_NS : FEWEST_BINS * data.levels[0].binNs, data.windowNs);
  const span = Math.min(Math.max(to - from, least), data.windowNs);
  const start = Math.min(Math.max((from + to - span) / 2, 0), data.windowNs - span);
  Object.assign(viewer, { from: start, to: start + span });
  viewer.shown = shownAt(viewer);
  box.dataset.fromNs = viewer.from;
  box.dataset.toNs = viewer.to;
  box.dataset.shows = viewer.shown.kernels ? "kernels" : `bins of ${viewer.shown.level.binNs} ns`;
  viewer.status.textContent = statusOf(viewer);
  viewer.tip.hidden = true;
  viewer.drawing ||= requestAnimationFrame(() => { viewer.drawing = 0; draw(viewer); });
}

function zoom(viewer, factor, at = (viewer.from + viewer.to) / 2) {
  go(viewer, at - (at - viewer.from) * factor, at + (viewer.to - at) * factor);
}

function pan(viewer, share) {
  const by = (viewer.to - viewer.from) * share;
  const kept = Math.min(Math.max(by, -viewer.from), viewer.data.windowNs - viewer.to);
  go(viewer, viewer.from + kept, viewer.to + kept);
}

function act(viewer, what) {
  if (what === "Zoom in") zoom(viewer, 0.5);
  if (what === "Zoom out") zoom(viewer, 2);
  if (what === "Earlier") pan(viewer, -0.25);
  if (what === "Later") pan(viewer, 0.25);
  if (what === "Show all") { viewer.cursor = null; go(viewer, 0, viewer.data.windowNs); }
}

const KEYS = {
  "+": "Zoom in", "=": "Zoom in", "-": "Zoom out", "_": "Zoom out", ArrowLeft: "Earlier", ArrowRight: "Later", 0: "Show all",
};

function onKey(viewer, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = { n: 1, p: -1 }, rows = { ArrowUp: -1, ArrowDown: 1 };
  if (KEYS[event.key]) act(viewer, KEYS[event.key]);
  else if (steps[event.key]) step(viewer, steps[event.key]);
  else if (rows[event.key]) changeRow(viewer, rows[event.key]);
  else return;
  event.preventDefault();
}

function statusOf(viewer) {
  const { data, from, to, shown } = viewer, stepNs = (to - from) / 1000;
  const where = to - from >= data.windowNs ? `The whole window, ${lasting(data.windowNs)}` :
    `${timeAt(from, to - from, stepNs)} to ${timeAt(to, to - from, stepNs)} (${lasting(to - from)} of ${lasting(data.windowNs)})`;
  if (shown.kernels) {
    const pale = data.rows.some((rows) => rows.out.start.length) ? " (pale: begun, but switched out)" : "";
    return `${where}. ${shown.count ? `Kernels one by one${pale}` : "No kernel ran"}; ${shares(viewer)}.`;
  }
  const finest = shown.level === data.levels[0] && !shown.held;
  const none = !data.rows ? "kernels one by one are not held" :
    `kernels one by one are held from ${timeAt(data.kernelsNs[0], data.windowNs, data.windowNs / 1e5)} to ${timeAt(data.kernelsNs[1], data.windowNs, data.windowNs / 1e5)}`;
  return `${where}. Bars: share of bins of ${lasting(shown.level.binNs)}${finest ? `, the finest here (${none})` : ""}; ${shares(viewer)}.`;
}

// Busy shares of what is shown: of the stretch itself with kernels, of all bins that it touches with bins.
function shares(viewer) {
  const { data, from, to, shown } = viewer;
  let busy, both, span = to - from;
  if (shown.kernels) {
    const unions = data.rows.map((rows) => unionOf(rows, from, to));
    busy = unions.map(lengthOf);
    both = unions.length === 2 ? lengthOf(intersection(...unions)) : 0;
  } else {
    const [first, last] = binsIn(shown.level, from, to);
    const sum = (values) => { let all = 0; for (let i = first; i < last; i++) all += values[i]; return all; };
    busy = shown.level.busy.map(sum);
    both = sum(shown.level.both);
    span = Math.min(last * shown.level.binNs, data.windowNs) - first * shown.level.binNs;
  }
  const words = data.workloads.map((name, place) => `${name} busy ${percent(busy[place], span)}`);
  return [...words, ...(data.workloads.length === 2 ? [`both at once ${percent(both, span)}`] : [])].join(", ");
}

function percent(part, whole) {
  return `${number(100 * part / whole, 1)}%`;
}
