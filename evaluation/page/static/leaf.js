// What the runs of one folder say: speedups by category as a heat map, and a question's answers side by side.
"use strict";

PB.Leaf = class {
  constructor(page, changed) {
    const { el } = PB;
    this.page = page;
    this.changed = changed;
    this.title = el("h2");
    this.conditions = el("p.faint");
    this.heat = el("div.wide");
    this.question = el("select", { "aria-label": "question", onchange: () => this._show() });
    this.asked = el("pre.asked", { hidden: true });
    this.turns = el("div.chips");
    this.board = el("div.lanes");
    this.player = new PB.Player();
    this.legend = PB.legend();
    this.notice = el("p.notice", { role: "status" });
    this.root = el(
      "div.leaf",
      { hidden: true },
      this.title,
      this.conditions,
      this.heat,
      el("div.bar-row", {}, el("label", {}, "answers to", this.question), this.turns, this.legend),
      this.notice,
      this.asked,
      this.board,
      this.player.root,
    );
  }

  async open(folder, rows, question) {
    this.folder = folder;
    this.root.hidden = false;
    this.player.hide();
    this.board.replaceChildren();
    this.heat.replaceChildren();
    this.title.textContent = folder;
    const row = rows[0] || {};
    const threads = `${row.threads} thread${row.threads === 1 ? "" : "s"}`;
    const told = [row.pair, row.benchmark, row.dtype, row.sampling, threads, row.machine, row.created];
    this.conditions.textContent = told.filter(Boolean).join(" · ");
    this.notice.textContent = "Reading the answers …";
    try {
      const found = PB.data ? PB.data.figures[folder] : await PB.get(`/api/figures?folder=${encodeURIComponent(folder)}`);
      if (this.folder !== folder) return;
      this._heat(found.runs);
      this.questions = found.questions;
      const options = found.questions.map((each, i) => PB.el("option", { value: i }, `${each.id} · ${each.category}`));
      this.question.replaceChildren(...options);
      const wanted = found.questions.findIndex((each) => String(each.id) === question);
      this.question.value = String(Math.max(0, wanted));
      await this._show();
      if (!question) this.root.scrollIntoView({ behavior: "smooth", block: "start" });
    } catch (error) {
      this.notice.textContent = error.message;
    }
  }

  // Methods by categories, coloured by speedup; the last column is overall.
  _heat(runs) {
    const { el } = PB;
    const measured = Object.entries(runs).filter(([, run]) => run.speedup);
    const categories = [...new Set(measured.flatMap(([, run]) => Object.keys(run.categories)))];
    if (!measured.length) return;
    const cell = (figures) => {
      const made = el("td.heat", {}, figures ? `${figures.speedup.toFixed(2)}x` : "–");
      if (!figures) return made;
      const strength = Math.min(1, Math.abs(Math.log2(figures.speedup)) / 1.2);
      made.style.setProperty("--strength", `${Math.round(55 * strength)}%`);
      made.classList.add(figures.speedup >= 1 ? "faster" : "slower");
      if (!figures.significant) made.classList.add("unsure");
      made.title = PB.interval(figures);
      return made;
    };
    const head = [...categories, "overall"].map((name) => el("th", { scope: "col" }, name.replaceAll("_", " ")));
    const rows = measured
      .sort(([, a], [, b]) => b.speedup - a.speedup)
      .map(([name, run]) => el("tr", {}, el("th", { scope: "row" }, name), ...categories.map((each) => cell(run.categories[each])), cell(run)));
    const caption = el("caption", {}, "speedup over the baseline; pale where not significant");
    const heads = el("thead", {}, el("tr", {}, el("th"), ...head));
    this.heat.replaceChildren(el("table.heatmap", {}, caption, heads, el("tbody", {}, ...rows)));
  }

  async _show() {
    const question = this.questions[Number(this.question.value)];
    if (!question) return;
    this.chosen = question.id;
    this.changed();
    this.notice.textContent = "";
    const folder = this.folder;
    const wanted = () => this.folder === folder && this.chosen === question.id; // another may be chosen meanwhile
    try {
      const key = JSON.stringify(question.id);
      const found = PB.data
        ? PB.data.answers[this.folder]?.[key]
        : await PB.get(`/api/answers?${new URLSearchParams({ folder: this.folder, question: key })}`);
      if (!found) throw new Error("This page holds no answers to that question: it would be too large.");
      if (wanted()) this._turns(found);
    } catch (error) {
      if (!wanted()) return;
      this.board.replaceChildren();
      this.player.hide();
      this.notice.textContent = error.message;
    }
  }

  _turns(found) {
    const show = (turn) => {
      [...this.turns.children].forEach((button, i) => button.classList.toggle("on", i === turn));
      this.asked.hidden = !found.turns[turn];
      this.asked.textContent = found.turns[turn] || "";
      this._lanes(found.answers[turn]);
    };
    const buttons = found.answers.map((_, turn) => PB.el("button", { type: "button", onclick: () => show(turn) }, `turn ${turn + 1}`));
    this.turns.replaceChildren(...(buttons.length > 1 ? buttons : []));
    show(0);
  }

  _lanes(answers) {
    const lanes = [];
    for (const answer of answers) {
      const lane = new PB.Lane(answer, { first: lanes[0], exact: answer.exact });
      if (answer.text !== undefined) lane.plain(answer.text);
      else lane.add(answer.passes);
      lane.answered(answer.wall, answer.prefill, answer.finish);
      lanes.push(lane);
    }
    const letters = new Set(lanes.flatMap((lane) => lane.letters));
    this.legend.replaceChildren(...PB.legend(Object.keys(PB.ORIGINS).filter((letter) => letters.has(letter))).children);
    const untimed = answers.some((answer) => !answer.timed);
    this.notice.textContent = untimed ? "These files do not record when each pass ended: passes are spread evenly over the answer." : "";
    this.board.replaceChildren(...lanes.map((lane) => lane.root));
    this.player.load(lanes.filter((lane) => lane.passes.length));
  }
};
