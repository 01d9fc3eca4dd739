// Shows where a model looked for a word: on hovering, and for good on a click, a tap or Enter. A
// word has its map as data-map, the element around it data-columns and data-area, and the nearest
// element with data-attended holds both the words and the image.
(() => {
  "use strict";
  const DARKEST = 0.75; // of the veil, where a cell has no weight at all
  const wordAt = (event) => event.target.closest && event.target.closest("[data-map]");
  const chosenBy = (attended) => attended.querySelector("[data-map][aria-pressed=true]");

  function draw(canvas, word) {
    const { columns, area } = word.closest("[data-columns]").dataset;
    const weights = Uint8Array.from(atob(word.dataset.map), (one) => one.charCodeAt(0));
    canvas.width = columns;
    canvas.height = weights.length / columns;
    const context = canvas.getContext("2d");
    const veil = context.createImageData(canvas.width, canvas.height);
    weights.forEach((weight, cell) => {
      veil.data[4 * cell + 3] = Math.round(255 * DARKEST * (1 - weight / 255));
    });
    context.putImageData(veil, 0, 0);
    const [left, top, right, bottom] = area.split(" ").map(Number);
    canvas.style.left = `${100 * left}%`;
    canvas.style.top = `${100 * top}%`;
    canvas.style.width = `${100 * (right - left)}%`;
    canvas.style.height = `${100 * (bottom - top)}%`;
    return weights.length;
  }

  function show(attended, word) {
    const figure = attended.querySelector("figure.attention");
    const below = figure.querySelector("figcaption");
    for (const one of attended.querySelectorAll(".shown")) one.classList.remove("shown");
    if (!word) {
      below.textContent = below.dataset.hint;
      return;
    }
    const cells = draw(figure.querySelector("canvas"), word);
    const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
    const name = document.createElement("b");
    name.textContent = word.dataset.word;
    const { largest, sentinel } = word.dataset;
    const most = ` at most ${percent(largest)} on one of ${cells} regions`;
    const rest = sentinel === undefined ? "" : `, ${percent(sentinel)} on the sentinel`;
    below.replaceChildren(name, most + rest);
    for (const one of [figure, word]) one.classList.add("shown");
  }

  function choose(word) {
    const attended = word.closest("[data-attended]");
    const before = chosenBy(attended);
    if (before) before.setAttribute("aria-pressed", "false");
    if (before !== word) word.setAttribute("aria-pressed", "true");
    show(attended, chosenBy(attended));
  }

  function step(word, by) {
    const words = Array.from(word.parentElement.querySelectorAll("[data-map]"));
    const next = words[words.indexOf(word) + by];
    if (!next) return;
    next.focus();
    if (next.getAttribute("aria-pressed") !== "true") choose(next);
  }

  document.addEventListener("pointerover", (event) => {
    const word = event.pointerType === "mouse" && wordAt(event);
    if (word) show(word.closest("[data-attended]"), word);
  });
  document.addEventListener("pointerout", (event) => {
    const word = event.pointerType === "mouse" && wordAt(event);
    if (word) show(word.closest("[data-attended]"), chosenBy(word.closest("[data-attended]")));
  });
  document.addEventListener("click", (event) => {
    if (wordAt(event)) choose(wordAt(event));
  });
  document.addEventListener("keydown", (event) => {
    const word = wordAt(event);
    if (!word) return;
    if (event.key === "Enter" || event.key === " ") choose(word);
    else if (event.key === "ArrowRight") step(word, 1);
    else if (event.key === "ArrowLeft") step(word, -1);
    else return;
    event.preventDefault();
  });
})();
