// The page as a whole: its data, the leaderboard and the figures.

const data = JSON.parse(at("page-data").textContent);
const metrics = Object.fromEntries(data.metrics.map((metric) => [metric.name, metric]));
const variants = Object.keys(data.labels);

/** The leaderboard with its filter and its budget switch, which the figure follows. */
function startBoard(changed) {
  const table = at("board");
  const costs = [...table.tHead.rows[0].cells].flatMap((cell, index) => ("cost" in cell.dataset ? [index] : []));
  const numbers = [...table.tHead.rows[0].cells].map((_, index) => index).slice(1);
  const board = sortable(table, {
    layout: LAYOUT,
    columnDefs: [
      { targets: costs, type: "num", orderSequence: ["asc", "desc", ""] },
      { targets: numbers, type: "num", orderSequence: ["desc", "asc", ""] },
    ],
  });
  board.search.fixed("budget", (_text, _row, index) => board.row(index).node().dataset.budget === chosenBudget());
  at("filter").addEventListener("input", (event) => board.column(0).search(event.target.value).draw());
  at("budget").addEventListener("change", () => { board.draw(); changed(); });
  board.draw();
}

function chosenBudget() {
  return document.querySelector("#budget input:checked").value;
}

// Figures. Okabe and Ito's colours are told apart under every common colour blindness; symbols say the same.

const COLOURS = ["#2583C6", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#7F7F7F"];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star"];
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };

/** Plotly reads a little HTML in its texts; a label is not meant as such. */
function literal(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function look(variant) {
  const index = variants.indexOf(variant);
  const round = Math.floor(index / COLOURS.length);
  return { color: COLOURS[index % COLOURS.length], symbol: SYMBOLS[(index + round) % SYMBOLS.length] };
}

function layout(more) {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = ["--text", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: line, linecolor: line, zeroline: false, automargin: true };
  const narrow = window.innerWidth < 601;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { color: text, size: narrow ? 10 : 12, family: "system-ui, sans-serif" }, ...more,
    margin: { l: 46, r: 10, t: 6, b: narrow ? 30 : 42 },
    xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
  };
}

/** The range of the quality axis: not so narrow that a difference which is none looks large. */
function qualityAxis(metric, scores) {
  const ends = scores.flatMap(([mean, low, high]) => [mean, low ?? mean, high ?? mean]);
  let [low, high] = [Math.min(...ends), Math.max(...ends)];
  const span = Math.max((high - low) * 1.16, metric.span);
  const middle = (low + high) / 2;
  return {
    title: { text: literal(metric.unit + (metric.higher_is_better ? "" : ", lower is better")), standoff: 4 },
    range: [middle - span / 2, middle + span / 2],
  };
}

function hover(point, metric, cost) {
  const [mean, low, high] = point.scores[metric.name];
  const label = literal(data.labels[point.variant]);
  const paid = cost === undefined ? "" : `<br>${literal(data.costs[cost])}: ${point.costs[cost].toPrecision(3)}`;
  return `<b>${label}</b><br>${number(mean, metric.digits)} ${interval(low, high, metric.digits)}` +
    `<br>${literal(point.budget)}${paid}<extra></extra>`;
}

function errors([mean, low, high], color, width = 0) {
  const known = low !== null && low !== undefined;
  return { type: "data", symmetric: false, array: [known ? high - mean : 0], arrayminus: [known ? mean - low : 0],
    color, thickness: 1, width };
}

