"use strict";
// The page asks the same API as everybody: GET /v1/models, POST /v1/images/generations as a stream.

const byId = (id) => document.getElementById(id);
let models = [];
let running = null;

function headers() {
  const key = byId("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function failure(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status}`;
  }
}

async function refresh() {
  try {
    const status = await (await fetch("health/ready")).json();
    const problems = status.problems.length ? ` (${status.problems[0]})` : "";
    byId("standing").textContent = status.version
      ? `${status.model}, version ${status.version}: ${status.state}${problems}`
      : `No champion is loaded: ${status.loading ? `version ${status.loading} is on its way` : status.state}${problems}`;
    const answer = await fetch("v1/models", { headers: headers() });
    byId("key-field").hidden = answer.status !== 401 && !byId("key").value;
    models = answer.ok ? (await answer.json()).data : [];
  } catch {
    byId("standing").textContent = "The server does not answer.";
    models = [];
  }
  const previous = models.find((one) => one.role === "previous");
  byId("beside").disabled = !previous;
  const champion = models.find((one) => one.role === "champion");
  if (champion) {
    byId("steps").placeholder = champion.sampling.num_inference_steps;
    showPanels(champion.figures);
  }
}

function cell(row, kind, text) {
  const made = document.createElement(kind);
  made.textContent = text;
  row.append(made);
  return made;
}

function showPanels(figures) {
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const name of ["Panel", "Before", "Champion", "Difference", "Interval", "Margin"]) {
    cell(head, "th", name).scope = "col";
  }
  const body = table.createTBody();
  for (const one of figures) {
    const row = body.insertRow();
    cell(row, "th", one.name).scope = "row";
    cell(row, "td", one.incumbent.toFixed(3));
    cell(row, "td", one.candidate.toFixed(3));
    cell(row, "td", (one.difference >= 0 ? "+" : "") + one.difference.toFixed(3));
    cell(row, "td", `${one.lower.toFixed(3)} to ${one.upper.toFixed(3)}`);
    cell(row, "td", String(one.margin));
  }
  byId("panels").replaceChildren(table);
}

function frame(title) {
  const made = byId("picture").content.cloneNode(true).firstElementChild;
  made.querySelector("strong").textContent = title;
  made.classList.add("drawing");
  made.querySelector("a").hidden = true;
  byId("pictures").append(made);
  return made;
}

function show(figure, event, prompt) {
  const source = `data:image/${event.output_format};base64,${event.b64_json}`;
  const done = event.type === "image_generation.completed";
  const image = figure.querySelector("img");
  image.src = source;
  image.alt = done ? `Drawn for: ${prompt}` : `Preview for: ${prompt}`;
  figure.querySelector("span").textContent = `version ${event.version}, seed ${event.seed}`;
  figure.querySelector("code").textContent = event.digest;
  if (done) {
    figure.classList.remove("drawing");
    const link = figure.querySelector("a");
    link.href = source;
    link.download = `${event.model}-${event.version}-${event.seed}.${event.output_format}`;
    link.hidden = false;
  }
  return done;
}

async function draw(model, title, prompt, seed) {
  const steps = byId("steps").value;
  const figure = frame(title);
  const body = { model, prompt, seed, stream: true, partial_images: 3 };
  if (steps) body.num_inference_steps = Number(steps);
  const answer = await fetch("v1/images/generations", {
    method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal,
  });
  if (!answer.ok) throw new Error(await failure(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let done = false;
  for (;;) {
    const { value, done: ended } = await reader.read();
    if (ended) break;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = JSON.parse(block.slice(block.indexOf("data: ") + 6));
      if (event.error) throw new Error(event.error.message);
      done = show(figure, event, prompt) || done;
    }
  }
  if (!done) throw new Error("the server ended before the picture was done");
}

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  running = new AbortController();
  byId("said").textContent = "";
  byId("pictures").replaceChildren();
  byId("pictures").setAttribute("aria-busy", "true");
  byId("draw").disabled = true;
  byId("stop").disabled = false;
  try {
    await refresh();
    const champion = models.find((one) => one.role === "champion");
    if (!champion) throw new Error("no champion is loaded, so nothing can be drawn");
    const previous = byId("beside").checked && models.find((one) => one.role === "previous");
    const seed = byId("seed").value === "" ? Math.floor(Math.random() * 2 ** 32) : Number(byId("seed").value);
    const prompt = byId("prompt").value;
    const drawings = [draw(`${champion.name}@${champion.version}`, "Champion", prompt, seed)];
    if (previous) drawings.push(draw(previous.id, "Previous champion", prompt, seed));
    await Promise.all(drawings);
    byId("standing").textContent = `Done: version ${champion.version}, seed ${seed}.`;
  } catch (error) {
    byId("said").textContent = error.name === "AbortError" ? "Stopped." : `Not drawn: ${error.message}`;
    running.abort();
  } finally {
    byId("pictures").setAttribute("aria-busy", "false");
    byId("draw").disabled = false;
    byId("stop").disabled = true;
  }
});
byId("stop").addEventListener("click", () => running && running.abort());
byId("key").addEventListener("change", refresh);
refresh();
