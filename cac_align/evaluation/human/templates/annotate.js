// The rating page. One key after another: a key waits until the one before it is saved. All text enters the page as text, never as HTML.
"use strict";

const RATER = document.body.dataset.rater;
const COLOURS = JSON.parse(document.body.dataset.colours);
const TYPES = JSON.parse(document.body.dataset.types);
const SPEEDS = [1, 0.5, 0.25, 2];
const KEEP = 400; // frames on either side that are loaded ahead
const element = (id) => document.getElementById(id);

let view = null; // the task as the server told it
let stages = []; // per clip: what shows it
let focus = 0; // which clip the keys are about
let frame = 0; // of the clip in focus
let chosen = []; // per clip: the chosen anomaly; the number after the last one is "another"
let draft = null; // the box being placed: {box: [xmin, ymin, xmax, ymax], step}
let playing = null; // {since, from}: when and where playing began
let speed = 0;
let away = false; // the server does not answer
let leaving = false; // n was pressed on an unfinished video
let writing = null; // the field being written: "reason" or "region"
let ahead = null; // keys typed after r or w, before the field is there: text, not commands
let tasks = 0; // counts the tasks shown, so that late images know they are late

// ---- small things --------------------------------------------------------------------------------------------------

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function say(text) {
  const box = element("message");
  box.textContent = text || "";
  box.hidden = !text;
  clearTimeout(say.timer);
  if (text) say.timer = setTimeout(() => say(""), 6000);
}

function saved(text, how) {
  element("saved").textContent = text;
  element("saved").className = how;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const clip = () => view.clips[focus];
const rating = (index = focus) => view.state.ratings[view.clips[index].token];
const anomalies = (index = focus) => rating(index).anomalies;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const colour = (mark) => (mark && mark.type ? COLOURS[mark.type] : "#868e96");

function frameAt(times, time) { // the last frame whose time stamp has come
  let low = 0, high = times.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (times[middle] <= time + 1e-6) low = middle; else high = middle - 1;
  }
  return low;
}

const shownFrame = (index) => (index === focus ? frame : frameAt(view.clips[index].times_s, clip().times_s[frame]));

// ---- talking to the server -----------------------------------------------------------------------------------------

