// One script for all pages: the frame first, then a section a page. No build step, no library.
"use strict";

// == Frame ================================================================================
// <div data-live="NAME" data-etag="{{ etag }}"> is kept up to date: the page is asked again for
// `?part=NAME`, with the ETag of what is shown. Where nothing has changed the server answers 304.
const EVERY_MS = 2000; // what is new is seen within 5 s
const SLOWEST_MS = 4000;
const AWAY_MS = 15000; // where the server does not answer

function live(element) {
  const url = new URL(location.href);
  url.searchParams.set("part", element.dataset.live);
  let etag = element.dataset.etag;
  let wait = EVERY_MS;
  let timer = setTimeout(refresh, wait);

  async function refresh() {
    clearTimeout(timer);
    if (document.hidden || !selectsNothingIn(element)) {
      timer = setTimeout(refresh, wait);
      return;
    }
    const began = performance.now();
    try {
      const headers = etag ? { "If-None-Match": etag } : {};
      const answer = await fetch(url, { headers, cache: "no-store" });
      if (answer.status === 200) {
        replace(element, await answer.text());
        etag = answer.headers.get("ETag");
      }
      // A page that takes long to make is asked for less often, so that looking on costs a run little.
      wait = Math.min(Math.max(EVERY_MS, 20 * (performance.now() - began)), SLOWEST_MS);
      say(answer.ok || answer.status === 304 ? "" : `not up to date: the server answers ${answer.status}`);
    } catch {
      say("not up to date: the server does not answer");
      wait = AWAY_MS;
    }
    clearTimeout(timer);
    timer = setTimeout(refresh, wait);
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) refresh();
  });
}

// Whoever is copying something does not lose it.
function selectsNothingIn(element) {
  const selection = document.getSelection();
  return selection === null || selection.isCollapsed || !element.contains(selection.anchorNode);
}

// New content in place of the old one: what was open stays open, the focus and what was scrolled
// sideways stay where they were.
function replace(element, text) {
  const focus = element.contains(document.activeElement) ? document.activeElement.id : "";
  const open = new Map([...element.querySelectorAll("details[id]")].map((d) => [d.id, d.open]));
  const scrolled = new Map([...element.querySelectorAll(".scrolls[id]")].map((s) => [s.id, s.scrollLeft]));
  element.innerHTML = text; // made by our own templates, which escape
  for (const details of element.querySelectorAll("details[id]")) {
    if (open.has(details.id)) details.open = open.get(details.id);
  }
  for (const part of element.querySelectorAll(".scrolls[id]")) {
    part.scrollLeft = scrolled.get(part.id) ?? 0;
  }
  if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  element.dispatchEvent(new CustomEvent("refreshed", { bubbles: true }));
}

function say(text) {
  const status = document.getElementById("liveness");
  if (status.textContent !== text) status.textContent = text;
}

for (const element of document.querySelectorAll("[data-live]")) live(element);

// == Run page =============================================================================

// == Rollouts =============================================================================
// j and k go through the rows, Enter opens one, / goes to the filter, n and p turn the page. Which
// row one is at is its link's focus, so that Enter is the browser's own and nothing has to be kept.
function rolloutsPage(filter) {
  const links = () => [...document.querySelectorAll("tr[data-row] a[id]")];

  function mark() {
    for (const row of document.querySelectorAll("tr.here")) row.classList.remove("here");
    document.activeElement?.closest("tr[data-row]")?.classList.add("here");
  }

  function go(by) {
    const rows = links();
    const at = rows.indexOf(document.activeElement);
    const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : at + by;
    rows[Math.min(Math.max(next, 0), rows.length - 1)]?.focus();
  }

  document.addEventListener("focusin", mark);
  document.addEventListener("refreshed", mark);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const act = {
      j: () => go(1),
      k: () => go(-1),
      n: () => document.querySelector("a[rel=next]")?.click(),
      p: () => document.querySelector("a[rel=prev]")?.click(),
      "/": () => filter.elements.where.focus(),
    }[event.key];
    if (act) {
      event.preventDefault();
      act();
    }
  });
  document.addEventListener("click", async (event) => {
    const copies = event.target.closest("[data-copies]");
    if (copies) {
      await navigator.clipboard.writeText(document.getElementById(copies.dataset.copies).textContent);
      copies.textContent = "Copied";
      return;
    }
    const row = event.target.closest("tr[data-row]");
    if (row && !event.target.closest("a") && document.getSelection().isCollapsed) {
      row.querySelector("a[id]").click();
    }
  });
  // The address says what was asked, and nothing of what was not.
  filter.addEventListener("submit", () => {
    for (const field of filter.elements) if (field.name && !field.value.trim()) field.disabled = true;
  });
  window.addEventListener("pageshow", () => {
    for (const field of filter.elements) field.disabled = false;
  });
}

