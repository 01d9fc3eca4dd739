"use strict";
// Sorts a table by its heads, lights a run up in table and plot, and keeps what passes a brushed axis.
for (const section of document.querySelectorAll("section")) {
  const body = section.querySelector("tbody");
  const heads = Array.from(section.querySelectorAll("thead th"));
  const plot = section.querySelector("svg.parallel");
  const brushes = new Map();

  function sortBy(column) {
    const head = heads[column];
    const up = head.getAttribute("aria-sort") !== "ascending";
    const key = (row) => row.cells[column].dataset.sort;
    const rows = Array.from(body.rows).sort((a, b) => {
      const [one, other] = [key(a), key(b)];
      if (one === "" || other === "") return (one === "") - (other === "");
      const order = isNaN(one) || isNaN(other) ? one.localeCompare(other) : one - other;
      return (up ? order : -order) || a.dataset.run - b.dataset.run;
    });
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  }

  function partsOf(run) {
    return section.querySelectorAll(`[data-run="${run}"]`);
  }

  function show() {
    for (const line of plot.querySelectorAll("polyline")) {
      const places = line.dataset.places.split(",").map(Number);
      const kept = [...brushes].every(([axis, [low, high]]) => places[axis] >= low && places[axis] <= high);
      partsOf(line.dataset.run).forEach((part) => part.classList.toggle("away", !kept));
    }
  }

  function brush(group, from, to) {
    const axis = Number(group.dataset.axis);
    const spine = group.querySelector("line");
    const [top, bottom] = [Number(spine.getAttribute("y1")), Number(spine.getAttribute("y2"))];
    const place = (y) => (bottom - y) / (bottom - top);
    const [high, low] = [Math.min(from, to), Math.max(from, to)];
    if (low - high < 4) brushes.delete(axis);
    else brushes.set(axis, [place(low), place(high)]);
    const shape = group.querySelector(".brush");
    shape.setAttribute("y", high);
    shape.setAttribute("height", low - high < 4 ? 0 : low - high);
    show();
  }

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sortBy(column)));
  for (const part of section.querySelectorAll("[data-run]")) {
    for (const [event, hot] of [["pointerenter", true], ["pointerleave", false]]) {
      part.addEventListener(event, () => partsOf(part.dataset.run).forEach((one) => one.classList.toggle("hot", hot)));
    }
  }
  for (const group of plot ? plot.querySelectorAll(".axis") : []) {
    const grip = group.querySelector(".grip");
    const height = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(plot.getScreenCTM().inverse()).y;
    let start = null;
    grip.addEventListener("pointerdown", (event) => { start = height(event); grip.setPointerCapture(event.pointerId); });
    grip.addEventListener("pointermove", (event) => { if (start !== null) brush(group, start, height(event)); });
    grip.addEventListener("pointerup", (event) => { brush(group, start, height(event)); start = null; });
  }
}