async function ask(path, body) {
  for (let attempt = 0; ; attempt++) {
    let answer;
    try {
      answer = await fetch(path, body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
      if (answer.status < 500) {
        if (away) say("");
        away = false;
        return { status: answer.status, body: await answer.json() };
      }
    } catch (error) { /* the server is away: told below, and tried again */ }
    away = true;
    saved("not saved", "bad");
    say("The server does not answer; trying again. Nothing is lost.");
    await pause(Math.min(200 * 2 ** attempt, 2000));
  }
}

async function act(kind, detail = {}) {
  saved("saving", "");
  const { status, body } = await ask("/api/action", {
    rater: RATER, task: view.task, clip: clip().token, kind, detail, last_known: view.state.last, client: crypto.randomUUID(),
  });
  if (body.state) view.state = body.state;
  if (status === 200) saved("saved", "good");
  else { saved("not done", "bad"); say(typeof body.detail === "string" ? body.detail : "the server refused that"); }
  leaving = false;
  view.clips.forEach((_, index) => { chosen[index] = clamp(chosen[index], 0, anomalies(index).length); });
  show();
  return status === 200;
}

async function open(query) {
  const { status, body } = await ask(`/api/task?rater=${encodeURIComponent(RATER)}&${query}`);
  if (status !== 200) return say(body.detail);
  tasks++;
  playing = draft = writing = null;
  leaving = false;
  say("");
  element("finished").textContent = `${body.finished} of ${body.total} finished`;
  element("progress").style.width = `${(100 * body.finished) / body.total}%`;
  view = body.task ? body : null;
  element("work").hidden = !view;
  element("finish").hidden = !!view;
  element("place").textContent = view ? `Video ${body.number}` : "Finished";
  open.total = body.total;
  if (!view) { open.number = body.total + 1; return; }
  open.number = body.number;
  focus = 0;
  frame = 0;
  chosen = view.clips.map((_, index) => Math.max(anomalies(index).length - 1, 0));
  element("prompt").textContent = view.prompt || "";
  document.body.classList.toggle("paired", view.clips.length > 1);
  document.querySelector(".actions .pair").hidden = view.clips.length < 2;
  build();
  show();
}

// ---- stages: canvas, boxes, timeline -------------------------------------------------------------------------------

function build() {
  const area = element("stages");
  area.replaceChildren();
  area.className = view.clips.length > 1 ? "stages two" : "stages";
  stages = view.clips.map((each, index) => {
    const stage = make("section", "stage");
    const title = make("h3"), name = make("b", "", view.clips.length > 1 ? `Video ${"AB"[index]}` : ""), clock = make("span");
    title.append(name, clock);
    const screen = make("div", "screen"), canvas = make("canvas"), over = make("div"), waiting = make("span", "waiting", "loading");
    canvas.width = each.width;
    canvas.height = each.height;
    if (each.width < 400) canvas.className = "small";
    screen.style.aspectRatio = `${each.width} / ${each.height}`;
    stage.style.maxWidth = `calc(62vh * ${each.width / each.height})`;
    screen.append(canvas, over, waiting);
    const timeline = make("div", "timeline");
    stage.append(title, screen, timeline);
    area.append(stage);
    const images = new Array(each.times_s.length).fill(null);
    const made = { stage, clock, screen, canvas, over, waiting, timeline, images, drawn: -1 };
    timeline.addEventListener("pointerdown", (event) => enqueue(() => {
      const area = timeline.getBoundingClientRect();
      take(index);
      step(Math.round(((event.clientX - area.left) / area.width) * each.times_s.length - 0.5) - frame);
    }));
    drawable(made, index);
    return made;
  });
  load(tasks);
}

// Loads what is near the frame shown first, a few at a time.
async function load(task) {
  let next = null;
  const wanted = () => {
    for (let away = 0; away <= KEEP; away++) {
      for (const [index, stage] of stages.entries()) {
        for (const at of away ? [shownFrame(index) + away, shownFrame(index) - away] : [shownFrame(index)]) {
          if (at >= 0 && at < stage.images.length && !stage.images[at]) return [index, at];
        }
      }
    }
    return null;
  };
  const worker = async () => {
    while (task === tasks && (next = wanted())) {
      const [index, at] = next, stage = stages[index], image = new Image();
      stage.images[at] = image;
      image.src = `/frame/${view.clips[index].token}/${at}`;
      try { await image.decode(); image.ready = true; } catch (error) { image.failed = true; await pause(50); }
      if (task === tasks && shownFrame(index) === at) paint(index);
    }
  };
  await Promise.all([worker(), worker(), worker(), worker()]);
  if (task === tasks) setTimeout(() => task === tasks && load(task), 400); // the person may have moved on in a long video
}

function paint(index) {
  const stage = stages[index], at = shownFrame(index), image = stage.images[at];
  if (image && image.ready) {
    stage.canvas.getContext("2d").drawImage(image, 0, 0, stage.canvas.width, stage.canvas.height);
    stage.waiting.hidden = true;
    stage.drawn = at;
    stage.canvas.dataset.frame = at;
  } else {
    if (image && image.failed) stage.images[at] = null; // once more
    stage.waiting.hidden = false;
    stage.waiting.textContent = image && image.failed ? `frame ${at} cannot be loaded` : "loading";
  }
}

function boxOn(stage, corners, className, borderColour) {
  const box = make("span", className);
  box.style.cssText = `left:${corners[0] / 10}%;top:${corners[1] / 10}%;width:${(corners[2] - corners[0]) / 10}%;height:${(corners[3] - corners[1]) / 10}%`;
  if (borderColour) box.style.borderColor = borderColour;
  stage.over.append(box);
}

function show() {
  if (!view) return;
  stages.forEach((stage, index) => {
    const each = view.clips[index], at = shownFrame(index), count = each.times_s.length;
    stage.stage.classList.toggle("focus", index === focus);
    stage.clock.textContent = `frame ${at} of 0–${count - 1} · ${each.times_s[at].toFixed(3)} s${SPEEDS[speed] !== 1 ? ` · ×${SPEEDS[speed]}` : ""}`;
    paint(index);
    stage.over.replaceChildren();
    anomalies(index).forEach((mark, number) => {
      const on = index === focus && number === chosen[index];
      for (const corners of mark.boxes[at] || []) boxOn(stage, corners, on ? "box chosen" : "box", colour(mark));
    });
    if (draft && index === focus) boxOn(stage, draft.box, "box draft");
    stage.timeline.replaceChildren();
    anomalies(index).forEach((mark) => {
      if (mark.start === null && mark.end === null) return;
      const start = mark.start === null ? mark.end : mark.start, end = mark.end === null ? mark.start : mark.end;
      const span = make("i", mark.start === null || mark.end === null ? "open" : "");
      span.style.cssText = `left:${(100 * start) / count}%;width:${(100 * Math.max(end - start + 1, 1)) / count}%`;
      span.style.background = colour(mark);
      stage.timeline.append(span);
      for (const boxed of Object.keys(mark.boxes)) {
        const dot = make("u");
        dot.style.left = `${(100 * (Number(boxed) + 0.5)) / count}%`;
        stage.timeline.append(dot);
      }
    });
    const head = make("em");
    head.style.left = `${(100 * (at + 0.5)) / count}%`;
    stage.timeline.append(head);
  });
  list();
}

// ---- the list of anomalies, and what to do next --------------------------------------------------------------------

function list() {
  marked();
  const area = element("ratings");
  const field = area.querySelector("input");
  if (writing && field) return; // someone is writing there
  area.replaceChildren();
  view.clips.forEach((_, index) => {
    const part = make("div", "rating"), state = rating(index);
    if (view.clips.length > 1) part.append(make("h4", "", `Video ${"AB"[index]}${index === focus ? " (the keys are here)" : ""}`));
    part.append(make("span", `verdict ${state.status || ""}`, state.status || "not judged yet"));
    state.anomalies.forEach((mark, number) => {
      const on = index === focus && number === chosen[index], card = make("div", on ? "mark chosen" : "mark");
      card.style.borderLeftColor = colour(mark);
      card.append(make("b", "", `${number + 1}. ${mark.type || "no type yet"}`));
      const times = view.clips[index].times_s, at = (frame) => (frame === null ? "…" : `${frame} (${times[frame].toFixed(2)} s)`);
      card.append(make("span", "", `frames ${at(mark.start)} to ${at(mark.end)}`));
      const boxes = Object.values(mark.boxes).reduce((sum, each) => sum + each.length, 0);
      if (boxes) card.append(make("span", "", `${boxes} box${boxes > 1 ? "es" : ""} on frame${Object.keys(mark.boxes).length > 1 ? "s" : ""} ${Object.keys(mark.boxes).join(", ")}`));
      if (mark.reason) card.append(make("span", "", mark.reason));
      if (mark.region) card.append(make("span", "", `where: ${mark.region}`));
      if (mark.saliency) card.append(make("span", "", mark.saliency));
      for (const lack of mark.missing) card.append(make("span", "lack", lack));
      part.append(card);
      if (on && writing) card.append(input(mark));
    });
    area.append(part);
    if (index === focus && chosen[index] === state.anomalies.length && state.anomalies.length) {
      const ghost = make("div", "mark chosen", `${state.anomalies.length + 1}. press i where it begins`);
      part.append(ghost);
    }
  });
  const box = element("hint");
  box.replaceChildren(...hint());
  const writer = area.querySelector("input");
  if (writer) {
    writer.focus();
    const keys = ahead || [];
    ahead = null;
    while (keys.length) {
      const key = keys.shift();
      if (key.length === 1) writer.value += key;
      else if (key === "Backspace") writer.value = writer.value.slice(0, -1);
      else if (key === "Enter" || key === "Escape") { writer.dispatchEvent(new KeyboardEvent("keydown", { key })); break; }
    }
    for (const key of keys) document.dispatchEvent(new KeyboardEvent("keydown", { key })); // typed after the field was closed
  }
}

// Which buttons say what is chosen, and whether those that move a box are there.
function marked() {
  const state = rating(), mark = state.anomalies[chosen[focus]];
  const on = { x: state.status === "normal", s: !!mark && mark.saliency === "salient", b: !!draft };
  TYPES.forEach((type, index) => { on[index + 1] = !!mark && mark.type === type; });
  for (const [key, pressed] of Object.entries(on)) document.querySelector(`.actions [data-key="${key}"]`).setAttribute("aria-pressed", pressed);
  element("drafting").hidden = !draft;
  element("moving").hidden = !!draft;
}

function hint() {
  const key = (name) => make("kbd", "", name);
  if (draft) return [key("←"), key("↑"), key("→"), key("↓"), " move the box, with ", key("Shift"), " change its size, ", key("f"), ` step ${draft.step}, `, key("Enter"), " keeps it, ", key("Esc"), " drops it"];
  const state = rating(), mark = state.anomalies[chosen[focus]];
  if (view.state.done) return ["Confirmed. ", key("n"), " next"];
  if (!state.status) return [key("x"), " if it is normal, ", key("i"), " on the first frame of an anomaly"];
  if (!mark) return state.status === "normal" ? ["Normal. ", key("n"), " confirms and goes on"] : [key("i"), " on its first frame"];
  if (mark.start === null) return [key("i"), " on its first frame"];
  if (mark.end === null) return [key("o"), " on its last frame"];
  if (!mark.type) return [key("1"), "–", key("5"), " its type"];
  if (!Object.keys(mark.boxes).length) return [key("b"), " a box on this frame, ", key("n"), " confirms and goes on"];
  if (!mark.reason) return [key("r"), " the reason, ", key("n"), " confirms and goes on"];
  return [key("n"), " confirms and goes on, ", key("a"), " another anomaly"];
}

function input(mark) {
  const field = make("input");
  field.placeholder = writing === "reason" ? "what is wrong?" : "where is it?";
  field.value = mark[writing];
  field.maxLength = 2000;
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
    event.preventDefault();
    const kind = writing, text = field.value;
    writing = null;
    field.remove();
    if (event.key === "Escape") enqueue(show);
    else enqueue(() => act(kind, { anomaly: chosen[focus], text }));
  });
  return field;
}

