// Learn: five answers of real runs, pass by pass, with a sentence for each.
"use strict";

PB.PACE = 2600; // milliseconds for a pass

PB.parts.learn = class {
  static title = "Learn";

  constructor() {
    const { el } = PB;
    this.tabs = el("div.lessons", { role: "tablist", "aria-label": "lessons" });
    this.title = el("h2");
    this.intro = el("p.intro");
    this.asked = el("p.faint");
    this.says = el("p.says", { "aria-live": "polite" });
    this.count = el("span.faint");
    this.play = el("button.play", { type: "button", "aria-label": "play", onclick: () => this._toggle() }, "▶");
    const step = (by, sign, name) => el("button.button", { type: "button", "aria-label": name, onclick: () => this._by(by) }, sign);
    const controls = el("div.steps", {}, step(-1, "←", "pass before"), this.play, step(1, "→", "next pass"), this.count);
    this.board = el("div.lanes.one");
    this.legend = PB.legend();
    const saying = el("div.card.saying", {}, this.says, controls);
    this.root = el(
      "section.learn",
      {},
      this.tabs,
      el("div.lesson", {}, el("div.telling", {}, this.title, this.intro, saying, this.asked, this.legend), this.board),
    );
    this.root.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by && !event.target.closest(".text")) this._by(by);
    });
  }

  async open(query) {
    if (!this.lessons) {
      const found = PB.data ? PB.data.lessons : await PB.get("/api/lessons");
      this.lessons = found.lessons;
      const tab = (lesson, i) => {
        const choose = () => this._choose(i, 0, true);
        return PB.el("button", { type: "button", role: "tab", onclick: choose }, PB.el("b", {}, `${i + 1}`), lesson.name);
      };
      this.tabs.replaceChildren(...this.lessons.map(tab));
    }
    const lesson = Math.min(this.lessons.length, Math.max(1, Number(query.get("lesson")) || 1)) - 1;
    const step = Number(query.get("step")) || 0;
    if (lesson !== this.lesson || (step && step !== this.step)) this._choose(lesson, step);
  }

  _choose(number, step = 0, plays = false) {
    this._pause();
    this.lesson = number;
    const lesson = this.lessons[number];
    [...this.tabs.children].forEach((tab, i) => tab.setAttribute("aria-selected", i === number));
    this.title.textContent = lesson.title;
    this.intro.textContent = lesson.intro;
    this.asked.textContent = `Asked: ${lesson.prompt}`;
    this.lane = new PB.Lane(lesson.answer, { alone: true });
    this.lane.add(lesson.answer.passes, false);
    this.lane.chances = lesson.answer.p;
    this.lane.answered(lesson.answer.wall, lesson.answer.prefill, lesson.answer.finish);
    this.lane.show(this.lane.passes.length);
    this.lane.ghosts(true);
    this.legend.replaceChildren(...PB.legend(this.lane.letters).children);
    this.board.replaceChildren(this.lane.root);
    this._go(step || 1);
    if (plays) this._toggle();
  }

  // `step` passes are there; the last of them is told of.
  _go(step) {
    const last = this.lane.passes.length;
    this.step = Math.min(Math.max(1, step), last);
    this.lane.at(this.step === last ? Infinity : this.lane.passes[this.step - 1].e);
    if (this.lane.chosen !== this.step - 1) this.lane.choose(this.step - 1);
    this.says.textContent = this.lessons[this.lesson].says[this.step - 1];
    this.count.textContent = `pass ${this.step - 1} of ${last - 1}`;
    PB.address.write("learn", { lesson: this.lesson + 1, step: this.step });
    return this.step < last;
  }

  _by(steps) {
    this._pause();
    this._go(this.step + steps);
  }

  _toggle() {
    if (this.timer) return this._pause();
    if (this.step >= this.lane.passes.length) this._go(1);
    this.play.textContent = "❚❚";
    this.timer = setInterval(() => {
      if (!this.root.isConnected || !this._go(this.step + 1)) this._pause();
    }, PB.PACE);
  }

  _pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "▶";
  }
};
