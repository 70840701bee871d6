// What steering did to one answer: its tokens by how much was added, the latents that were edited, where they fire.
// Tokens and passages become text of elements, and never markup.

/** A button that becomes the trace of the answer to ``item``. */
function traceOf(cell, metric, item) {
  const made = element("div", undefined, { class: "trace" });
  const button = element("button", "Trace the edits", { type: "button" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = "Tracing (the first one loads the model) …";
    const found = await fromServer("trace", { cell, metric, item }).catch((problem) => ({ error: problem.message }));
    if (!found) return;
    if (found.error) made.replaceChildren(element("p", `No trace: ${found.error}`, { class: "warning said" }));
    else {
      made.parentElement.querySelector(".said.steered")?.remove(); // the same words
      made.replaceChildren(...tracedAnswer(found, cell));
    }
  });
  made.append(button);
  return made;
}

function tracedAnswer(found, cell) {
  const detail = element("div", undefined, { class: "detail", "aria-live": "polite" });
  const most = Math.max(...found.sizes, 1e-9);
  const words = element("p", undefined, { class: "said tokens" });
  const all = element("button", "All tokens", { type: "button", class: "all", "aria-pressed": "true" });
  const choose = (button, fill) => {
    for (const other of [all, ...words.children]) if (other.hasAttribute("aria-pressed")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", "true");
    fill();
  };
  words.append(...found.tokens.map((token, index) => {
    if (!found.sizes[index]) return element("span", token);
    const said = `${JSON.stringify(token)}: ${percent(found.sizes[index])} of the residual stream`;
    const button = element("button", token, { type: "button", class: "token", "aria-pressed": "false", title: said });
    button.style.setProperty("--share", (0.15 + 0.85 * (found.sizes[index] / most)).toFixed(3));
    button.addEventListener("click", () => choose(button, () => tokenDetail(found, index, detail, cell)));
    return button;
  }));
  all.addEventListener("click", () => choose(all, () => wholeDetail(found, detail, cell)));
  wholeDetail(found, detail, cell);
  const edited = found.sizes.filter((size) => size > 0).length;
  const selected = found.latents ? ` The prompt selected ${found.latents.length} latents.` : "";
  const note = `${edited} of ${found.tokens.length} tokens were edited: up to ${percent(most)} of the residual stream's length was added where they were predicted.${selected} The darker, the more; choose a token.`;
  return [element("p", edited ? note : `Nothing was edited.${selected}`, { class: "note" }), words, all, detail];
}

/** What was edited before one token was chosen. */
function tokenDetail(found, index, detail, cell) {
  const title = `Token ${index + 1}, ${JSON.stringify(found.tokens[index])}: ${percent(found.sizes[index])} of the residual stream`;
  const rows = found.edits[index].map(([k, before, change]) => [found.latents[k], [amount(before), amount(change, true), amount(before + change)]]);
  fillDetail(detail, cell, title, ["latent", "activation", "change", "then"], rows, found.latents);
}

/** The edits of all tokens together, by latent. */
function wholeDetail(found, detail, cell) {
  const sums = new Map();
  for (const edits of found.edits) {
    for (const [k, , change] of edits) {
      const sum = sums.get(k) ?? { tokens: 0, change: 0 };
      sums.set(k, { tokens: sum.tokens + 1, change: sum.change + change });
    }
  }
  const rows = [...sums].sort(([, a], [, b]) => Math.abs(b.change) - Math.abs(a.change))
    .map(([k, sum]) => [found.latents[k], [String(sum.tokens), amount(sum.change, true), amount(sum.change / sum.tokens, true)]]);
  fillDetail(detail, cell, "All tokens, by latent", ["latent", "tokens", "change in all", "mean change"], rows, found.latents);
}

function fillDetail(detail, cell, title, headers, rows, latents) {
  if (!latents) {
    detail.replaceChildren(element("p", `${title}. This method adds a direction, not edits of latents.`, { class: "note" }));
    return;
  }
  const table = element("table", undefined, { class: "plain" });
  const head = element("tr");
  head.append(...headers.map((text, index) => element("th", text, { scope: "col", class: index ? "num" : "" })));
  const body = element("tbody");
  const passages = element("div", undefined, { class: "passages", "aria-live": "polite" });
  body.append(...rows.map(([latent, values]) => {
    const row = element("tr");
    const name = element("th", undefined, { scope: "row" });
    const button = element("button", `#${latent}`, { type: "button", "aria-label": `Passages on which latent ${latent} fires` });
    button.addEventListener("click", () => passagesOf(cell, latent, passages));
    name.append(button);
    row.append(name, ...values.map((value) => element("td", value, { class: "num" })));
    return row;
  }));
  table.append(element("caption", title), element("thead"), body);
  table.tHead.append(head);
  const scroll = element("div", undefined, { class: "scroll" });
  scroll.append(table);
  const note = element("p", "Changes are of the latent's activation, which multiplies its decoder row. A latent opens the passages that it fires on.", { class: "note" });
  detail.replaceChildren(scroll, note, passages);
}

/** Where a latent fires most in the triples that the cell was fitted on. */
async function passagesOf(cell, latent, place) {
  place.replaceChildren(element("p", `Looking for latent ${latent} in the training triples …`, { class: "note" }));
  place.dataset.latent = latent;
  const found = await fromServer("latent", { cell, latent }).catch((problem) => ({ error: problem.message }));
  if (!found || place.dataset.latent !== String(latent)) return; // another was asked for meanwhile
  if (found.error) {
    place.replaceChildren(element("p", `No passages: ${found.error}`, { class: "warning said" }));
    return;
  }
  const list = element("ol");
  list.append(...found.snippets.map(({ text, activation, kind }) => {
    const line = element("li");
    const words = element("span", undefined, { class: "said" });
    words.append(...text.split(/(\[\[.*?\]\])/s).map((part) => (part.startsWith("[[") && part.endsWith("]]") ? element("mark", part.slice(2, -2)) : part)));
    line.append(words, element("small", `${amount(activation)}, ${kind}`));
    return line;
  }));
  const heading = found.snippets.length ? `Latent ${latent} fires most here, among ${found.triples} training triples of the cell:`
    : `Latent ${latent} fires nowhere in ${found.triples} training triples of the cell.`;
  place.replaceChildren(element("p", heading), list);
}

function percent(share) {
  return `${(100 * share).toLocaleString("en", { maximumSignificantDigits: 2 })} %`;
}

function amount(value, signed = false) {
  return (signed && value > 0 ? "+" : "") + value.toLocaleString("en", { maximumSignificantDigits: 3 });
}
