"use strict";
// What every page here needs: elements, numbers as people write them, packed libraries, tables that sort.

const at = (id) => document.getElementById(id);
const EMPTY = "–";

/** Text that was packed as gzip and base64. */
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

/** Run a library of the page. The policy lets it run by the hash of its text. */
async function library(id) {
  const script = document.createElement("script");
  script.textContent = await unpacked(at(id).textContent);
  document.head.append(script);
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
}

/** Rounded as in report.md: by the exact value, and what lies in the middle to the even neighbour, as Python does. */
function number(value, digits, signed = false) {
  if (value === null || value === undefined) return EMPTY;
  const size = Math.abs(value);
  const inTheMiddle = /^50*$/.test(size.toFixed(100).split(".")[1].slice(digits));
  const how = { minimumFractionDigits: digits, maximumFractionDigits: digits, roundingMode: "halfEven" };
  const text = (inTheMiddle ? size : Number(size.toFixed(digits))).toLocaleString("en", how);
  return (value < 0 ? "-" : signed ? "+" : "") + text;
}

function interval(low, high, digits) {
  return low === null || low === undefined ? "" : `[${number(low, digits)}, ${number(high, digits)}]`;
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const LAYOUT = { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null };
const SEARCHED = 15; // a table with more rows has a search field

function sortable(table, more = {}) {
  const searched = table.tBodies[0].rows.length > SEARCHED && !more.layout;
  const made = new DataTable(table, {
    paging: false, info: false, autoWidth: false, order: [], orderMulti: false,
    layout: { ...LAYOUT, topEnd: searched ? "search" : null },
    columnDefs: [...table.tHead.rows[0].cells].flatMap((cell, index) =>
      cell.classList.contains("num") ? [{ targets: index, type: "num", orderSequence: ["desc", "asc", ""] }] : []),
    ...more,
  });
  table.classList.add("sortable");
  return made;
}

/** Every other table; one that is folded away when it is opened, for some have thousands of rows. */
function startTables() {
  for (const table of document.querySelectorAll("table.grid")) {
    const fold = table.closest("details:not([open])");
    if (fold) fold.addEventListener("toggle", () => sortable(table), { once: true });
    else sortable(table);
  }
}