// ---- moving --------------------------------------------------------------------------------------------------------

function step(by) {
  playing = null;
  frame = clamp(frame + by, 0, clip().times_s.length - 1);
  show();
}

function take(index) {
  if (index === focus) return;
  frame = shownFrame(index);
  focus = index;
  draft = null;
}

function play() {
  if (playing) { playing = null; return show(); }
  if (frame === clip().times_s.length - 1) frame = 0;
  playing = { since: performance.now(), from: clip().times_s[frame] };
  requestAnimationFrame(advance);
}

function advance(now) {
  if (!playing || !view) return;
  const times = clip().times_s, time = playing.from + (SPEEDS[speed] * Math.max(now - playing.since, 0)) / 1000;
  const next = frameAt(times, time);
  if (next !== frame) { frame = next; show(); }
  if (time > times[times.length - 1]) playing = null;
  else requestAnimationFrame(advance);
}

// ---- boxes ---------------------------------------------------------------------------------------------------------

function beginBox() {
  playing = null;
  const mark = anomalies()[chosen[focus]];
  let near = [300, 300, 700, 700];
  if (mark) { // where this anomaly was on the nearest boxed frame
    const boxed = Object.keys(mark.boxes).map(Number).sort((a, b) => Math.abs(a - frame) - Math.abs(b - frame));
    if (boxed.length) near = mark.boxes[boxed[0]].at(-1);
  }
  draft = { box: [...near], step: 10 };
  show();
}

