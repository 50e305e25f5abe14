// Results: every run below the folder; what one folder's runs say by category; a question's answers side by side.
"use strict";

PB.COLUMNS = [
  // key, title, of the row or its figures, how it is shown, whether a large value comes first
  ["method", "method", (row) => row.run, (row) => row.run],
  ["folder", "folder", (row) => row.folder, (row) => row.folder],
  ["questions", "questions", (row) => row.questions ?? 0, (row) => row.questions ?? "–", true],
  ["speedup", "speedup", (row) => row.speedup ?? 0, (row) => PB.speedup(row), true],
  ["mat", "MAT", (row) => row.mat ?? 0, (row) => PB.number(row.mat, 2), true],
  ["accepted", "accepted", (row) => row.acceptance_rate ?? 0, (row) => PB.share(row.acceptance_rate), true],
  ["speed", "tokens/s", (row) => row.speed ?? 0, (row) => PB.number(row.speed, 1), true],
  ["identical", "identical", (row) => (row.identical ? row.identical[0] / row.identical[1] : -1), (row) => PB.identical(row), true],
  ["dtype", "dtype", (row) => row.dtype, (row) => row.dtype],
  ["sampling", "sampling", (row) => row.sampling, (row) => row.sampling],
  ["created", "date", (row) => row.created, (row) => row.created, true],
];
PB.MOST_ROWS = 150;

PB.speedup = (row) => {
  if (!row.speedup) return "–";
  const tone = !row.significant ? "faint" : row.speedup > 1 ? "good" : "bad";
  return PB.el("span", { class: tone, title: PB.interval(row) }, `${row.speedup.toFixed(2)}x`);
};

PB.share = (value) => (value ? `${Math.round(100 * value)}%` : "–");

PB.identical = (row) => {
  if (!row.identical) return "–";
  const [same, all] = row.identical;
  return PB.el("span", { class: same === all ? "good" : "faint" }, `${same}/${all}`);
};

