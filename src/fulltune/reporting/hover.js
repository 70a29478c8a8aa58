"use strict";
// Tells the numbers under the pointer. Without it the page says the same: the tables stand below each chart.
const shown = (value) => value === null ? "not finite"
  : Math.abs(value) >= 1e-4 && Math.abs(value) < 1e6 || value === 0 ? String(+value.toPrecision(4)) : value.toExponential(2);
const stretch = (rows, x) => rows.reduce((best, row) => {
  const far = (r) => Math.max(r[0] - x, x - (r.length > 2 ? r[1] : r[0]), 0);
  return far(row) < far(best) ? row : best;
});
for (const svg of document.querySelectorAll("svg[data-told]")) {
  const lines = JSON.parse(svg.dataset.told), [low, high, start, stop, width] = JSON.parse(svg.dataset.x);
  const readout = svg.parentElement.querySelector(".readout");
  const note = readout.textContent;
  const cursor = document.createElementNS(svg.namespaceURI, "line");
  cursor.setAttribute("class", "cursor");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = Math.min(Math.max((event.clientX - box.left) / box.width * width, start), stop);
    const x = low + (at - start) / (stop - start) * (high - low);
    const told = [];
    for (const line of lines) {
      if (!line.rows.length) continue;
      const row = stretch(line.rows, x);
      const few = row.length < 3;
      const where = row.length === 1 ? "" : few ? " at " + row[0] : " in " + row[0] + "–" + row[1];
      const value = few ? shown(row[row.length - 1]) : shown(row[3]) + " (" + shown(row[2]) + " to " + shown(row[4]) + ")";
      told.push(line.name + " " + value + where);
    }
    readout.textContent = told.join("; ");
    for (const [name, value] of [["x1", at], ["x2", at], ["y1", 10], ["y2", svg.viewBox.baseVal.height - 22]]) cursor.setAttribute(name, value);
    svg.append(cursor);
  });
  svg.addEventListener("pointerleave", () => { readout.textContent = note; cursor.remove(); });
}