function moveBox(dx, dy, resize) {
  const [xmin, ymin, xmax, ymax] = draft.box, by = draft.step;
  if (resize) {
    draft.box[2] = clamp(xmax + dx * by, xmin + 1, 1000);
    draft.box[3] = clamp(ymax + dy * by, ymin + 1, 1000);
  } else {
    const x = clamp(dx * by, -xmin, 1000 - xmax), y = clamp(dy * by, -ymin, 1000 - ymax);
    draft.box = [xmin + x, ymin + y, xmax + x, ymax + y];
  }
  show();
}

async function keepBox() {
  const box = draft.box;
  draft = null;
  await act("box", { anomaly: chosen[focus], frame, box });
}

function drawable(stage, index) {
  let from = null;
  const at = (event) => {
    const area = stage.screen.getBoundingClientRect();
    return [clamp((1000 * (event.clientX - area.left)) / area.width, 0, 1000), clamp((1000 * (event.clientY - area.top)) / area.height, 0, 1000)];
  };
  const between = (a, b) => [Math.floor(Math.min(a[0], b[0])), Math.floor(Math.min(a[1], b[1])), Math.ceil(Math.max(a[0], b[0])), Math.ceil(Math.max(a[1], b[1]))];
  stage.screen.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || away || writing) return;
    playing = null;
    take(index);
    from = at(event);
    stage.screen.setPointerCapture(event.pointerId);
    show();
  });
  stage.screen.addEventListener("pointermove", (event) => {
    if (!from) return;
    draft = { box: between(from, at(event)), step: 10 };
    show();
  });
  const finish = (event) => {
    if (!from) return;
    const box = between(from, at(event));
    from = null;
    draft = null;
    // A click without a drag is no box.
    if (event.type === "pointerup" && box[2] - box[0] >= 5 && box[3] - box[1] >= 5) enqueue(() => { draft = { box, step: 10 }; return keepBox(); });
    else show();
  };
  stage.screen.addEventListener("pointerup", finish);
  stage.screen.addEventListener("pointercancel", finish);
}

