// Passing over the film strip shows the overview's frame nearest to that time.
const peekInto = (page) => {
  "use strict";
  const strip = page.querySelector(".strip");
  const frames = [...page.querySelectorAll("#overview-frames figure")];
  if (!strip || frames.length === 0) return;
  const peek = document.createElement("div");
  peek.className = "peek";
  peek.hidden = true;
  peek.setAttribute("aria-hidden", "true");
  const image = document.createElement("img");
  image.alt = "";
  const label = document.createElement("span");
  peek.append(image, label);
  strip.append(peek);
  const total = Number(strip.dataset.duration);
  const seconds = (text) => text.split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
  const times = frames.map((f) => seconds(f.querySelector("figcaption").textContent));
  strip.addEventListener("pointermove", (event) => {
    const box = strip.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    let best = 0;
    times.forEach((t, i) => {
      if (Math.abs(t - share * total) < Math.abs(times[best] - share * total)) best = i;
    });
    image.src = frames[best].querySelector("img").src;
    label.textContent = frames[best].querySelector("figcaption").textContent;
    peek.style.left = `${Math.min(Math.max(100 * share, 12), 88)}%`;
    peek.hidden = false;
  });
  strip.addEventListener("pointerleave", () => {
    peek.hidden = true;
  });
};
peekInto(document);
