"use strict";
const token = document.querySelector("main").dataset.token;
const who = document.getElementById("who");
who.value = localStorage.getItem("reviewer") || "";
who.addEventListener("change", () => localStorage.setItem("reviewer", who.value.trim()));
document.getElementById("show").addEventListener("change", (event) => {
  for (const card of document.querySelectorAll(".card")) card.hidden = event.target.value && card.dataset.group !== event.target.value;
});
async function judge(card, verdict) {
  const said = card.querySelector(".said");
  const reviewer = who.value.trim();
  if (!reviewer) { said.textContent = "Write your name above first."; who.focus(); return; }
  const body = { key: card.dataset.key, stage: card.dataset.stage, reviewer, verdict, note: card.querySelector("input").value };
  try {
    const reply = await fetch("verdict", { method: "POST", headers: { "Content-Type": "application/json", "X-Token": token }, body: JSON.stringify(body) });
    const data = await reply.json();
    if (!reply.ok) throw new Error(data.error);
    for (const button of card.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.value === verdict));
    said.textContent = "Stored.";
    document.getElementById("agreement").textContent = data.agreement;
  } catch (error) { said.textContent = "Not stored: " + error.message; }
}
for (const picture of document.querySelectorAll(".thumbs img")) {
  const lost = () => picture.closest("figure").classList.add("lost");
  if (picture.complete && !picture.naturalWidth) lost();
  picture.addEventListener("error", lost);
}
for (const card of document.querySelectorAll(".card"))
  for (const button of card.querySelectorAll("button")) button.addEventListener("click", () => judge(card, button.value));
