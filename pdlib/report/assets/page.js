"use strict";
const slices = JSON.parse(document.getElementById("slices").textContent);
const slider = document.getElementById("slice");
const number = document.getElementById("number");
const all = (selector) => document.querySelectorAll(selector);

function show(place, mark) {
  slider.value = place;
  const slice = slices[slider.value];
  for (const layer of ["flair", "heat"]) all(`[data-layer=${layer}]`).forEach((one) => one.setAttribute("href", slice[layer]));
  all("[data-layer=outline]").forEach((one) => one.setAttribute("d", slice.outline));
  number.textContent = number.textContent.replace(/\d+/, slice.number);
  for (const circle of all(".mark")) {
    circle.setAttribute("visibility", mark ? "visible" : "hidden");
    if (mark) for (const [name, key] of [["cx", "x"], ["cy", "y"], ["r", "r"]]) circle.setAttribute(name, mark[key]);
  }
}

slider.addEventListener("input", () => show(slider.value));
for (const [id, way] of [["down", -1], ["up", 1]])
  document.getElementById(id).addEventListener("click", () => show(Number(slider.value) + way));
document.getElementById("outlined").addEventListener("change", (event) =>
  document.getElementById("viewer").classList.toggle("plain", !event.target.checked));
for (const button of all("[data-place]"))
  button.addEventListener("click", () => {
    show(button.dataset.place, button.dataset);
    document.getElementById("viewer").scrollIntoView({ behavior: "smooth" });
  });
