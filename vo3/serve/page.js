// Uploads a video, asks, and shows the answer as it comes. What the server sends as HTML was escaped there; all other text is set as text.
(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const main = document.querySelector("main");
  const form = $("form"), file = $("file"), drop = $("drop"), path = $("path"), question = $("question");
  const options = $("options"), key = $("key"), answer = $("answer"), problem = $("problem"), state = $("state");
  const most = Number(main.dataset.upload);
  const make = (name, fields = {}, ...children) => {
    const element = Object.assign(document.createElement(name), fields);
    element.append(...children);
    return element;
  };
  const preview = $("preview");
  let upload = null;  // {file, id} of the video that the server has
  let running = null;  // aborts the question under way
  const earlier = [];

  // The video.

  const size = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
  const choose = () => {
    const chosen = file.files[0];
    drop.classList.toggle("full", Boolean(chosen));
    $("chosen").textContent = chosen ? chosen.name : "Choose a video";
    $("size").textContent = chosen ? `${size(chosen.size)}; choose or drop another` : "or drop it here";
    $("bar").style.width = "0";
    if (preview.src) URL.revokeObjectURL(preview.src);
    preview.hidden = !chosen;
    if (chosen) preview.src = URL.createObjectURL(chosen);
    else preview.removeAttribute("src");
    if (chosen && path) path.value = "";
    if (chosen) question.focus();
  };
  file.addEventListener("change", choose);
  preview.addEventListener("error", () => { preview.hidden = true; });  // a codec that the server knows and the browser does not
  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", over);
      if (name === "drop" && event.dataTransfer.files.length) {
        file.files = event.dataTransfer.files;
        choose();
      }
    });
  }
  path?.addEventListener("input", () => {
    if (path.value) {
      file.value = "";
      choose();
    }
  });

  const headers = () => (key.value ? { Authorization: `Bearer ${key.value}` } : {});
  const failure = async (response) => {
    let error = null;
    try {
      error = (await response.json()).error;
    } catch {
      // no JSON: something between us and the server answered
    }
    if (response.status === 401) {
      key.parentElement.hidden = false;
      key.focus();
    }
    const id = error?.request_id ? ` (${error.request_id})` : "";
    return new Error((error?.message ?? `the server answered ${response.status}`) + id);
  };

  const send = (chosen, signal) => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();  // fetch tells nothing of how far an upload is
    request.open("POST", "v1/files");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      $("bar").style.width = `${(100 * event.loaded) / event.total}%`;
      say(`uploading, ${Math.round((100 * event.loaded) / event.total)} %`);
    };
    request.onload = async () => {
      const response = new Response(request.responseText, { status: request.status || 500 });
      if (request.status === 200) resolve((await response.json()).id);
      else reject(await failure(response));
    };
    request.onerror = () => reject(new Error("the upload broke off; is the server still there?"));
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    const data = new FormData();
    data.append("purpose", "user_data");
    data.append("file", chosen);
    request.send(data);
  });

  const video = async (signal) => {
    const chosen = file.files[0];
    if (!chosen) {
      if (path?.value.trim()) return { type: "video_url", video_url: { url: path.value.trim() } };
      throw new Error("choose a video first");
    }
    if (chosen.size > most) throw new Error(`${chosen.name} has ${size(chosen.size)}; this server takes ${size(most)} at most`);
    if (upload?.file !== chosen) upload = { file: chosen, id: await send(chosen, signal) };
    return { type: "file", file: { file_id: upload.id } };
  };

  // Options.

  const letter = () => [...options.children].forEach((item, number) => {
    const name = String.fromCharCode(65 + number);
    item.querySelector("b").textContent = name;
    item.querySelector("input").setAttribute("aria-label", `option ${name}`);
    item.querySelector("button").setAttribute("aria-label", `remove option ${name}`);
  });
  const add = () => {
    if (options.children.length === 26) return;
    const field = make("input", { autocomplete: "off" });
    const remove = make("button", { type: "button", className: "remove", textContent: "remove" });
    const item = make("li", {}, make("b"), field, remove);
    remove.addEventListener("click", () => {
      const next = item.nextElementSibling ?? item.previousElementSibling;
      item.remove();
      letter();
      (next?.querySelector("input") ?? $("add")).focus();
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        if (field.value.trim()) add();
      }
      if (event.key === "Backspace" && !field.value) {
        event.preventDefault();
        remove.click();
      }
    });
    options.append(item);
    letter();
    field.focus();
  };
  $("add").addEventListener("click", add);
  const chosenOptions = () => [...options.querySelectorAll("input")].map((field) => field.value.trim()).filter(Boolean);

  // Asking.

  const say = (text) => { state.textContent = text; };
  const show = (error) => {
    problem.textContent = error;
    problem.hidden = !error;
  };

  const ask = async () => {
    if (running) return;
    show("");
    const stop = (running = new AbortController());
    $("go").disabled = true;
    $("stop").hidden = false;
    let page = null;
    try {
      if (!question.value.trim()) throw new Error("write a question");
      const part = await video(stop.signal);
      const given = chosenOptions();
      page = new Live(question.value.trim(), given);
      say("waiting");
      const content = [part, { type: "text", text: question.value.trim() }];
      const extension = { events: "html" };
      if (given.length) extension.options = given;
      const response = await fetch("v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json", ...headers() },
        body: JSON.stringify({ model: main.dataset.model, messages: [{ role: "user", content }], stream: true, vo3: extension }),
        signal: stop.signal,
      });
      if (!response.ok) {
        if (response.status === 404 && upload) upload = null;  // it was kept no longer
        throw await failure(response);
      }
      for await (const chunk of chunks(response)) page.take(chunk);
      if (!page.finished) throw new Error("the answer broke off; ask again");
      earlier.unshift(page);
      list();
    } catch (error) {
      page?.drop();
      show(error.name === "AbortError" ? "" : error instanceof TypeError ? "the server cannot be reached; is it still running?" : error.message);
    } finally {
      running = null;
      $("go").disabled = false;
      $("stop").hidden = true;
      say("");
    }
  };

  async function* chunks(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const data = JSON.parse(line.slice(6));
        if (data.error) throw new Error(`${data.error.message} (${data.error.request_id})`);
        yield data;
      }
    }
  }

  // One answer, while it comes and afterwards.

  class Live {
    constructor(text, given) {
      this.text = text;
      this.finished = false;
      const list = given.map((option, number) => make("li", {}, make("b", { textContent: String.fromCharCode(65 + number) }), make("span", { textContent: option })));
      this.timeline = make("section");
      this.steps = make("ol");
      this.wait = make("p", { className: "spoken waits", textContent: "reading the video" });
      this.story = make("section", { className: "story live" }, make("h2", { textContent: "What it does" }), this.steps);
      this.story.hidden = true;
      this.numbered = new Map();
      answer.replaceChildren(
        make("h2", { className: "asked", textContent: text }),
        ...(list.length ? [make("ul", { className: "options" }, ...list)] : []),
        this.wait, this.timeline, this.story,
      );
      answer.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    }

    take(chunk) {
      const choice = chunk.choices[0];
      const told = chunk.vo3;
      const delta = choice?.delta ?? {};
      if (told?.event === "turn_start") this.begin(told.number, told.forced);
      if (delta.reasoning_content) this.write("think", delta.reasoning_content);
      if (delta.content) this.write("final", delta.content);
      if (told?.html?.timeline) this.draw(told.html.timeline);
      for (const [number, html] of Object.entries(told?.html?.steps ?? {})) this.step(Number(number), html);
      if (choice?.finish_reason) this.finish(told);
    }

    begin(number, forced) {
      say(forced ? "it must answer now" : "thinking");
      this.story.hidden = false;
      const body = make("div", { className: "body" }, make("p", { className: "think" }));
      const item = make("li", {}, make("div", { className: "margin" }, make("b", { textContent: "Writing" })), body);
      this.numbered.set(number, item);
      this.steps.append(item);
      this.body = body;
    }

    write(kind, text) {
      let target = this.body?.querySelector(`.${kind}`);
      if (!target && this.body) {
        target = make("p", { className: kind });
        this.body.append(target);
      }
      target?.append(target.hasChildNodes() ? text : text.trimStart());  // a turn of its own needs no line break before it
    }

    draw(html) {
      this.wait.remove();
      if (!this.steps.childElementCount) say("watching");
      const drawn = fragment(html);
      this.timeline.replaceWith(drawn);
      this.timeline = drawn;
    }

    step(number, html) {
      this.story.hidden = false;
      const item = fragment(html);
      const old = this.numbered.get(number);
      if (old) old.replaceWith(item);
      else this.steps.append(item);
      this.numbered.set(number, item);
      if (item.classList.contains("turn-call")) say("looking closer");
      if (item.classList.contains("turn-observation")) say("thinking");
    }

    finish(told) {
      this.finished = true;
      this.answer = told.answer ?? "no answer";
      this.sections = told.html.sections;
      this.page = told.html.page;
      this.show();
    }

    show() {
      const save = make("a", {
        textContent: "Save this page",
        download: "answer.html",
        href: (this.href ??= URL.createObjectURL(new Blob([this.page], { type: "text/html" }))),
      });
      const again = make("button", { type: "button", textContent: "Ask another question" });
      again.addEventListener("click", () => {
        form.scrollIntoView({ block: "center" });
        question.select();
      });
      answer.innerHTML = this.sections;
      answer.querySelector("header").append(make("p", { className: "actions" }, save, again));
      peekInto(answer);
      answer.focus({ preventScroll: true });
    }

    drop() {
      if (!this.finished) answer.replaceChildren();
    }
  }

  const fragment = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    return template.content.firstElementChild;
  };

  const list = () => {
    const nav = $("earlier");
    nav.hidden = earlier.length < 2;
    nav.replaceChildren(make("h2", { textContent: "Asked so far" }), make("ol", {}, ...earlier.map((page) => {
      const button = make("button", { type: "button" }, make("span", { textContent: page.text }), make("b", { textContent: page.answer }));
      button.addEventListener("click", () => {
        page.show();
        answer.scrollIntoView({ block: "start" });
      });
      return make("li", {}, button);
    })));
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      ask();
    }
    if (event.key === "Escape") running?.abort();
  });
  choose();
})();
