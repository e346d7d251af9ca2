"use strict";
// Shows what a link leads to beside the matrix. Without this the same links jump to it, and the browser opens the details
// around it: that is why names are on what is inside of them.
const dialog = document.querySelector("dialog");
const place = dialog.querySelector(".inside");
let home = null;

function show(inside) {
  home = inside;
  const title = inside.parentElement.querySelector("summary b").cloneNode(true);
  document.getElementById("shown-title").replaceChildren(...title.childNodes);
  place.replaceChildren(...inside.childNodes);
  place.scrollTop = 0;
  dialog.showModal();
}

dialog.addEventListener("close", () => home.replaceChildren(...place.childNodes));
dialog.querySelector("button").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#']");
  const target = link && document.getElementById(link.hash.slice(1));
  if (!target?.matches(".cell > .inside") || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  show(target);
});

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
document.addEventListener("keydown", (event) => {
  const cell = event.target.closest(".grid td");
  const step = STEPS[event.key];
  if (!cell || !step) return;
  const row = cell.parentElement;
  const rows = [...row.parentElement.children];
  const next = rows[rows.indexOf(row) + step[0]]?.children[[...row.children].indexOf(cell) + step[1]]?.querySelector("a");
  if (next) {
    event.preventDefault();
    next.focus();
  }
});
