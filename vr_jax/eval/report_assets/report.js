// Hover and tap: the value of a curve at a step, the steps behind a cell of an alignment matrix, what a time line marks.
"use strict";

const tip = document.getElementById("tip");

function showTip(text, event) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, window.innerWidth - box.width - 8);
  const below = event.clientY + 18;
  const y = below + box.height < window.innerHeight ? below : event.clientY - box.height - 12;
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

document.querySelectorAll("svg.matrix, svg.timeline").forEach((svg) => {
  svg.addEventListener("pointermove", (event) => {
    const text = event.target.dataset.tip;
    if (text) showTip(text, event);
    else hideTip();
  });
  svg.addEventListener("pointerleave", hideTip);
});

window.addEventListener("scroll", hideTip, { passive: true });
