// The page: its tabs, and which of them the address names.
"use strict";

(async () => {
  const main = document.getElementById("main");
  const page = PB.data ? PB.data.page : await PB.get("/api/page");
  const made = {};
  const tabs = {};
  const nav = document.querySelector("nav");
  document.getElementById("where").textContent = page.where;

  const show = () => {
    const { part, query } = PB.address.read();
    const name = tabs[part] ? part : Object.keys(tabs)[0];
    made[name] ||= new PB.parts[name](page);
    for (const [each, tab] of Object.entries(tabs)) tab.setAttribute("aria-selected", each === name);
    if (main.firstChild !== made[name].root) {
      PB.tip.hide();
      main.replaceChildren(made[name].root);
    }
    made[name].open(query);
  };

  for (const [name, part] of Object.entries(PB.parts)) {
    if (!page.parts.includes(name)) continue;
    tabs[name] = PB.el("button", { type: "button", role: "tab", onclick: () => { location.hash = name; } }, part.title);
    nav.append(tabs[name]);
  }
  addEventListener("hashchange", show);
  addEventListener("keydown", (event) => event.key === "Escape" && PB.tip.hide());
  show();
})();
