// A page that came from `dspa-bench view`: how far its run is, and a new page when there are new records.

const EVERY = 2000; // milliseconds between two looks
const KEPT = "view"; // what the reader had chosen, over a reload
let reloading = false;

/** A document of this page's run; null, and a new page, where the server has a newer one than this. */
async function fromServer(what, asked = {}) {
  const query = new URLSearchParams({ ...asked, version: data.served.version });
  const reply = await fetch(`/run/${data.served.run}/${what}?${query}`);
  if (!reply.ok) throw new Error(`${what}: ${reply.status}`);
  const found = await reply.json();
  if (found.stale) renew();
  return found.stale ? null : found;
}

/** Look how far the run is, now and every two seconds. */
async function startLive() {
  try {
    const found = await fromServer("state");
    tell(found);
    if (found.version && found.version !== data.served.version && at("follow").checked) renew();
  } catch {
    at("live-text").textContent = "The server does not answer: start dspa-bench view again.";
  }
  setTimeout(startLive, EVERY);
}

function tell(found) {
  const text = found.error ?? found.problem;
  if (text) {
    at("live-text").textContent = `The run folder cannot be read now: ${text}`;
    return;
  }
  const going = found.over < found.planned;
  const failed = found.failed ? `, ${found.failed} failed` : "";
  const quiet = found.quiet === null ? "" : ` The run last wrote something ${ago(found.quiet)} ago.`;
  const count = `${found.over} of ${found.planned} cells over${failed}`;
  at("live-text").textContent = going ? `${count}.${quiet}` : `Complete: ${count}.`;
  at("live-follow").hidden = !going;
  at("live-work").replaceChildren(...found.working.map(({ cell, done }) => element("li", `${cell}: ${done}`)));
}

function ago(seconds) {
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

/** The newest page, with what was chosen and opened in this one. */
function renew() {
  if (reloading) return;
  reloading = true;
  const fields = [...document.querySelectorAll("select[id], input[type=search][id]")].map(({ id, value }) => [id, value]);
  const folds = [...document.querySelectorAll("details")].map((fold) => fold.open);
  sessionStorage.setItem(KEPT, JSON.stringify({ fields, folds, budget: chosenBudget(), scroll: scrollY, run: data.served.run }));
  location.reload();
}

/** What `renew` kept, once the page is there. */
function restore() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  sessionStorage.removeItem(KEPT);
  if (kept?.run !== data.served.run) return;
  const budget = [...document.querySelectorAll("#budget input")].find((input) => input.value === kept.budget);
  if (budget) {
    budget.checked = true;
    at("budget").dispatchEvent(new Event("change"));
  }
  for (const [id, value] of kept.fields) {
    const select = at(id);
    if (select?.tagName === "INPUT") {
      select.value = value;
      select.dispatchEvent(new Event("input"));
    } else if (id.startsWith("v-")) select.dataset.wanted = value; // the viewer's choices depend on each other
    else if ([...(select?.options ?? [])].some((option) => option.value === value)) {
      select.value = value;
      select.dispatchEvent(new Event("change"));
    }
  }
  const folds = [...document.querySelectorAll("details")];
  if (folds.length === kept.folds.length) folds.forEach((fold, index) => { fold.open = kept.folds[index]; });
  show().then(() => scrollTo(0, kept.scroll));
}
