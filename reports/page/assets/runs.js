// The first page of several runs: one table of all leaderboards, and a new page when a run has new records.

const versions = JSON.parse(at("page-data").textContent);

async function look() {
  try {
    for (const [run, version] of Object.entries(versions)) {
      const found = await (await fetch(`/run/${run}/state`)).json();
      at(`state-${run}`).textContent = found.problem ?? found.error ?? `${found.over} of ${found.planned} cells over`;
      if (found.version && found.version !== version) location.reload();
    }
  } catch { /* the server is gone; what is shown stays */ }
  setTimeout(look, 5000);
}

addEventListener("DOMContentLoaded", async () => {
  await library("datatables");
  startTables();
  look();
  document.documentElement.dataset.ready = "yes";
});