/** Quality against cost at the chosen budget. What costs nothing stands at 0, left of the logarithmic axis. */
function drawCost() {
  const metric = metrics[at("metric").value];
  const cost = at("cost-axis").value;
  const budget = chosenBudget();
  const shown = data.points.filter((point) =>
    point.budget === budget && point.scores[metric.name][0] !== null && point.costs[cost] !== null);
  const paid = shown.map((point) => point.costs[cost]).filter((value) => value > 0);
  const least = paid.length ? Math.min(...paid) : 1;
  const most = paid.length ? Math.max(...paid) : 1;
  const free = least / 4;
  const front = data.pareto[metric.name][budget]?.[cost] ?? [];
  const place = (point) => point.costs[cost] || free;
  at("pareto").textContent = front.length // before drawing: the figure takes the height that is left
    ? `Pareto set of the means: ${front.map((name) => data.labels[name]).join("; ")}. Nothing cheaper or as cheap is better.`
    : "";
  const step = front.map((name) => shown.find((point) => point.variant === name));
  const traces = [];
  if (step.length) {
    traces.push({
      x: [...step.map(place), most * 1.3], y: [...step, step.at(-1)].map((point) => point.scores[metric.name][0]),
      mode: "lines", line: { shape: "hv", color: "rgba(128,128,128,0.35)", width: 5 }, hoverinfo: "skip",
    });
  }
  for (const point of shown) {
    const best = front.includes(point.variant);
    const { color, symbol } = look(point.variant);
    const right = place(point) > Math.sqrt(free * most); // above and left of the front there is nothing
    traces.push({
      x: [place(point)], y: [point.scores[metric.name][0]], mode: best ? "markers+text" : "markers",
      text: [literal(data.labels[point.variant])], textposition: right ? "top left" : "bottom right", cliponaxis: false,
      marker: { color, symbol, size: best ? 11 : 9, opacity: best ? 1 : 0.85 },
      error_y: errors(point.scores[metric.name], color), hovertemplate: hover(point, metric, cost),
    });
  }
  const ticks = [];
  for (let power = Math.floor(Math.log10(least)); 10 ** power <= most * 1.5; power += 1) {
    for (const digit of most / least > 30 ? [1] : [1, 2, 5]) {
      const tick = digit * 10 ** power;
      if (tick >= least * 0.7 && tick <= most * 1.5) ticks.push(tick);
    }
  }
  const zero = paid.length < shown.length;
  Plotly.react("cost-plot", traces, layout({
    xaxis: {
      type: "log", title: { text: data.costs[cost], standoff: 4 }, tickvals: zero ? [free, ...ticks] : ticks,
      ticktext: [...(zero ? ["0"] : []), ...ticks.map((tick) => tick >= 1e5 ? tick.toExponential(0).replace("+", "") : String(tick))],
      range: [Math.log10(zero ? free * 0.75 : least * 0.75), Math.log10(most * 1.35)],
    },
    yaxis: qualityAxis(metric, shown.map((point) => point.scores[metric.name])),
    shapes: zero && paid.length
      ? [{ type: "line", x0: Math.sqrt(free * least), x1: Math.sqrt(free * least), y0: 0, y1: 1, yref: "paper",
        line: { dash: "dot", width: 1, color: "rgba(128,128,128,0.6)" } }]
      : [],
  }), CONFIG);
}

/** Quality against budget, a line for each variant. */
function drawBudgets() {
  if (!at("budget-plot")) return;
  const metric = metrics[at("metric").value];
  const shown = data.points.filter((point) => point.scores[metric.name][0] !== null);
  const traces = variants.map((variant, index) => {
    const { color, symbol } = look(variant);
    const points = shown.filter((point) => point.variant === variant);
    const shift = 0.3 * (index / Math.max(variants.length - 1, 1) - 0.5); // side by side, so that intervals stay apart
    const bars = points.map((point) => errors(point.scores[metric.name], color));
    return {
      x: points.map((point) => data.budgets.indexOf(point.budget) + shift),
      y: points.map((point) => point.scores[metric.name][0]), name: literal(data.labels[variant]),
      mode: "lines+markers", marker: { color, symbol, size: 8 }, line: { color, width: 1.3 },
      error_y: { ...errors([0, null, null], color), array: bars.flatMap((bar) => bar.array), arrayminus: bars.flatMap((bar) => bar.arrayminus) },
      hovertemplate: points.map((point) => hover(point, metric)),
    };
  });
  const narrow = window.innerWidth < 601;
  Plotly.react("budget-plot", traces, layout({
    showlegend: true, legend: narrow ? { orientation: "h", y: -0.15 } : {}, title: undefined,
    xaxis: { tickvals: data.budgets.map((_, index) => index), ticktext: data.budgets.map(literal), range: [-0.4, data.budgets.length - 0.6] },
    yaxis: { ...qualityAxis(metric, shown.map((point) => point.scores[metric.name])), title: { text: literal(`${metric.title}, ${metric.unit}`) } },
  }), CONFIG);
}

function startFigures() {
  if (!data.metrics.length) {
    at("pareto").textContent = "Nothing is measured yet.";
    return;
  }
  options(at("metric"), data.metrics.map((metric) => [metric.name, metric.title]));
  options(at("cost-axis"), Object.entries(data.costs));
  const draw = () => { drawCost(); drawBudgets(); };
  for (const id of ["metric", "cost-axis"]) at(id).addEventListener("change", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}

async function start() {
  if (data.served) startLive();
  startCompare();
  startViewer();
  await library("datatables");
  startBoard(() => { if (data.metrics.length) drawCost(); followBudget(chosenBudget()); });
  startTables();
  await library("plotly");
  startFigures();
  await show();
  if (data.served) restore();
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
  document.documentElement.dataset.ready = "yes";
}

addEventListener("DOMContentLoaded", start);
