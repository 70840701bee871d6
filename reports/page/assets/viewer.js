// The answer viewer: one question, two variants, what each answered and what every judge said of it.
// Whatever a model wrote becomes text of an element, and never markup.

const loaded = new Map();
const field = (name) => at(`v-${name}`);
const FIELDS = ["metric", "category", "a", "b", "budget", "seed", "order", "question"];

/** A packed document of the page, unpacked once; null where the page does not hold it. A served page asks for it, and
 * once more after it did not come. */
function chunk(selector, ...where) {
  if (!loaded.has(selector)) {
    const held = document.querySelector(selector);
    const coming = held ? unpacked(held.textContent).then(JSON.parse)
      : data.served ? fromServer(...where).then(whole) : Promise.resolve(null);
    loaded.set(selector, coming);
    coming.catch(() => loaded.delete(selector));
  }
  return loaded.get(selector);
}

function whole(found) {
  if (found?.error) throw new Error(found.error);
  return found;
}

function viewerLink(asked) {
  return `#answers?${new URLSearchParams(asked)}`;
}

/** The cell of a variant (or of a swept point of it); without triples it is the same one at every budget. */
function cellOf(point) {
  const [budget, seed] = [field("budget").value, Number(field("seed").value)];
  return data.cells.find((cell) => cell.point === point && cell.seed === seed && (cell.budget ?? budget) === budget);
}

function startViewer() {
  const points = new Map(data.cells.map((cell) => [cell.point, cell.sweep
    ? `${cell.label} (${Object.entries(cell.sweep).map(([key, value]) => `${key} = ${value}`).join(", ")})` : cell.label]));
  options(field("metric"), data.metrics.map((metric) => [metric.name, metric.title]));
  for (const side of ["a", "b"]) options(field(side), [...points]);
  options(field("budget"), [...data.budgets].reverse().map((name) => [name, name]));
  const seeds = [...new Set(data.cells.map((cell) => cell.seed))].sort((x, y) => x - y);
  options(field("seed"), seeds.map((seed) => [seed, seed]));
  field("a").value = variants.filter((name) => points.has(name)).at(-1) ?? "";
  field("b").value = data.baseline;
  for (const name of ["category", "order"]) field(name).addEventListener("change", () => field("question").replaceChildren()); // then the first is shown
  for (const name of FIELDS) field(name).addEventListener("change", () => show());
  field("previous").addEventListener("click", () => move(-1));
  field("next").addEventListener("click", () => move(1));
  addEventListener("hashchange", follow);
  follow();
}

/** Open what the address asks for, if it asks for records. */
function follow() {
  const [place, asked] = location.hash.split("?");
  if (place !== "#answers") return;
  for (const [name, value] of new URLSearchParams(asked ?? "")) if (FIELDS.includes(name)) field(name).dataset.wanted = value;
  show();
  at("answers").scrollIntoView();
}

function move(step) {
  const question = field("question");
  question.selectedIndex = Math.min(Math.max(question.selectedIndex + step, 0), question.options.length - 1);
  show();
}

/** Set a choice that the address wanted, where there is such a choice. */
function want(name) {
  const wanted = field(name).dataset.wanted;
  delete field(name).dataset.wanted;
  if (wanted !== undefined && [...field(name).options].some((option) => option.value === wanted)) field(name).value = wanted;
}

let latest = 0; // of two choices in a row the second is shown, whichever is unpacked first

async function show() {
  const turn = ++latest;
  for (const name of ["metric", "a", "b", "budget", "seed", "order"]) want(name);
  const metric = metrics[field("metric").value];
  if (!metric || !data.cells.length) return;
  const sides = ["a", "b"].map((side) => cellOf(field(side).value));
  const wanted = [chunk("#questions", "questions"), ...sides.map((cell) =>
    (cell?.held ? chunk(`[data-cell="${CSS.escape(cell.name)}"]`, "answers", { cell: cell.name }) : null))];
  const found = await Promise.all(wanted).catch((problem) => problem);
  if (turn !== latest) return;
  if (found instanceof Error) {
    at("v-summary").textContent = `The answers did not come: ${found.message}. Any choice asks for them again.`;
    at("v-answers").replaceChildren();
    return;
  }
  const [questions, ...contents] = found;
  if (!questions) return;
  const benchmark = data.benchmarks[metric.name];
  const asked = questions[benchmark]?.[metric.name] ?? [];
  const [left, right] = contents.map((content) => sideOf(content, benchmark, metric.name));
  offerCategories(asked);
  const groups = grouped(asked, left, right, metric);
  offerQuestions(groups);
  const group = groups[field("question").selectedIndex];
  field("previous").disabled = field("question").selectedIndex <= 0;
  field("next").disabled = field("question").selectedIndex >= groups.length - 1;
  at("v-summary").textContent = summary(groups, sides, metric);
  at("v-answers").replaceChildren(...(group ? group.items.map((item) => turnOf(item, asked[item], [left, right], sides, metric)) : []));
}

