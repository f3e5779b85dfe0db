"use strict";
// What the page does beyond being read: theme, choice of a group, sorting, looking a row up, and browsing samples.
// Texts reach the page as text nodes only, so nothing that a model wrote can become markup.

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function make(name, kind, text) {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
}

function setUpTheme() {
  const button = document.getElementById("theme");
  const order = ["system", "light", "dark"];
  let theme = "system";
  try { theme = localStorage.getItem("swaa-theme") || "system"; } catch { /* a file may have no storage */ }
  const show = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Colours: ${theme}`;
  };
  button.addEventListener("click", () => {
    theme = order[(order.indexOf(theme) + 1) % order.length];
    try { localStorage.setItem("swaa-theme", theme); } catch { /* it holds until the page is closed */ }
    show();
  });
  if (!order.includes(theme)) theme = "system";
  button.hidden = false;
  show();
}

function setUpGroups() {
  const choice = document.getElementById("group");
  if (!choice) return;
  const show = () => all("[data-group]").forEach((part) => { part.hidden = part.dataset.group !== choice.value; });
  choice.addEventListener("change", show);
  choice.closest("[hidden]").hidden = false;
  show();
}

function sortBy(head) {
  const table = head.closest("table");
  const column = head.cellIndex;
  const before = head.getAttribute("aria-sort");
  const words = head.classList.contains("words");
  const first = words || head.classList.contains("c-number") ? "ascending" : "descending";
  const second = first === "ascending" ? "descending" : "ascending";
  const direction = before === first ? second : first;
  all("thead th", table).forEach((other) => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const value = (row) => row.cells[column].dataset.value;
  const rows = all("tbody tr", table);
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what was not measured stays last
    return sign * (words ? x.localeCompare(y) : Number(x) - Number(y));
  });
  table.tBodies[0].append(...rows);
}

function setUpTables() {
  all("table.recipes thead th").forEach((head) => {
    head.querySelector("button").addEventListener("click", () => sortBy(head));
  });
}

function setUpPlots() {
  all(".pareto").forEach((plot) => {
    const readout = plot.querySelector(".readout");
    const rest = readout.textContent;
    const look = (number) => {
      plot.classList.toggle("looking", number !== null);
      all("[data-row]", plot).forEach((part) => part.classList.toggle("looked", part.dataset.row === number));
      const point = number === null ? null : plot.querySelector(`.point[data-row="${number}"]`);
      readout.textContent = point ? point.getAttribute("aria-label") : rest;
    };
    all(".point, .legend [data-row]", plot).forEach((part) => {
      part.addEventListener("pointerenter", () => look(part.dataset.row));
      part.addEventListener("pointerleave", () => look(null));
      part.addEventListener("focus", () => look(part.dataset.row));
      part.addEventListener("blur", () => look(null));
    });
  });
}

// Samples. A record is [row, prompt, generation, verdict, answer, facts]; see samples.py for the pieces of texts.
const PAGE = 50;

function plain(pieces) {
  return (pieces || []).map((piece) => (typeof piece === "string" ? piece : piece[0] === "x" ? " … " : piece[1])).join("");
}

function textBlock(title, pieces) {
  const block = make("div");
  block.append(make("h4", "", title));
  const text = make("div", "text mono");
  text.tabIndex = 0;
  text.setAttribute("role", "region");
  text.setAttribute("aria-label", title);
  for (const piece of pieces) {
    if (typeof piece === "string") text.append(piece);
    else if (piece[0] === "x") text.append(make("span", "cut", `${piece[1].toLocaleString("en")} characters left out`));
    else text.append(make("mark", piece[0] === "e" ? "evidence" : "graded", piece[1]));
  }
  block.append(text);
  return block;
}

function factList(facts) {
  const list = make("dl", "facts");
  for (const [name, value] of Object.entries(facts)) {
    const pair = make("div");
    pair.append(make("dt", "", name.replaceAll("_", " ")), make("dd", "", String(value)));
    list.append(pair);
  }
  return list;
}

function folded(title, fill) {
  const details = make("details");
  details.append(make("summary", "", title));
  details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) fill(details); });
  return details;
}

function sampleBody(prompt, record) {
  const [, , , , answer, facts] = record;
  const body = make("div", "body");
  body.append(answer === null ? make("p", "quiet", "Nothing was generated.") : textBlock("Answer", answer));
  const references = prompt.references || (prompt.answer === undefined ? [] : [prompt.answer]);
  if (references.length) body.append(textBlock("Reference", [references.join("\n")]));
  body.append(factList(facts));
  if (prompt.pieces) {
    const evidence = prompt.pieces.some((piece) => piece[0] === "e" && typeof piece !== "string");
    const title = `Prompt, ${prompt.tokens.toLocaleString("en")} tokens${evidence ? ", evidence highlighted" : ""}`;
    body.append(folded(title, (details) => details.append(textBlock("Prompt", prompt.pieces))));
  } else {
    body.append(make("p", "quiet", "The run's folder does not have this prompt."));
  }
  return body;
}

function sampleItem(data, record) {
  const [rowIndex, promptIndex, generation, verdict, answer] = record;
  const row = data.rows[rowIndex];
  const prompt = data.prompts[promptIndex];
  const item = make("details", "sample");
  const summary = make("summary");
  const where = prompt.example.startsWith(prompt.task) ? [prompt.example] : [prompt.task, prompt.example];
  if (row.run && data.rows.some((other) => other.run !== row.run)) where.unshift(row.run);
  if (generation) where.push(`answer ${generation + 1}`);
  const names = make("span", "", `${row.number} ${row.name}`);
  names.append(make("span", "quiet", ` · ${where.join(" · ")}`));
  const answerText = answer === null ? "nothing generated" : plain(answer).slice(0, 300).trim() || "(empty)";
  summary.append(make("span", `verdict v-${verdict}`, data.verdicts[verdict]), names, make("span", "answer-line", answerText));
  item.append(summary);
  item.addEventListener("toggle", () => { if (item.open && item.children.length === 1) item.append(sampleBody(prompt, record)); });
  return item;
}

function setUpSamples() {
  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const found = document.getElementById("found");
  const more = document.getElementById("more");
  const texts = new Map(); // of a record, in lower case; made when first searched
  const textOf = (record) => {
    if (!texts.has(record)) {
      const prompt = data.prompts[record[1]];
      const parts = [data.rows[record[0]].name, prompt.example, prompt.answer || "", plain(record[4]), String(record[5].error || "")];
      texts.set(record, parts.join("\n").toLowerCase());
    }
    return texts.get(record);
  };
  const promptTexts = data.prompts.map(() => null);
  const promptHas = (index, words) => {
    if (promptTexts[index] === null) promptTexts[index] = plain(data.prompts[index].pieces).toLowerCase();
    return promptTexts[index].includes(words);
  };
  let chosen = [];
  let shown = 0;
  const showMore = () => {
    list.append(...chosen.slice(shown, shown + PAGE).map((record) => sampleItem(data, record)));
    shown = Math.min(chosen.length, shown + PAGE);
    more.hidden = shown === chosen.length;
    const many = chosen.length.toLocaleString("en");
    found.textContent = `${many} of ${data.records.length.toLocaleString("en")} answers` + (more.hidden ? "" : `, the first ${shown} shown`);
  };
  const filter = () => {
    const row = form.elements.recipe.value;
    const verdict = form.elements.verdict.value;
    const task = form.elements.task.value;
    const words = form.elements.search.value.trim().toLowerCase();
    const inPrompt = new Map();
    const matches = (record) => {
      if (textOf(record).includes(words)) return true;
      if (!inPrompt.has(record[1])) inPrompt.set(record[1], promptHas(record[1], words));
      return inPrompt.get(record[1]);
    };
    chosen = data.records.filter((record) =>
      (row === "" || record[0] === Number(row)) &&
      (verdict === "" || record[3] === verdict) &&
      (task === "" || data.prompts[record[1]].task === task) &&
      (words === "" || matches(record)));
    list.replaceChildren();
    shown = 0;
    showMore();
  };
  let waiting = 0;
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", showMore);
  form.hidden = false;
  filter();
}

setUpTheme();
setUpGroups();
setUpTables();
setUpPlots();
setUpSamples();
