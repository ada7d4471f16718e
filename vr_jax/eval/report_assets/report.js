// Hover, focus and tap: what a metric means, the value of a curve, the steps behind a cell, what a time line marks.
// Filters of the replies.
"use strict";

const tip = document.getElementById("tip");

function showTip(text, at) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const x = Math.min(at.clientX + 14, window.innerWidth - box.width - 8);
  const below = at.clientY + 18;
  const y = below + box.height < window.innerHeight ? below : at.clientY - box.height - 12;
  tip.style.left = `${Math.max(8, x)}px`;
  tip.style.top = `${Math.max(8, y)}px`;
}

function hideTip() {
  tip.hidden = true;
}

function followCurve(svg) {
  const steps = svg.dataset.steps.split(" ");
  const values = svg.dataset.values.split(" ");
  const numbers = svg.querySelector(".raw").getAttribute("d").match(/-?[\d.]+ -?[\d.]+/g);
  const points = numbers.map((pair) => pair.split(" ").map(Number));
  const cursor = svg.querySelector(".cursor");
  const dot = svg.querySelector(".dot");
  const label = svg.closest("figure").querySelector(".name").textContent;

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let nearest = 0;
    points.forEach((point, index) => {
      if (Math.abs(point[0] - x) < Math.abs(points[nearest][0] - x)) nearest = index;
    });
    cursor.setAttribute("x1", points[nearest][0]);
    cursor.setAttribute("x2", points[nearest][0]);
    dot.setAttribute("cx", points[nearest][0]);
    dot.setAttribute("cy", points[nearest][1]);
    svg.classList.add("hovered");
    showTip(`${label}\nstep ${steps[nearest]}: ${values[nearest]}`, event);
  });
  svg.addEventListener("pointerleave", () => {
    svg.classList.remove("hovered");
    hideTip();
  });
}

document.querySelectorAll("svg.curve").forEach(followCurve);

document.querySelectorAll("svg.matrix, svg.timeline, svg.whiskers").forEach((svg) => {
  svg.addEventListener("pointermove", (event) => {
    const text = event.target.dataset.tip;
    if (text) showTip(text, event);
    else hideTip();
  });
  svg.addEventListener("pointerleave", hideTip);
});

// Titles become our own tips, which the keyboard reaches, too.
document.querySelectorAll("main [title]").forEach((element) => {
  const about = element.title;
  element.removeAttribute("title");
  element.setAttribute("aria-description", about);
  element.classList.add("explained");
  element.tabIndex = 0;
  const show = () => {
    const box = element.getBoundingClientRect();
    showTip(about, { clientX: box.left, clientY: box.bottom - 10 });
  };
  element.addEventListener("pointerenter", show);
  element.addEventListener("pointerleave", hideTip);
  element.addEventListener("focus", show);
  element.addEventListener("blur", hideTip);
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});

const filters = document.getElementById("filters");
const changed = ["wrong-to-right", "right-to-wrong"];

function isWanted(card, wanted) {
  const { outcome, type } = card.dataset;
  if (wanted.outcome === "changed" ? !changed.includes(outcome) : wanted.outcome && wanted.outcome !== outcome) return false;
  if (wanted.type && wanted.type !== type) return false;
  if (wanted.least === "" && wanted.most === "") return true;
  const reply = [...card.querySelectorAll("section[data-evaluation]")].find(
    (section) => section.dataset.evaluation === wanted.evaluation,
  );
  const reward = reply && JSON.parse(reply.dataset.rewards)[wanted.reward];
  if (reward === undefined) return false;
  return (wanted.least === "" || reward >= Number(wanted.least)) && (wanted.most === "" || reward <= Number(wanted.most));
}

function applyFilters() {
  const wanted = Object.fromEntries(new FormData(filters));
  const cards = [...document.querySelectorAll(".rollout")];
  cards.forEach((card) => {
    card.hidden = !isWanted(card, wanted);
  });
  document.querySelectorAll(".outcome").forEach((group) => {
    group.hidden = !group.querySelector(".rollout:not([hidden])");
  });
  const shown = cards.filter((card) => !card.hidden).length;
  filters.elements.count.textContent = `${shown} of ${cards.length} questions`;
}

if (filters) {
  filters.hidden = false;
  filters.addEventListener("input", applyFilters);
  filters.addEventListener("reset", () => setTimeout(applyFilters));
  filters.addEventListener("submit", (event) => event.preventDefault());
  applyFilters();
}

window.addEventListener("scroll", hideTip, { passive: true });
