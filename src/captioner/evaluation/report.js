"use strict";
// Sorts, filters and searches the images of the page; the address keeps what was chosen.
const list = document.getElementById("images");
const articles = Array.from(list.querySelectorAll("article"));
const control = (name) => document.getElementById(name);
const names = ["search", "sort", "order", "metric", "low", "high"];

function value(article, key) {
  return parseFloat(article.dataset[key]);
}

function visible(article) {
  const words = control("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = article.dataset.text;
  if (!words.every((word) => text.includes(word))) return false;
  const low = parseFloat(control("low").value);
  const high = parseFloat(control("high").value);
  const score = value(article, control("metric").value);
  if (score < low || score > high) return false;
  return !(control("differing") && control("differing").checked) || article.dataset.same === "0";
}

function update() {
  const key = control("sort").value;
  const sign = control("order").value === "down" ? -1 : 1;
  articles.sort((a, b) => sign * (value(a, key) - value(b, key)) || value(a, "number") - value(b, "number"));
  let shown = 0;
  for (const article of articles) {
    article.hidden = !visible(article);
    shown += article.hidden ? 0 : 1;
  }
  list.append(...articles);
  control("count").textContent = `${shown} of ${articles.length} shown`;
  const chosen = new URLSearchParams(names.map((name) => [name, control(name).value]));
  try {
    history.replaceState(null, "", "#" + chosen);
  } catch {
    // Some browsers forbid it for files; the page works without it.
  }
}

for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
  if (names.includes(name)) control(name).value = text;
}
document.getElementById("controls").addEventListener("input", update);
update();
