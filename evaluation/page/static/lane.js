// A lane: one method's answer, pass by pass, as far as the clock has come.
"use strict";

// In the order of the legend. Each has a colour and a line of its own.
PB.ORIGINS = {
  p: ["prefill", "decided by the pass that read the prompt"],
  k: ["kept draft", "drafted, and kept by the target"],
  b: ["pre-verified", "a kept draft that was judged while the rest of its window was still being drafted"],
  a: ["post-verified", "a kept draft that was judged while the next window was being drafted"],
  c: ["correction", "the target's own token, of a pass that rejected drafts"],
  o: ["target's own", "the target's own token, of a pass that rejected none"],
};
PB.PHASES = {
  wait: "waits for its turn",
  load: "loading",
  "warm-up": "warming up",
  prefill: "reading the prompt",
  decode: "decoding",
};

PB.Lane = class {
  // about: {name, about, loop}; options: {first: the lane to compare with, exact: whether ids must agree,
  // alone: there is none to compare with, and speed is not the point}.
  constructor(about, options = {}) {
    this.about = about;
    this.first = options.first || this;
    this.exact = options.exact !== false;
    this.alone = options.alone || false;
    this.passes = [];
    this.tokens = []; // {id, text, origin, pass, place, span}
    this.ends = []; // tokens behind each pass
    this.shown = 0; // passes
    this.phase = "wait";
    this.wall = null;
    this.chances = null;
    this.chosen = null; // a pass whose details are shown
    this._build();
  }

  _build() {
    const { el } = PB;
    this.status = el("span.status", {}, PB.PHASES.wait);
    this.speed = el("b", {}, "–");
    this.times = el("b", {}, "–");
    this.count = el("b", {}, "–");
    this.passed = el("b", {}, "–");
    this.mat = el("b", {}, "–");
    this.accepted = el("b", {}, "–");
    this.equal = el("p.equal", {}, " ");
    this.strip = el("div.strip", { "aria-label": "passes, as high as the tokens that each decided" });
    this.text = el("div.text", { tabindex: 0, role: "log", "aria-label": `answer of ${this.about.name}` });
    this.details = new PB.Details(this);
    const figure = (value, unit, title) => el("div.figure", { title }, value, el("span", {}, unit));
    this.root = el(
      "article.lane",
      { "data-lane": this.about.name },
      el("header", {}, el("h3", {}, this.about.name), this.status),
      el("p.about", {}, this.about.about || ""),
      el(
        "div.figures",
        {},
        this.alone
          ? figure(this.count, "tokens", "decided so far")
          : figure(this.speed, "tokens/s", "new tokens over wall time, prefill included"),
        this.alone
          ? figure(this.passed, "passes", "of the target, the prefill among them")
          : figure(this.times, "x the first", "tokens per second over the first column's"),
        figure(this.mat, "MAT", "mean accept length: new tokens per target pass"),
        figure(this.accepted, "accepted", "drafted tokens that the target kept, of those that it judged"),
      ),
      this.alone ? null : this.equal,
      this.strip,
      this.text,
      this.details.root,
    );
    this._listen();
  }

  _listen() {
    const find = (event) => event.target.closest("[data-i]");
    this.text.addEventListener("pointerover", (event) => {
      const span = find(event);
      if (span) this._tell(this.tokens[Number(span.dataset.i)]);
    });
    this.text.addEventListener("pointerleave", PB.tip.hide);
    this.text.addEventListener("click", (event) => {
      const span = find(event);
      if (span) this.choose(this.tokens[Number(span.dataset.i)].pass);
    });
    this.strip.addEventListener("pointerover", (event) => {
      const bar = event.target.closest("[data-pass]");
      if (bar) this._tellPass(Number(bar.dataset.pass), bar);
    });
    this.strip.addEventListener("pointerleave", PB.tip.hide);
    this.strip.addEventListener("click", (event) => {
      const bar = event.target.closest("[data-pass]");
      if (bar) this.choose(Number(bar.dataset.pass));
    });
    this.text.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || !this.passes.length) return;
      event.preventDefault();
      this.choose(Math.min(this.passes.length - 1, Math.max(0, (this.chosen ?? -1) + by)));
    });
  }

  _tell(token) {
    const { row } = PB;
    const pass = this.passes[token.pass];
    const p = this.chances && this.chances[token.index];
    const place = token.pass === 0 ? "" : pass.d ? `${token.place + 1} of ${pass.d} drafted` : "nothing drafted";
    const head = PB.el("div.row.head", {}, PB.el(`span.key.o-${token.origin}`, {}, PB.visible(token.text)));
    head.append(PB.el("b", {}, PB.ORIGINS[token.origin][0]));
    const rows = [head, row("token", `${token.index + 1}, id ${token.id}`), row("pass", String(token.pass))];
    if (place) rows.push(row("place in window", token.place < pass.a ? place : `behind ${pass.a} kept of ${pass.d}`));
    if (p !== null && p !== undefined) rows.push(row("target's p", p < 0.0005 ? "< 0.001" : p.toFixed(3)));
    rows.push(row("came after", PB.seconds(pass.e)));
    PB.tip.show(token.span, rows);
  }

  _tellPass(number, bar) {
    const pass = this.passes[number];
    const took = pass.e - (number ? this.passes[number - 1].e : 0);
    const { row } = PB;
    PB.tip.show(bar, [
      row(number ? `pass ${number}` : "prefill", `${pass.t.length} token${pass.t.length === 1 ? "" : "s"}`),
      row("kept of drafted", `${pass.a} of ${pass.d}`),
      row("rows scored", String(pass.n)),
      row("took", PB.seconds(took)),
    ]);
  }

  setPhase(name) {
    this.phase = name;
    this.status.textContent = PB.PHASES[name] || name;
    this.root.dataset.phase = name;
  }

  // Passes that have come. Live ones are shown at once.
  add(passes, live = true) {
    for (const pass of passes) {
      const number = this.passes.push(pass) - 1;
      this.strip.append(this._bar(pass, number));
      pass.t.forEach(([id, text, origin], place) => this._token(id, text, origin, number, place));
      this.ends.push(this.tokens.length);
    }
    const highest = Math.max(1, ...this.passes.map((pass) => pass.t.length));
    this.strip.style.setProperty("--most", highest);
    if (live) this.show(this.passes.length);
  }

  _token(id, text, origin, pass, place) {
    const index = this.tokens.length;
    const shown = text === "" ? "" : text;
    const span = PB.el(`span.t.o-${origin}`, { "data-i": index, "data-id": id, "data-o": origin }, shown);
    if (text.startsWith("<|")) span.classList.add("special");
    this.tokens.push({ id, text, origin, pass, place, index, span });
    this.text.append(span);
  }

  _bar(pass, number) {
    const bar = PB.el("div.bar", { "data-pass": number });
    const counts = {};
    for (const [, , origin] of pass.t) counts[origin] = (counts[origin] || 0) + 1;
    for (const [origin, count] of Object.entries(counts).reverse()) {
      const part = PB.el(`i.f-${origin}`);
      part.style.setProperty("--n", count); // by the object model: the page's policy allows no style in attributes
      bar.append(part);
    }
    return bar;
  }

  answered(wall, prefill, finish, settled = {}) {
    Object.assign(this, { wall, prefill, finish, settled });
    this.setPhase("done");
    const ends = { eos: "complete", length: "at its limit", context: "context full", stopped: "stopped" };
    const chosen = Object.entries(settled || {}).map(([name, value]) => `${name} ${value}`);
    this.status.textContent = [ends[finish] || finish, ...chosen].join(" · ");
    this.figures();
  }

  // An answer of which only the text is known.
  plain(text) {
    this.text.append(PB.el("span.plain", {}, text));
  }

  refused(sentence) {
    this.setPhase("refused");
    this.status.textContent = "cannot run";
    this.text.append(PB.el("p.error", {}, sentence));
  }

  // The origins that occur.
  get letters() {
    return Object.keys(PB.ORIGINS).filter((letter) => this.tokens.some((token) => token.origin === letter));
  }

  // The seconds that its answer took, as far as it has come.
  get seconds() {
    return this.wall ?? (this.passes.length ? this.passes.at(-1).e : 0);
  }

  // As far as a clock has come.
  at(time) {
    let low = 0;
    let high = this.passes.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.passes[middle].e <= time + 1e-9) low = middle + 1;
      else high = middle;
    }
    this.show(low);
    this.details.at(time);
  }

  // The first `count` passes are there, the others are still to come.
  show(count) {
    const [from, to] = [Math.min(count, this.shown), Math.max(count, this.shown)];
    for (let pass = from; pass < to; pass++) {
      const gone = pass >= count;
      this.strip.children[pass].classList.toggle("later", gone);
      const begin = pass ? this.ends[pass - 1] : 0;
      for (let i = begin; i < this.ends[pass]; i++) {
        this.tokens[i].span.classList.toggle("later", gone);
        if (this.tokens[i].ghost) this.tokens[i].ghost.classList.toggle("later", gone);
      }
    }
    this.shown = count;
    this._follow();
    this.figures();
    this.details.changed();
  }

  _follow() {
    const last = this.tokens[(this.ends[this.shown - 1] ?? 0) - 1];
    if (!last || this.text.matches(":hover, :focus")) return;
    const behind = last.span.offsetTop - this.text.offsetTop - this.text.clientHeight + 28;
    this.text.scrollTop = Math.max(0, behind);
  }

  // Tokens, passes, seconds and drafts as far as shown.
  sums() {
    const tokens = this.ends[this.shown - 1] ?? 0;
    const passes = this.passes.slice(0, this.shown);
    const total = (key) => passes.reduce((sum, pass) => sum + pass[key], 0);
    const whole = this.shown === this.passes.length && this.wall;
    const seconds = whole || (this.shown ? passes[this.shown - 1].e : 0);
    return { tokens, passes: this.shown, seconds, drafted: total("d"), accepted: total("a") };
  }

  figures() {
    const ours = this.sums();
    const first = this.first.sums();
    const speed = ours.seconds ? ours.tokens / ours.seconds : NaN;
    this.speed.textContent = PB.number(speed, 1);
    this.count.textContent = ours.tokens;
    this.passed.textContent = ours.passes;
    const compared = this.first !== this && first.seconds ? speed / (first.tokens / first.seconds) : NaN;
    this.times.textContent = this.first === this ? "1.00x" : PB.number(compared, 2, "x");
    this.times.classList.toggle("more", compared > 1);
    this.mat.textContent = PB.number(ours.passes ? ours.tokens / ours.passes : NaN, 2);
    this.accepted.textContent = ours.drafted ? `${Math.round((100 * ours.accepted) / ours.drafted)}%` : "–";
    this._compare(ours.tokens, first.tokens);
  }

  _compare(ours, theirs) {
    if (this.first === this || !ours) {
      this.equal.textContent = this.first === this && ours ? "the first column" : " ";
      return;
    }
    const common = Math.min(ours, theirs);
    const [mine, other] = [this.tokens, this.first.tokens];
    let same = 0;
    while (same < common && mine[same].id === other[same].id) same++;
    const done = this.wall !== null && this.first.wall !== null && this.finish !== "stopped";
    const cut = done && ours === mine.length && theirs === other.length && ours !== theirs;
    const parts = same < common || cut;
    this.equal.className = `equal ${parts ? (this.exact ? "bad" : "faint") : "good"}`;
    this.equal.textContent = parts
      ? `parts from the first column at token ${same + 1}${this.exact ? "" : " (need not be identical)"}`
      : done && ours === mine.length && theirs === other.length
        ? `identical: all ${ours} tokens`
        : `identical so far: ${same} tokens`;
    for (const token of this.text.querySelectorAll(".parts")) token.classList.remove("parts");
    if (parts && mine[same]) mine[same].span.classList.add("parts");
  }

  choose(pass) {
    this.chosen = this.chosen === pass ? null : pass;
    for (const each of this.root.querySelectorAll(".chosen")) each.classList.remove("chosen");
    if (this.chosen !== null) {
      this.strip.children[pass].classList.add("chosen");
      const begin = pass ? this.ends[pass - 1] : 0;
      for (let i = begin; i < this.ends[pass]; i++) this.tokens[i].span.classList.add("chosen");
    }
    this.details.changed();
  }

  // Rejected drafts, in the place where they were rejected.
  ghosts(wanted) {
    for (const ghost of this.text.querySelectorAll(".ghost")) ghost.remove();
    if (!wanted) return;
    this.passes.forEach((pass, number) => {
      if (!pass.g) return;
      const kept = new Set(pass.g.k);
      const words = pass.g.x.filter((_, node) => !kept.has(node + 1));
      const last = this.tokens[this.ends[number] - 1];
      if (!words.length || !last) return;
      const title = `rejected in pass ${number}`;
      const shown = pass.g.p ? `✗${words.length}` : words.map((word) => word.replaceAll("\n", "⏎")).join("");
      const before = this.tokens[this.ends[number] - pass.t.length + Math.min(pass.a, pass.t.length - 1)] || last;
      const ghost = PB.el("s.ghost", { title }, shown);
      ghost.classList.toggle("later", before.span.classList.contains("later"));
      before.ghost = ghost;
      before.span.before(ghost);
    });
  }
};