if (document.getElementById("filter")) rolloutsPage(document.getElementById("filter"));


// == Trajectory ===========================================================================
// One clock moves everything that has a time: the video, or the frames that the model saw as stills
// where the browser cannot play it; the cursor on the axis; the frame seen last. Where the clock and
// the selected token are stands in the URL, which can be sent to somebody.
const STEP_SECONDS = 0.1;
const FRAME_PIXELS = 48; // at least, of a frame in the strip
const SVG = "http://www.w3.org/2000/svg";

class VideoClock {
  constructor(video, tell) {
    this.video = video;
    this.wanted = null; // a moment asked for while the last one is still sought
    for (const event of ["play", "pause", "timeupdate", "seeking"]) video.addEventListener(event, tell);
    video.addEventListener("seeked", () => {
      const next = this.wanted;
      this.wanted = null;
      if (next !== null) video.currentTime = next;
      tell();
    });
  }

  get time() { return this.wanted ?? this.video.currentTime; }

  set time(seconds) {
    if (this.video.seeking) this.wanted = seconds;
    else this.video.currentTime = seconds;
  }

  get playing() { return !this.video.paused && !this.video.ended; }

  play() { this.video.play().catch(() => {}); }

  pause() { this.video.pause(); }
}

class StillsClock {
  constructor(duration, tell) {
    this.duration = duration;
    this.tell = tell;
    this.at = 0;
    this.since = null;
  }

  get time() {
    if (this.since === null) return this.at;
    const now = this.at + (performance.now() - this.since) / 1000;
    if (now >= this.duration) {
      this.since = null;
      this.at = this.duration;
      return this.at;
    }
    return now;
  }

  set time(seconds) {
    this.at = seconds;
    if (this.since !== null) this.since = performance.now();
    this.tell();
  }

  get playing() { return this.since !== null && this.time < this.duration; }

  play() {
    if (this.at >= this.duration) this.at = 0;
    this.since = performance.now();
    this.tell();
  }

  pause() {
    this.at = this.time;
    this.since = null;
    this.tell();
  }
}

