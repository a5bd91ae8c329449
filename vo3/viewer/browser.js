// A list of trajectories with filters, and the chosen one beside it. Text goes in as text, never as markup.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const ROW = 62, MARGIN = 12;
  const $ = (id) => document.getElementById(id);
  const el = (name, attributes, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {}))
      if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
    for (const child of children.flat())
      if (child !== null && child !== undefined) node.append(child);
    return node;
  };
  const clock = (seconds) => {
    const whole = Math.round(seconds), h = Math.floor(whole / 3600), m = Math.floor((whole % 3600) / 60);
    const s = String(whole % 60).padStart(2, "0");
    return h ? `${h}:${String(m).padStart(2, "0")}:${s}` : `${m}:${s}`;
  };
  const span = (start, end) => `${clock(start)} \u2013 ${clock(end)}`;
  const mark = (right) => (right === null ? "" : right ? "\u2713" : "\u2717");
  const tone = (right) => (right === null ? "" : right ? "right" : "wrong");
  const rows = data.rows;
  rows.forEach((r) => {
    r.hay = `${r.id} ${r.question} ${r.answer ?? ""} ${r.video}`.toLowerCase();
  });

  // ---- filters: name -> [label, choices, test(record, choice)]
  const unique = (key) => [...new Set(rows.map((r) => r[key]))].filter((v) => v).sort();
  const filters = {
    verdict: ["verdict", ["right", "wrong", "unknown"], (r, v) => (v === "right" ? r.right === true : v === "wrong" ? r.right === false : r.right === null)],
    outcome: ["outcome", unique("outcome"), (r, v) => r.outcome === v],
    calls: ["looks", ["none", "one", "two or more"], (r, v) => (v === "none" ? r.calls === 0 : v === "one" ? r.calls === 1 : r.calls > 1)],
    iou: ["IoU", ["0", "above 0", "0.3 and more", "0.5 and more"], (r, v) => r.iou !== null && (v === "0" ? r.iou === 0 : r.iou > 0 && r.iou >= (parseFloat(v) || 0))],
    category: ["category", unique("category"), (r, v) => r.category === v],
  };
  if (data.names) {
    filters.change = ["second file", ["gains", "loses", "same verdict", "not there"], (r, v) => {
      if (!r.other) return v === "not there";
      if (v === "gains") return r.other.right === true && r.right !== true;
      if (v === "loses") return r.right === true && r.other.right !== true;
      return v === "same verdict" && r.other.right === r.right;
    }];
  }
  const form = $("filters"), chosen = {};
  const search = el("input", { type: "search", id: "search", placeholder: "search   /", "aria-label": "search questions, answers, ids and videos", autocomplete: "off" });
  form.append(search);
  for (const [name, [label, choices]] of Object.entries(filters)) {
    if (choices.length < 2) continue;
    const select = el("select", { name, "aria-label": label }, el("option", { value: "" }, label), choices.map((c) => el("option", { value: c }, c)));
    select.addEventListener("change", () => {
      chosen[name] = select.value;
      select.classList.toggle("set", select.value !== "");
      apply();
    });
    form.append(select);
  }
  const clear = el("button", { type: "button", hidden: "" }, "clear");
  clear.addEventListener("click", () => {
    search.value = "";
    form.querySelectorAll("select").forEach((s) => { s.value = ""; s.classList.remove("set"); chosen[s.name] = ""; });
    apply();
  });
  form.append(clear);
  form.addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", () => apply());

  let shown = rows, at = 0;
  function apply() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const active = Object.entries(chosen).filter(([, value]) => value);
    const before = shown[at];
    shown = rows.filter((r) => words.every((w) => r.hay.includes(w)) && active.every(([name, value]) => filters[name][2](r, value)));
    at = Math.max(shown.indexOf(before), 0);
    clear.hidden = !words.length && !active.length;
    const judged = shown.filter((r) => r.right !== null), right = judged.filter((r) => r.right).length;
    const share = judged.length ? `, ${right.toLocaleString("en")} of ${judged.length.toLocaleString("en")} right (${((100 * right) / judged.length).toFixed(1)} %)` : "";
    const of = shown.length === rows.length ? "" : ` of ${rows.length.toLocaleString("en")}`;
    $("count").textContent = `${shown.length.toLocaleString("en")}${of} trajectories${share}`;
    $("rows").style.height = `${shown.length * ROW}px`;
    list.scrollTop = Math.min(list.scrollTop, shown.length * ROW);
    draw();
    detail();
  }

  // ---- the list: only what is in sight is in the document
  const list = $("list");
  function draw() {
    const first = Math.max(Math.floor(list.scrollTop / ROW) - MARGIN, 0);
    const last = Math.min(first + Math.ceil(list.clientHeight / ROW) + 2 * MARGIN, shown.length);
    const made = [];
    for (let i = first; i < last; i++) {
      const r = shown[i];
      const verdicts = el("span", { class: "verdicts" }, el("b", { class: tone(r.right) }, mark(r.right)));
      if (r.other) verdicts.append(el("b", { class: tone(r.other.right) }, mark(r.other.right)));
      const facts = [r.failure ? "not asked" : (r.answer ?? r.said), `${r.calls} ${r.calls === 1 ? "look" : "looks"}`];
      if (r.iou !== null) facts.push(`IoU ${r.iou.toFixed(2)}`);
      facts.push(r.video);
      const row = el("div", { class: "row", role: "option", id: `row-${i}`, "aria-selected": String(i === at), style: `top:${i * ROW}px` },
        verdicts, el("span", { class: "asked" }, r.question || r.id), el("span", { class: "facts" }, facts.join("  \u00b7  ")));
      row.addEventListener("click", () => choose(i));
      made.push(row);
    }
    $("rows").replaceChildren(...made);
    list.setAttribute("aria-activedescendant", `row-${at}`);
  }
  list.addEventListener("scroll", () => requestAnimationFrame(draw));
  addEventListener("resize", draw);
  function choose(i) {
    if (!shown.length) return;
    at = Math.min(Math.max(i, 0), shown.length - 1);
    if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
    if ((at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * ROW - list.clientHeight;
    draw();
    detail();
  }

  // ---- one trajectory
  const percent = (x, r) => `${Math.min(Math.max((100 * x) / Math.max(r.duration, 1e-6), 0), 100).toFixed(3)}%`;
  const width = (a, b, r) => `${Math.max((100 * (b - a)) / Math.max(r.duration, 1e-6), 0.4).toFixed(3)}%`;
  function timeline(r) {
    if (!r.turns.length) return null;
    const looks = r.looks.map(([a, b, s], i) => el("i", { class: `look c${(i % 6) + 1}`, style: `left:${percent(a, r)};width:${width(a, b, r)}`, title: `look ${i + 1}: ${span(a, b)}${s ? ", " + s : ""}` }));
    const clues = r.clues.map(([a, b]) => el("i", { class: "clue", style: `left:${percent(a, r)};width:${width(a, b, r)}`, title: `true evidence: ${span(a, b)}` }));
    const said = `${r.looks.length ? "looked at " + r.looks.map(([a, b]) => span(a, b)).join(", ") : "no second look"}${r.clues.length ? "; true evidence at " + r.clues.map(([a, b]) => span(a, b)).join(", ") : ""}`;
    return el("div", { class: "line" }, strip(r, 0, 0), el("div", { class: "track", role: "img", "aria-label": said }, looks, clues), el("div", { class: "ends", "aria-hidden": "true" }, el("span", {}, "0:00"), el("span", {}, clock(r.duration))));
  }
  function strip(r, index, look) {
    const frames = r.frames && r.frames[index];
    if (!frames) return null;
    const name = look ? `look ${look}` : "overview";
    return el("div", { class: look ? `shots c${((look - 1) % 6) + 1}` : "film" }, frames.map(([t, uri]) => el("figure", {}, el("img", { src: uri, alt: `${name} at ${clock(t)}` }), look ? el("figcaption", {}, clock(t)) : null)));
  }
  function turns(r) {
    let look = 0;
    return el("ol", {}, r.turns.map(([kind, think, what]) => {
      const parts = [];
      if (think) parts.push(el("p", { class: "think" }, think));
      if (kind === "call") parts.push(el("p", {}, "looks at ", el("strong", {}, span(what[0], what[1])), what[2] ? `, ${what[2]}` : ""));
      else if (kind === "answer") parts.push(el("p", { class: "final" }, el("strong", {}, what), r.options[what] ? ` ${r.options[what]}` : "", el("span", { class: tone(r.right) }, r.right === null ? "" : r.right ? "\u2713 right" : "\u2717 wrong")));
      else if (kind === "error") parts.push(el("p", { class: "note" }, `refused: ${what}`));
      else if (kind === "observation" || kind === "forced") {
        what.forEach(([a, b, frames, tokens]) => { look += 1; parts.push(el("p", { class: `note c${((look - 1) % 6) + 1}` }, el("b", { class: "dot" }), `${span(a, b)} in ${frames} frames, ${tokens.toLocaleString("en")} tokens`)); const shots = strip(r, look, look); if (shots) parts.push(shots); });
        if (kind === "forced") parts.push(el("p", { class: "note" }, "no looks left: an answer was asked for"));
      } else if (what) parts.push(el("p", { class: "think" }, what));
      return el("li", {}, parts);
    }));
  }
  function facts(r) {
    const pairs = [["outcome", r.said], ["looks", String(r.calls)], ["IoU", r.iou === null ? null : r.iou.toFixed(3)], ["visual tokens", r.tokens.toLocaleString("en")], ["seconds", typeof r.seconds === "number" ? r.seconds.toFixed(2) : null], ["category", r.category], ["id", r.id], ["video", r.video]];
    if (r.reward) for (const [name, value] of Object.entries(r.reward)) pairs.push([`reward: ${name}`, value.toFixed(3).replace(/\.?0+$/, "") || "0"]);
    return el("dl", {}, pairs.filter(([, v]) => v !== null && v !== "").map(([k, v]) => el("div", {}, el("dt", {}, k), el("dd", {}, v))));
  }
  function side(r, name) {
    if (!r) return el("section", {}, el("h3", {}, name), el("p", { class: "note" }, "not in this file"));
    const parts = [name ? el("h3", {}, name, " ", el("span", { class: tone(r.right) }, mark(r.right))) : null];
    if (r.failure) parts.push(el("p", { class: "note" }, `It could not be asked. ${r.failure}`));
    if (r.answer === null && !r.failure) parts.push(el("p", { class: "note" }, `It ${r.said}.`));
    parts.push(timeline(r), turns(r));
    if (r.page) parts.push(el("p", {}, el("a", { href: r.page }, "the whole trace, with frames")));
    parts.push(facts(r));
    return el("section", {}, parts);
  }
  function detail() {
    const r = shown[at], pane = $("detail");
    pane.scrollTop = 0;
    if (!r) {
      pane.replaceChildren(el("p", { class: "note" }, "No trajectory fits these filters."));
      return;
    }
    if (!r.turns) { // a served page brings a trajectory when it is looked at
      fetchRest(r, pane);
      return;
    }
    const options = Object.entries(r.options).map(([letter, text]) => {
      const notes = [];
      if ((r.answer ?? "").trim() === letter) notes.push("chosen");
      if (r.true === letter) notes.push("true");
      return el("li", { class: notes.join(" ") || null }, el("b", {}, letter), el("span", {}, text), notes.length ? el("small", {}, notes.join(", ")) : null);
    });
    const truth = !options.length && r.true ? el("p", { class: "note" }, "true answer: ", el("strong", {}, r.true)) : null;
    const sides = data.names ? el("div", { class: "sides" }, side(r, data.names[0]), side(r.other, data.names[1])) : side(r, null);
    pane.replaceChildren(el("h2", {}, r.question || r.id), options.length ? el("ul", { class: "options" }, options) : "", truth ?? "", sides);
  }

  function fetchRest(r, pane) {
    const note = el("p", { class: "note", role: "status" }, "reading\u2026");
    pane.replaceChildren(el("h2", {}, r.question || r.id), note);
    clearTimeout(fetchRest.timer);
    // Who holds a key down passes many; only where they stop is read.
    fetchRest.timer = setTimeout(async () => {
      try {
        const reply = await fetch(`record?n=${r.n}`);
        if (!reply.ok) throw new Error(await reply.text());
        Object.assign(r, await reply.json());
        if (shown[at] === r) detail();
      } catch (error) {
        note.textContent = `It could not be read: ${error.message}. Is the server still running?`;
      }
    }, 60);
  }

  // ---- keys: arrows or j and k to move, / to search, Escape to go back to the list
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName);
    if (event.key === "Escape") { list.focus(); return; }
    if (typing) { if (event.key === "Enter") list.focus(); return; }
    const page = Math.max(Math.floor(list.clientHeight / ROW) - 1, 1);
    const moves = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page };
    if (event.key in moves) choose(at + moves[event.key]);
    else if (event.key === "Home") choose(0);
    else if (event.key === "End") choose(shown.length - 1);
    else if (event.key === "/") search.focus();
    else if (event.key === "Enter" && shown[at] && shown[at].page) location.href = shown[at].page;
    else return;
    event.preventDefault();
  });
  apply();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