// ---- keys ----------------------------------------------------------------------------------------------------------

async function next() {
  if (!view) return;
  if (!view.state.done) {
    const many = view.clips.length > 1, missing = [];
    view.clips.forEach((_, index) => rating(index).missing.forEach((lack) => missing.push((many ? `video ${"AB"[index]}: ` : "") + lack)));
    if (missing.length && !leaving) {
      leaving = true;
      return say(`Not finished: ${missing.join("; ")}. Press n again to leave it so.`);
    }
    if (!missing.length && !(await act("done"))) return;
  }
  await open(`after=${open.number}`);
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

async function onKey(key, shift) {
  if (element("help").open) { if (key === "?" || key === "Escape") element("help").close(); return; }
  if (key === "?") return element("help").showModal();
  if (key === "p") return open(`number=${Math.max(open.number - 1, 1)}`);
  if (!view) return;
  if (draft) {
    if (key in ARROWS) return moveBox(...ARROWS[key], shift);
    if (key === "f") { draft.step = { 10: 1, 1: 50, 50: 10 }[draft.step]; return show(); }
    if (key === "Enter" || key === "b") return keepBox();
    if (key === "Escape") { draft = null; return show(); }
    return say("Enter keeps the box, Esc drops it");
  }
  const number = chosen[focus], mark = anomalies()[number];
  if (key !== "n") leaving = false;
  if (key === " ") return play();
  if (key === "ArrowLeft") return step(shift ? -10 : -1);
  if (key === "ArrowRight") return step(shift ? 10 : 1);
  if (key === "Home") return step(-Infinity);
  if (key === "End") return step(Infinity);
  if (key === "v") { speed = (speed + 1) % SPEEDS.length; if (playing) playing = { since: performance.now(), from: clip().times_s[frame] }; return show(); }
  if (key === "Tab") { if (view.clips.length > 1) { take(1 - focus); show(); } return; }
  if (key === "ArrowUp" || key === "ArrowDown") { chosen[focus] = clamp(number + (key === "ArrowUp" ? -1 : 1), 0, Math.max(anomalies().length - 1, 0)); return show(); }
  if (key === "a") { chosen[focus] = anomalies().length; return show(); }
  if (key === "x" || key === "0") {
    const dropped = anomalies().length;
    if ((await act("normal")) && dropped) say(`Normal; ${dropped} anomal${dropped > 1 ? "ies" : "y"} dropped. u brings ${dropped > 1 ? "them" : "it"} back.`);
    return;
  }
  if (key === "i") return act("start", { anomaly: number, frame });
  if (key === "o") return act("end", { anomaly: number, frame });
  if (/^[1-5]$/.test(key)) return act("type", { anomaly: number, type: TYPES[Number(key) - 1] });
  if (key === "b") return beginBox();
  if (key === "Delete") return mark && mark.boxes[frame] ? act("unbox", { anomaly: number, frame }) : say("There is no box of this anomaly on this frame.");
  if (key === "r" || key === "w") {
    if (!mark) return say("First mark the anomaly: i on its first frame.");
    playing = null;
    writing = key === "r" ? "reason" : "region";
    return list();
  }
  if (key === "s") return mark ? act("saliency", { anomaly: number, saliency: mark.saliency === "salient" ? "non-salient" : "salient" }) : say("There is no anomaly chosen.");
  if (key === "d") return mark ? act("remove", { anomaly: number }) : say("There is no anomaly chosen.");
  if (key === "u") return view.state.undoable ? act("undo") : say("There is nothing to undo here; p goes back to the previous video.");
  if (key === "n") return next();
}

let queue = Promise.resolve();
function enqueue(work) {
  queue = queue.then(work).catch((error) => { console.error(error); say(`Something went wrong: ${error.message}. Reload the page; what was saved is safe.`); });
  return queue;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.target.tagName === "INPUT") return;
  const onButton = ["BUTTON", "SUMMARY"].includes(event.target.tagName);
  if (onButton && ["Enter", " "].includes(event.key)) return; // presses the button that has the focus
  if (event.key === "Tab" && (onButton || event.shiftKey || !view || view.clips.length < 2)) return; // moves the focus
  if (["Shift", "CapsLock", "AltGraph", "Dead", "Process"].includes(event.key)) return;
  if (ahead) { ahead.push(event.key); event.preventDefault(); return; }
  const key = event.key.length === 1 ? (event.key === "?" ? "?" : event.key.toLowerCase()) : event.key;
  if (!(key in ARROWS) && event.repeat) return; // holding a key steps or moves, and nothing else
  if (/^[ -~]$/.test(key) || key in ARROWS || ["Home", "End", "Tab", "Delete", "Enter", "Escape"].includes(key)) event.preventDefault();
  if (away) return; // shown as not saved; a key pressed now would act on something the person cannot see
  if (key === "r" || key === "w") {
    ahead = [];
    enqueue(() => onKey(key, event.shiftKey)).then(() => { ahead = null; });
  } else enqueue(() => onKey(key, event.shiftKey));
});

for (const button of document.querySelectorAll("[data-key]")) {
  button.addEventListener("click", (event) => {
    if (event.detail) button.blur(); // clicked and not pressed by a key: Space plays again
    if (away) return;
    const field = element("ratings").querySelector("input");
    if (field) field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" })); // keeps what is being written
    enqueue(() => onKey(button.dataset.key, "shift" in button.dataset));
  });
}

enqueue(() => open("after=0"));
