// Method against method: the means of two variants and the tested difference, metric by metric.

function startCompare() {
  const [a, b, budget] = ["pair-a", "pair-b", "pair-budget"].map(at);
  options(a, variants.map((name) => [name, data.labels[name]]));
  options(b, variants.map((name) => [name, data.labels[name]]));
  options(budget, [...data.budgets].reverse().map((name) => [name, name]));
  b.value = data.baseline;
  a.value = variants.filter((name) => name !== data.baseline).at(-1) ?? data.baseline;
  for (const select of [a, b, budget]) select.addEventListener("change", comparePair);
  comparePair();
}

function followBudget(name) {
  at("pair-budget").value = name;
  comparePair();
}

/** The tested difference of ``a`` minus ``b``, turned round where it was tested the other way; null where it was not. */
function tested(a, b, budget, metric) {
  const row = data.pairs.find((pair) => pair.budget === budget && pair.metric === metric &&
    ((pair.a === a && pair.b === b) || (pair.a === b && pair.b === a)));
  if (!row) return null;
  if (row.a === a) return row;
  const turned = (value) => (value === null ? null : -value);
  return { ...row, difference: turned(row.difference), low: turned(row.high), high: turned(row.low) };
}

function comparePair() {
  const [a, b, budget] = ["pair-a", "pair-b", "pair-budget"].map((id) => at(id).value);
  const table = at("pair");
  const scores = (name) => data.points.find((point) => point.variant === name && point.budget === budget)?.scores ?? {};
  const [left, right] = [scores(a), scores(b)];
  table.caption.textContent = `${data.labels[a]} minus ${data.labels[b]} at ${budget}`;
  const headers = ["metric", data.labels[a], data.labels[b], "difference [95 %]", "corrected p", ""];
  const head = element("tr");
  head.append(...headers.map((text, index) => element("th", text, { scope: "col", class: index ? "num" : "" })));
  table.tHead.replaceChildren(head);
  let untested = 0;
  table.tBodies[0].replaceChildren(...data.metrics.map((metric) => {
    const row = a === b ? null : tested(a, b, budget, metric.name);
    const line = element("tr");
    line.append(element("th", `${metric.title} (${metric.unit}${metric.higher_is_better ? "" : ", lower is better"})`, { scope: "row" }));
    const [mine, other] = [left, right].map((side) => (side[metric.name] ?? [null])[0]);
    line.append(...[mine, other].map((mean) => element("td", number(mean, metric.digits), { class: "num" })));
    if (!row) {
      untested += 1;
      const gap = mine === null || other === null ? null : mine - other;
      line.append(element("td", number(gap, metric.digits, true), { class: "num" }), element("td", "not tested", { class: "num" }), element("td"));
    } else if (row.low === 0 && row.high === 0) {
      line.append(element("td", "no item differs", { class: "num" }), element("td", EMPTY, { class: "num" }), element("td"));
    } else {
      const size = `${number(row.difference, metric.digits, true)} ${interval(row.low, row.high, metric.digits)}`;
      line.append(element("td", size, { class: "num" }), element("td", pText(row.p_holm), { class: "num" }), verdict(row, metric));
    }
    const link = element("a", "records");
    link.href = viewerLink({ metric: metric.name, a, b, budget });
    line.lastChild.append(" ", link);
    return line;
  }));
  const family = [a, b].includes(data.baseline) ? "all comparisons with the baseline" : "all pairs of variants";
  at("pair-note").textContent = a === b ? "Choose two variants that differ."
    : untested === data.metrics.length ? "Nothing was tested here: the plain differences of the means stand there."
      : `p is corrected over ${family} in the same metric at this budget.`;
}

function pText(p) {
  if (p === null) return EMPTY;
  return p < 0.001 ? "< 0.001" : number(p, 3);
}

function verdict(row, metric) {
  const cell = element("td");
  if (row.p_holm !== null && row.p_holm < data.significant) {
    const better = row.difference > 0 === metric.higher_is_better;
    cell.append(element("span", better ? "▲ better" : "▼ worse", { class: better ? "better" : "worse" }));
  }
  return cell;
}
