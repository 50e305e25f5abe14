"use strict";
// Tables sort by a click on a head: up, down, as they were. A field above a long one shows the rows that hold its text.
const number = (cell) => {
  const found = cell.textContent.replaceAll(",", "").match(/^\s*[-+]?\d+(\.\d+)?/);
  return found ? Number(found[0]) : null;
};
const compare = (one, other) => {
  const [a, b] = [number(one), number(other)];
  if (a !== null && b !== null) return a - b;
  if (a !== null || b !== null) return a !== null ? -1 : 1;
  return one.textContent.localeCompare(other.textContent);
};
for (const table of document.querySelectorAll(".wide > table")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  if (rows.length < 2) continue;
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort || "none"];
      heads.forEach((each) => { each.ariaSort = "none"; });
      head.ariaSort = next;
      const sign = next === "descending" ? -1 : 1;
      const order = [...rows];
      if (next !== "none") order.sort((a, b) => sign * compare(a.cells[column], b.cells[column]));
      body.append(...order);
    });
  });
  if (rows.length < 6) continue;
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "rows with ...";
  field.ariaLabel = "show the rows of the table below that hold this text";
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    rows.forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
  });
  table.parentElement.before(field);
}
