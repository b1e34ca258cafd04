// Tables of class colo-table whose columns are sorted at their headings: upwards, downwards, as it was.

const SCALES = {
  ns: ["s", 1e-9], us: ["s", 1e-6], "\u00B5s": ["s", 1e-6], ms: ["s", 1e-3], s: ["s", 1], min: ["s", 60], h: ["s", 3600],
  B: ["B", 1], kB: ["B", 1e3], MB: ["B", 1e6], GB: ["B", 1e9], KiB: ["B", 2 ** 10], MiB: ["B", 2 ** 20], GiB: ["B", 2 ** 30],
  "%": ["%", 1], x: ["", 1], "\u00D7": ["", 1],
};
const NUMBER = /^[~\u2248<>\u2264\u2265]?\s?([+\-\u2212]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(e[+-]?\d+)?(\s?)(%|\u00D7|[A-Za-z\u00B5]+)?(.?)/;
const MISSING = new Set(["", "\u2014", "nan", "none"]);
const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

// [0, kind of unit, number] | [1, words] | [2]: numbers come first and what is missing last, whichever way one sorts.
function keyOf(text) {
  const plain = text.trim(), match = NUMBER.exec(plain);
  if (MISSING.has(plain.toLowerCase())) return [2];
  if (!match) return [1, plain];
  const [, sign, whole, part = "", power = "", space, unit = "", next] = match, scale = SCALES[unit];
  // A date, a version, a time of day, '5th' or '8B-model' begin with a number and are none.
  if ((unit && !space && !scale) || (!unit && /[-\d.:/_]/.test(next)) || (unit && !space && /[-_\d]/.test(next))) return [1, plain];
  const value = Number(whole.replaceAll(",", "") + part + power) * (/[-\u2212]/.test(sign) ? -1 : 1);
  return [0, scale ? scale[0] : "", value * (scale ? scale[1] : 1)];
}

function compare(left, right, way) {
  if (left[0] !== right[0]) return left[0] - right[0];
  if (left[0] === 1) return way * words.compare(left[1], right[1]);
  return left[0] === 2 ? 0 : left[1] === right[1] ? way * (left[2] - right[2]) : left[1] < right[1] ? -1 : 1;
}

function sortBy(table, rows, place, way) {
  const keys = new Map(rows.map((row) => [row, keyOf(row.cells[place] ? row.cells[place].textContent : "")]));
  const order = way ? [...rows].sort((left, right) => compare(keys.get(left), keys.get(right), way)) : rows;
  table.tBodies[0].append(...order);
}

function makeSortable(table) {
  const rows = [...table.tBodies[0].rows], heads = [...table.tHead.rows[0].cells];
  table.dataset.sorts = "yes";
  if (rows.length < 2) return;
  heads.forEach((head, place) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort"), next = { ascending: "descending", descending: null }[now] ?? (now ? null : "ascending");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      sortBy(table, rows, place, { ascending: 1, descending: -1 }[next] || 0);
    });
  });
}

function startSorting() {
  for (const table of document.querySelectorAll("table.colo-table:not([data-sorts])")) makeSortable(table);
}