/** Records by the number of their question, and the answers they are about; null where the page has none. */
function sideOf(content, benchmark, metric) {
  const rows = content?.records[benchmark]?.[metric];
  if (!rows) return null;
  const others = Object.entries(content.records[benchmark]).filter(([name]) => name !== metric);
  return { records: new Map(rows.map((row) => [row[0], row])), answers: content.answers[benchmark], others };
}

function offerCategories(asked) {
  const found = [...new Set(asked.map(([, , raw]) => raw.category).filter((value) => value !== undefined).map(String))];
  at("v-category-label").hidden = !found.length;
  const before = field("category").value;
  options(field("category"), [["", "all"], ...found.map((value) => [value, value])]);
  if (found.includes(before)) field("category").value = before;
  want("category");
}

/** Questions (all turns of one together) of the chosen category, in the chosen order, with the mean of each side. */
function grouped(asked, left, right, metric) {
  const category = field("category").value;
  const groups = new Map();
  asked.forEach(([, cluster, raw], number_) => {
    if (category && String(raw.category) !== category) return;
    if (!groups.has(cluster)) groups.set(cluster, { cluster, items: [], text: promptOf(raw, metric) });
    groups.get(cluster).items.push(number_);
  });
  const mean = (side, items) => {
    const values = items.map((item) => side?.records.get(item)?.[1]).filter((value) => value !== null && value !== undefined);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  };
  const found = [...groups.values()].map((group) => ({ ...group, a: mean(left, group.items), b: mean(right, group.items) }));
  if (field("order").value !== "asked") {
    const sign = (field("order").value === "left" ? -1 : 1) * (metric.higher_is_better ? 1 : -1);
    const gap = (group) => (group.a === null || group.b === null ? 0 : sign * (group.a - group.b));
    found.sort((x, y) => gap(x) - gap(y));
  }
  return found;
}

function promptOf(raw, metric) {
  const text = raw[data.prompts[metric.name]] ?? raw.prompt ?? raw.instruction ?? "";
  return typeof text === "string" ? text : JSON.stringify(text);
}

function offerQuestions(groups) {
  const question = field("question");
  const before = question.value;
  options(question, groups.map(({ cluster, text }, index) => [cluster, `${index + 1} of ${groups.length}: ${text.slice(0, 90)}`]));
  if (groups.some(({ cluster }) => cluster === before)) question.value = before;
  want("question");
}

function summary(groups, sides, metric) {
  const missing = sides.flatMap((cell, index) => (cell ? (cell.held ? [] : [`the answers of ${cell.name} are not in this file`])
    : [`no cell of ${data.labels[field(index ? "b" : "a").value] ?? "this variant"} at this budget and seed is done`]));
  if (missing.length) return `Nothing to show on one side: ${missing.join("; ")}.`;
  const both = groups.filter((group) => group.a !== null && group.b !== null);
  const better = both.filter((group) => (metric.higher_is_better ? group.a > group.b : group.a < group.b)).length;
  const equal = both.filter((group) => group.a === group.b).length;
  return `${both.length} questions with a value on both sides: left better on ${better}, right better on ` +
    `${both.length - better - equal}, equal on ${equal} (${metric.title}, this seed alone).`;
}