PB.parts.results = class {
  static title = "Results";

  constructor(page) {
    const { el } = PB;
    this.page = page;
    this.rows = [];
    this.figures = {};
    this.marked = [];
    this.order = ["folder", 1];
    this.filter = el("input", {
      type: "search",
      placeholder: "filter: words of method, folder, pair, benchmark",
      "aria-label": "filter",
      oninput: () => this._table(),
    });
    this.notice = el("p.notice", { role: "status" }, "Reading the run headers …");
    this.compareButton = el("button.button", { type: "button", disabled: true, onclick: () => this._compare() }, "Compare two");
    this.table = el("div.wide");
    this.comparison = el("div.comparison.card", { hidden: true });
    this.leaf = new PB.Leaf(page, () => this._remember());
    this.root = el(
      "section.results",
      {},
      el("div.bar-row", {}, this.filter, this.compareButton, this.notice),
      this.table,
      this.comparison,
      this.leaf.root,
    );
  }

  async open(query) {
    if (this.opened && !query.size) return this._remember();
    this.opened = true;
    this.filter.value = query.get("filter") || "";
    try {
      const found = PB.data ? PB.data.runs : await PB.get("/api/runs");
      this.rows = found.rows;
      this.folder = found.folder;
    } catch (error) {
      this._tell(error.message, true);
      return;
    }
    this._table();
    const folder = query.get("folder") || (PB.data ? this.rows[0]?.folder : "");
    if (folder) this.leaf.open(folder, this.rows.filter((row) => row.folder === folder), query.get("question"));
    await this._fill();
  }

  _tell(text, wrong = false) {
    this.notice.textContent = text;
    this.notice.classList.toggle("error", wrong);
  }

  _remember() {
    PB.address.write("results", { filter: this.filter.value, folder: this.leaf.folder || "", question: this.leaf.chosen ?? "" });
  }

  // Figures of the folders whose rows are seen, one folder after the other.
  async _fill() {
    if (this.filling) return;
    this.filling = true;
    for (let next = this._unread(); next !== undefined; next = this._unread()) {
      try {
        const found = PB.data ? PB.data.figures[next] : await PB.get(`/api/figures?folder=${encodeURIComponent(next)}`);
        this.figures[next] = found.runs;
      } catch (error) {
        this.figures[next] = {};
        this._tell(error.message, true);
      }
      this._table();
    }
    this.filling = false;
  }

  _unread() {
    if (!this.root.isConnected) return undefined;
    return this._seen().map((row) => row.folder).find((folder) => !(folder in this.figures));
  }

  _seen() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (row) => [row.run, row.folder, row.pair, row.benchmark, row.dtype, row.sampling, row.options, row.machine].join(" ").toLowerCase();
    const full = this.rows.filter((row) => words.every((word) => text(row).includes(word)));
    this.count = full.length;
    const [key, direction] = this.order;
    const column = PB.COLUMNS.find(([name]) => name === key);
    const known = full.map((row) => ({ ...row, ...(this.figures[row.folder] || {})[row.run] }));
    const value = (row) => column[2](row) ?? "";
    known.sort((a, b) => direction * (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : 0));
    return known.slice(0, PB.MOST_ROWS);
  }

  _table() {
    const { el } = PB;
    const seen = this._seen();
    const [key, direction] = this.order;
    const heads = PB.COLUMNS.map(([name, title, , , largest]) => {
      const sign = name === key ? (direction > 0 ? " ↑" : " ↓") : "";
      const turn = () => {
        this.order = [name, name === key ? -direction : largest ? -1 : 1];
        this._table();
        this._fill();
      };
      const sorted = sign ? (direction > 0 ? "ascending" : "descending") : "none";
      return el("th", { scope: "col", "aria-sort": sorted }, el("button", { type: "button", onclick: turn }, title + sign));
    });
    const head = el("thead", {}, el("tr", {}, el("th", { title: "choose two to compare" }, "⇄"), ...heads));
    this.table.replaceChildren(el("table", {}, head, el("tbody", {}, ...seen.map((row) => this._row(row)))));
    const more = this.count > seen.length ? `, the first ${seen.length} of them shown` : "";
    this._tell(`${this.count} of ${this.rows.length} runs below ${this.folder}${more}`);
    if (this.opened) this._remember();
    if (!this.filling && this.opened) this._fill();
  }

  _row(row) {
    const { el } = PB;
    const id = `${row.folder}/${row.run}`;
    const mark = el("input", { type: "checkbox", "aria-label": `compare ${id}`, onchange: () => this._mark(row, mark) });
    mark.checked = this.marked.some((each) => each.folder === row.folder && each.run === row.run);
    const open = () => this.leaf.open(row.folder, this.rows.filter((each) => each.folder === row.folder));
    if (row.error) return el("tr.error", {}, el("td"), el("td", { colspan: PB.COLUMNS.length }, row.error));
    const cells = PB.COLUMNS.map(([name, , , show, number]) => {
      const shown = show(row);
      if (name === "method") return el("th", { scope: "row" }, el("button.link", { type: "button", onclick: open, title: row.options }, shown));
      return el(number && name !== "created" ? "td.n" : "td", {}, shown ?? "–");
    });
    return el("tr", { "data-run": id }, el("td", {}, mark), ...cells);
  }

  _mark(row, box) {
    this.marked = this.marked.filter((each) => each.folder !== row.folder || each.run !== row.run);
    if (box.checked) this.marked = [...this.marked, row].slice(-2);
    this.compareButton.disabled = this.marked.length !== 2 || !!PB.data;
    this._table();
  }

  async _compare() {
    const [one, other] = this.marked;
    const query = new URLSearchParams({ folder: one.folder, run: one.run, other_folder: other.folder, other_run: other.run });
    const { el } = PB;
    this.comparison.hidden = false;
    this.comparison.replaceChildren(el("p.notice", {}, "Comparing …"));
    try {
      const told = await PB.get(`/api/compare?${query}`);
      const words = told.speed && `${other.run} is ${told.speed.speedup.toFixed(2)}x as fast as ${one.run}`;
      const speed = told.speed
        ? el("p.headline", {}, el("b", {}, words), ` (${PB.interval(told.speed)})`)
        : el("p.notice", {}, `No speedup: ${told.error}`);
      const turns = (turn) => (turn ? `, turn ${turn + 1}` : "");
      const parted = told.parted
        .slice(0, 20)
        .map(([question, turn, place]) => `question ${question}${turns(turn)}: at token ${place + 1}`);
      this.comparison.replaceChildren(
        el("h2", {}, `${one.folder}/${one.run}`, el("br"), `and ${other.folder}/${other.run}`),
        speed,
        el("p", {}, told.equal),
        ...parted.map((text) => el("p.faint", {}, text)),
        ...told.notes.map((note) => el("p.faint", {}, `note: ${note}`)),
      );
    } catch (error) {
      this.comparison.replaceChildren(el("p.error", {}, error.message));
    }
  }
};