function trajectoryPage(root) {
  const part = (name) => root.querySelector(`[data-${name}]`);
  const duration = Number(root.dataset.duration);
  const stamps = JSON.parse(root.dataset.stamps);
  const video = part("video");
  const axis = part("axis");
  const strip = part("strip-of-frames");
  const asked = new URLSearchParams(location.search);
  let seen = { count: 0 };
  let clock = video ? new VideoClock(video, told) : new StillsClock(duration, told);
  let until = null; // where playing a span stops
  let looping = false;

  // --- the clock ---------------------------------------------------------------------------
  function told() {
    if (clock.playing && !looping) {
      looping = true;
      requestAnimationFrame(loop);
    }
    show();
  }

  function loop() {
    if (until !== null && clock.time >= until) {
      const end = until;
      clock.pause();
      seek(end);
    }
    show();
    looping = clock.playing;
    if (looping) requestAnimationFrame(loop);
    else keepInUrl();
  }

  function seek(seconds) {
    until = null;
    clock.time = Math.min(Math.max(seconds, 0), duration);
    show();
    keepInUrl();
  }

  function toggle() {
    until = null;
    if (clock.playing) clock.pause();
    else clock.play();
  }

  function playSpan(start, end) {
    seek(start);
    until = end;
    clock.play();
  }

  function step(direction, little) {
    clock.pause();
    const now = clock.time;
    let to = now + direction * STEP_SECONDS;
    if (!little && stamps.length) {
      const next = direction > 0 ? stamps.find((s) => s > now + 0.01)
        : stamps.findLast((s) => s < now - 0.01);
      to = next ?? (direction > 0 ? duration : 0);
    }
    seek(to);
  }

  function show() {
    const now = Math.min(clock.time, duration);
    const cursor = part("cursor");
    cursor.setAttribute("x1", `${(100 * now) / duration}%`);
    cursor.setAttribute("x2", `${(100 * now) / duration}%`);
    axis.setAttribute("aria-valuenow", now.toFixed(2));
    axis.setAttribute("aria-valuetext", `${now.toFixed(2)} seconds`);
    part("time").textContent = `${now.toFixed(2)} s`;
    part("play").textContent = clock.playing ? "pause" : "play";
    showFrame(now);
  }

  let urlTimer = null;
  function keepInUrl() {
    clearTimeout(urlTimer);
    urlTimer = setTimeout(() => {
      const url = new URL(location.href);
      const now = Math.round(clock.time * 100) / 100;
      if (now > 0 || url.searchParams.has("t")) url.searchParams.set("t", String(now));
      if (selected) url.searchParams.set("token", selected.dataset.token);
      history.replaceState(null, "", url);
    }, 150);
  }

  // --- the frames that the model saw -------------------------------------------------------
  function frameAt(seconds) {
    let found = 0;
    for (let n = 0; n < stamps.length && stamps[n] <= seconds + 0.001; n += 1) found = n;
    return found;
  }

  function frameUrl(number) {
    const url = new URL(root.dataset.frame, location.href);
    url.pathname += `/${number}`;
    url.searchParams.set("pixels", seen.pixels);
    return url.href;
  }

  function showFrame(seconds) {
    if (!seen.count) return;
    const number = frameAt(seconds);
    const words = `frame ${number + 1} of ${seen.count}, ${stamps[number].toFixed(2)} s`;
    const asStills = clock instanceof StillsClock;
    const image = part(asStills ? "stills" : "seen-picture");
    if (image.dataset.number !== String(number)) {
      image.dataset.number = String(number);
      image.src = frameUrl(number);
    }
    part(asStills ? "screen-note" : "seen-note").textContent = asStills
      ? `${whyStills}; ${words}` : `what the model saw: ${words}`;
    const now = strip.querySelector(".now");
    if (now) {
      const next = stamps[number + 1] ?? duration;
      now.setAttribute("x", `${(100 * stamps[number]) / duration}%`);
      now.setAttribute("width", `${(100 * (next - stamps[number])) / duration}%`);
    }
  }

  function drawStrip() {
    strip.replaceChildren();
    const width = strip.clientWidth;
    if (!seen.count || !width) return;
    const shown = Math.max(1, Math.min(seen.count, Math.floor(width / FRAME_PIXELS)));
    const chosen = [...Array(shown).keys()].map((k) => Math.floor((k * seen.count) / shown));
    const height = Math.round(Math.min(90, (width / shown) * (seen.height / seen.width)));
    strip.setAttribute("height", height + 6);
    const draw = (tag, attributes) => {
      const made = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      strip.append(made);
    };
    chosen.forEach((number, k) => {
      const end = k + 1 < shown ? stamps[chosen[k + 1]] : duration;
      draw("image", {
        href: frameUrl(number), x: `${(100 * stamps[number]) / duration}%`, y: 6, height,
        width: `${(100 * (end - stamps[number])) / duration}%`,
        preserveAspectRatio: "xMidYMid slice", "data-number": number,
      });
    });
    for (const stamp of stamps) {
      const x = `${(100 * stamp) / duration}%`;
      draw("line", { class: "stamp", x1: x, x2: x, y1: 0, y2: 4 });
    }
    draw("rect", { class: "now", y: 6, height, x: 0, width: 0 });
    show();
  }

  async function findFrames() {
    const note = part("frames-note");
    const words = note.textContent;
    note.textContent = `${words}; looking for them ...`;
    try {
      const answer = await fetch(root.dataset.frames);
      seen = answer.ok ? await answer.json() : { count: 0, problem: `the server answers ${answer.status}` };
    } catch {
      seen = { count: 0, problem: "the server does not answer" };
    }
    if (!seen.count) note.textContent = `${words}; they cannot be shown: ${seen.problem}`;
    else if (!seen.same) {
      note.textContent = `${words}; decoded again, and these are OTHER pixels than the model saw: the file, or what decodes it, has changed since`;
    } else {
      note.textContent = `${words}; exactly its pixels, ${seen.source === "kept" ? "from the frame store" : "decoded again"}`;
    }
    part("seen").hidden = !seen.count || clock instanceof StillsClock;
    part("stills").hidden = !seen.count || !(clock instanceof StillsClock);
    if (clock instanceof StillsClock && !seen.count) {
      part("screen-note").textContent = `${whyStills}, and there are no frames to show instead`;
    }
    drawStrip();
  }

  // --- stills where there is no video to play ----------------------------------------------
  let whyStills = "no video";
  function useStills(why) {
    if (clock instanceof StillsClock) return;
    whyStills = why;
    const now = Number(asked.get("t")) || 0;
    clock = new StillsClock(duration, told);
    video.hidden = true;
    part("seen").hidden = true;
    part("stills").hidden = !seen.count;
    root.dataset.stills = "yes";
    seek(now);
  }

  if (video) {
    const check = () => {
      if (video.videoWidth === 0) useStills("this browser does not play the video");
    };
    video.addEventListener("error", () => useStills("this browser does not play the video"));
    video.addEventListener("loadedmetadata", check);
    video.addEventListener("click", toggle);
    if (video.error) useStills("this browser does not play the video");
    else if (video.readyState >= 1) check();
  } else {
    root.dataset.stills = "yes";
  }

  // --- the axis ----------------------------------------------------------------------------
  for (const element of [axis, strip]) {
    const moment = (event) => {
      const box = element.getBoundingClientRect();
      return ((event.clientX - box.left) / box.width) * duration;
    };
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      seek(moment(event));
    });
    element.addEventListener("pointermove", (event) => {
      if (event.buttons || (event.pointerType === "mouse" && !clock.playing)) seek(moment(event));
    });
  }
  part("play").addEventListener("click", toggle);
  for (const button of root.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => step(Number(button.dataset.step), false));
  }
  for (const button of root.querySelectorAll(".play-span")) {
    button.addEventListener("click", () => {
      playSpan(Number(button.dataset.start), Number(button.dataset.end));
    });
  }
  root.addEventListener("click", (event) => {
    // Of a pointer: else Space would press the button again, and not play or pause.
    if (event.detail) event.target.closest("button:not(.token)")?.blur();
  });

  // --- tokens ------------------------------------------------------------------------------
  let selected = null;
  const dataOf = new Map();
  for (const box of root.querySelectorAll("[data-strip]")) {
    const rows = JSON.parse(box.querySelector("[data-tokens]").textContent);
    for (const button of box.querySelectorAll(".token")) {
      dataOf.set(button, rows[Number(button.dataset.token)]);
      button.addEventListener("mouseenter", () => showToken(button));
      button.addEventListener("mouseleave", () => { if (selected) showToken(selected); });
      button.addEventListener("focus", () => select(button));
      button.addEventListener("click", () => select(button));
    }
  }

  function select(button) {
    if (selected) selected.setAttribute("aria-selected", "false");
    for (const other of button.parentElement.querySelectorAll(".token")) other.tabIndex = -1;
    button.tabIndex = 0;
    button.setAttribute("aria-selected", "true");
    selected = button;
    showToken(button);
    keepInUrl();
  }

  function showToken(button) {
    const token = dataOf.get(button);
    const nats = (value, sign = "") => {
      if (value === null) return "–";
      const small = value !== 0 && Math.abs(value) < 0.001;
      return (sign && value > 0 ? sign : "") + (small ? value.toExponential(2) : value.toFixed(4));
    };
    const facts = [
      ["sampling, while it answered", nats(token.sampling)],
      ["student, at the update", nats(token.student)],
      ["teacher", nats(token.teacher)],
      ["advantage, teacher − sampling", nats(token.advantage, "+")],
      ["teacher's entropy", nats(token.entropy)],
    ];
    for (const [name, value] of [["KL(student ‖ teacher), exact", token.reverse_kl],
      ["KL(teacher ‖ student), exact", token.forward_kl], ["Jensen-Shannon", token.js]]) {
      if (value !== null) facts.push([name, nats(value)]);
    }
    const made = (tag, text, kind = "") => {
      const element = document.createElement(tag);
      element.textContent = text;
      if (kind) element.className = kind;
      return element;
    };
    const title = made("h3", `token ${button.dataset.token}: `);
    title.append(made("span", JSON.stringify(token.text), "word"), made("span", ` (id ${token.id})`, "muted"));
    const table = document.createElement("table");
    table.append(made("caption", "log-probabilities, nats", "muted"));
    for (const [name, value] of facts) {
      const row = table.insertRow();
      row.append(made("th", name), made("td", value, "n"));
      row.dataset.fact = name.split(/[ ,]/)[0];
    }
    const both = made("div", "", "columns-of-two");
    both.append(table);
    if (token.top.length) both.append(likeliest(token, made));
    part("detail").replaceChildren(title, both);
  }

  function likeliest(token, made) {
    const box = made("div", "", "top");
    const table = document.createElement("table");
    table.append(made("caption", `teacher's ${token.top.length} likeliest, log-prob`, "muted"));
    for (const [text, logprob] of token.top) {
      const row = table.insertRow();
      if (text === token.text) row.className = "is-it";
      const svg = document.createElementNS(SVG, "svg");
      const bar = document.createElementNS(SVG, "rect");
      bar.setAttribute("class", "bar teacher");
      bar.setAttribute("height", "100%");
      bar.setAttribute("width", `${100 * Math.exp(logprob)}%`);
      svg.append(bar);
      const cell = document.createElement("td");
      cell.append(svg);
      row.append(made("td", JSON.stringify(text), "word"), made("td", logprob.toFixed(3), "n"), cell);
    }
    box.append(table);
    return box;
  }

  // --- keys --------------------------------------------------------------------------------
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = event.target;
    if (at.closest("input, select, textarea, summary")) return;
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (at.matches(".token[data-token]") && (direction || event.key === "Home" || event.key === "End")) {
      const all = [...at.parentElement.querySelectorAll(".token")];
      const place = { Home: 0, End: all.length - 1 }[event.key] ?? all.indexOf(at) + direction;
      all[Math.min(Math.max(place, 0), all.length - 1)].focus();
    } else if (direction) {
      if (at.closest(".scrolls")) return;
      step(direction, event.shiftKey);
    } else if (event.key === " ") {
      if (at.closest("button:not(.token), a, .scrolls")) return;
      toggle();
    } else if (at === axis && (event.key === "Home" || event.key === "End")) {
      seek(event.key === "Home" ? 0 : duration);
    } else if (event.key === "j" || event.key === "k") {
      const link = root.querySelector(`a[rel=${event.key === "j" ? "next" : "prev"}]`);
      if (!link) return;
      link.click();
    } else {
      return;
    }
    event.preventDefault();
  });

  // --- as the URL says ---------------------------------------------------------------------
  async function findNeighbours() {
    const url = new URL(location.href);
    url.searchParams.set("part", "neighbours");
    try {
      const answer = await fetch(url);
      if (answer.ok) part("neighbours").innerHTML = await answer.text(); // by our own template
    } catch {
      // the page says already that the server does not answer
    }
  }

  const token = asked.get("token");
  if (token !== null) {
    const button = root.querySelector(`[data-strip] [data-token="${CSS.escape(token)}"]`);
    if (button) select(button);
  }
  const start = Number(asked.get("t"));
  if (start > 0) seek(start);
  show();
  findFrames();
  findNeighbours();
  let width = strip.clientWidth;
  new ResizeObserver(() => {
    if (strip.clientWidth !== width) {
      width = strip.clientWidth;
      drawStrip();
    }
  }).observe(strip);
}

for (const element of document.querySelectorAll("[data-trajectory]")) trajectoryPage(element);