/** One item: what was asked, and the two answers side by side. */
function turnOf(item, [name, , raw], found, cells, metric) {
  const made = element("article", undefined, { class: "turn" });
  const rest = Object.entries(raw).filter(([key]) => ![data.prompts[metric.name], "prompt", "instruction", "turn", "category"].includes(key));
  const title = [raw.turn === undefined ? `Item ${name}` : `Turn ${raw.turn}`, raw.category].filter(Boolean).join(", ");
  const asked = element("div", undefined, { class: "prompt" });
  asked.append(element("p", promptOf(raw, metric), { class: "said" }));
  if (rest.length) asked.append(facts(rest));
  const sides = element("div", undefined, { class: "sides" });
  sides.append(...found.map((side, index) => answerOf(item, name, side, cells[index], metric, field(index ? "b" : "a"))));
  made.append(element("h3", title), asked, sides);
  return made;
}

function answerOf(item, name, side, cell, metric, select) {
  const made = element("section", undefined, { class: "side" });
  const record = side?.records.get(item);
  const heading = element("h4", select.selectedOptions[0]?.textContent ?? "");
  made.append(heading);
  if (!record) {
    made.append(element("p", cell?.held === false ? `Not in this file; see cells/${cell.name} in the run folder.` : "Not measured.", { class: "note" }));
    return made;
  }
  const [, value, error, raw, answer, second] = record;
  heading.append(element("span", error === null ? `${number(value, metric.digits)} ${metric.unit}` : "no value"));
  if (error !== null) made.append(element("p", error, { class: "warning said" }));
  if (answer !== null) made.append(...written(side.answers[answer]));
  if (answer !== null && data.served && side.answers[answer][2]) made.append(traceOf(cell.name, metric.name, name));
  const said = Object.entries(raw).filter(([key]) => key !== "judge");
  if (said.length) made.append(facts(said, raw.judge ?? (metric.made_of === "choices" ? null : data.judges[0])));
  if (second) {
    const [again, problem, words] = second;
    const lines = Object.entries(words).filter(([key]) => key !== "judge");
    made.append(facts([["value", problem ?? number(again, metric.digits)], ...lines], words.judge ?? data.judges[1]));
  }
  const more = answer === null ? [] : side.others.flatMap(([name, rows]) => rows.filter((row) => row[4] === answer)
    .map((row) => [metrics[name]?.title ?? name, row[2] ?? number(row[1], metrics[name]?.digits ?? 2)]));
  if (more.length) made.append(facts(more, "Other metrics of this answer"));
  return made;
}

/** The words of a model; marked are those whose tokens were predicted from an edited residual stream, where that is known. */
function written([text, tokens, steered, finished, edited]) {
  if (text === null) return [element("p", "The answer is not in the run's store of answers.", { class: "warning" })];
  const known = Boolean(steered) && Boolean(edited);
  const words = element("p", undefined, { class: steered && !known ? "said steered" : "said" });
  words.append(...(text === "" ? ["(an empty answer)"] : known ? markedWords(text, edited) : [text]));
  if (tokens === null) return [words];
  const share = steered === 0 ? "not steered" : steered === tokens ? "steering on at every one" : `steering on at ${steered}`;
  const edits = !known ? "" : edited.length ? "; edited where marked" : "; nothing was edited";
  const end = finished ? "" : ", cut off by the length limit";
  return [words, element("p", `${tokens} tokens, ${share}${edits}${end}.`, { class: "note" })];
}

/** ``parts`` are [start, end) in characters, of which some are two of JavaScript's. */
function markedWords(text, parts) {
  const characters = [...text];
  const found = [];
  let done = 0;
  for (const [start, end] of parts) {
    found.push(characters.slice(done, start).join(""), element("mark", characters.slice(start, end).join("")));
    done = end;
  }
  return [...found, characters.slice(done).join("")];
}

function facts(pairs, heading) {
  const list = element("dl");
  if (heading) list.append(element("dt", heading));
  for (const [key, value] of pairs) {
    const text = typeof value === "string" ? value : Array.isArray(value) ? value.map((part, index) => `${index + 1}. ${partText(part)}`).join("\n")
      : JSON.stringify(value);
    list.append(element("dt", key.replaceAll("_", " ")), element("dd", text));
  }
  return list;
}

function partText(part) {
  if (typeof part === "string") return part.trim();
  if (typeof part === "number") return +part.toPrecision(4);
  return part?.role ? `${part.role}: ${part.content}` : JSON.stringify(part);
}
