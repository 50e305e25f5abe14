// Below a lane's text: the timeline of its ranks, and what a chosen pass judged, as a window or a tree.
"use strict";

PB.WORKS = { verify: "--verify", draft: "--draft", prepare: "--prepare", wait: "--wait" };

PB.Details = class {
  constructor(lane) {
    const { el } = PB;
    this.lane = lane;
    this.time = Infinity;
    this.canvas = el("canvas.timeline", { hidden: true, "aria-label": "what each rank did" });
    this.works = el("ul.works", { hidden: true, "aria-label": "what the bars of the timeline mean" });
    this.pass = el("div.pass", { hidden: true });
    this.root = el("div.details", {}, this.canvas, this.works, this.pass);
    this.drawn = 0;
    new ResizeObserver(() => this._draw()).observe(this.root);
  }

  at(time) {
    this.time = time;
    this._draw();
  }

  changed() {
    this._draw();
    this._tell();
  }

  // The last passes before the clock, one row for each rank.
  _draw() {
    const { lane, canvas } = this;
    const passes = lane.passes.slice(0, lane.shown + 1);
    if (!passes.some((pass) => pass.s)) return;
    if (canvas.hidden) this._key();
    canvas.hidden = false;
    const ranks = lane.about.loop === "pearl" ? ["target", "draft"] : ["target"];
    const [wide, high] = [canvas.clientWidth || 300, 15 * ranks.length + 20];
    const dense = window.devicePixelRatio || 1;
    canvas.width = wide * dense;
    canvas.height = high * dense;
    canvas.style.height = `${high}px`;
    const pen = canvas.getContext("2d");
    pen.scale(dense, dense);
    const chosen = lane.chosen !== null ? lane.passes[lane.chosen].e : Infinity;
    const now = Math.min(this.time, lane.seconds, chosen + this._span() / 4);
    const end = Math.max(now, this._span());
    this._rows(pen, ranks, end - this._span(), end, now, wide);
  }

  // The colours of what the ranks did.
  _key() {
    const done = new Set(this.lane.passes.flatMap((pass) => (pass.s || []).map(([, work]) => work)));
    const works = Object.keys(PB.WORKS).filter((work) => done.has(work));
    this.works.replaceChildren(...works.map((work) => PB.el("li", {}, PB.el(`i.w-${work}`), work)));
    this.works.hidden = false;
  }

  // Seconds that the timeline shows: about a dozen passes.
  _span() {
    const passes = this.lane.passes;
    if (passes.length < 2) return 0.1;
    return (12 * (passes.at(-1).e - passes[0].e)) / (passes.length - 1) || 0.1;
  }

  _rows(pen, ranks, begin, end, now, wide) {
    const x = (time) => 44 + ((wide - 44) * (time - begin)) / (end - begin);
    pen.font = "10px system-ui, sans-serif";
    pen.fillStyle = PB.colour("--faint");
    ranks.forEach((rank, row) => pen.fillText(rank, 0, 13 + 15 * row));
    const scale = `${PB.seconds(end - begin)} →`;
    pen.fillText(scale, wide - pen.measureText(scale).width, 15 * ranks.length + 15);
    const colours = Object.fromEntries(Object.entries(PB.WORKS).map(([work, name]) => [work, PB.colour(name)]));
    pen.save();
    pen.beginPath();
    pen.rect(44, 0, wide - 44, 40);
    pen.clip();
    for (const pass of this.lane.passes) {
      if (!pass.s || pass.e < begin) continue;
      for (const [rank, work, from, to] of pass.s) {
        if (from > Math.min(end, now) || to < begin) continue;
        const row = ranks.indexOf(rank);
        const right = x(Math.min(to, now));
        pen.fillStyle = colours[work];
        pen.fillRect(x(from), 4 + 15 * row + (work === "wait" ? 5 : 0), Math.max(0.7, right - x(from) - 0.6), work === "wait" ? 2 : 12);
      }
      if (pass.e > end) break;
    }
    pen.restore();
  }

  _tell() {
    const { lane, pass } = this;
    const chosen = lane.chosen;
    pass.hidden = chosen === null || !lane.passes[chosen];
    if (pass.hidden || this.told === chosen) {
      this.told = pass.hidden ? null : chosen;
      return;
    }
    this.told = chosen;
    const it = lane.passes[chosen];
    const { el } = PB;
    const head = el("p", {}, el("b", {}, chosen ? `Pass ${chosen}` : "Prefill"), this._words(it, chosen));
    pass.replaceChildren(head, it.g ? (it.g.p ? this._tree(it, chosen) : this._window(it)) : this._plain(it));
  }

  _words(it, number) {
    if (!number) return " read the prompt and decided the first token.";
    const took = PB.seconds(it.e - this.lane.passes[number - 1].e);
    const drafts = it.d ? `${it.a} of ${it.d} drafted tokens kept` : "nothing was drafted";
    return ` · ${drafts}, ${it.t.length} token${it.t.length === 1 ? "" : "s"} decided, ${it.n} row${it.n === 1 ? "" : "s"} scored in ${took}`;
  }

  _plain(it) {
    const chips = it.t.map(([, text, origin]) => PB.el(`span.chip.o-${origin}`, {}, PB.visible(text)));
    return PB.el("div.window", {}, ...chips);
  }

  // Drafts in order, kept and rejected, then what the target said itself.
  _window(it) {
    const { el } = PB;
    const kept = new Set(it.g.k);
    const chips = it.g.x.map((text, i) => {
      const origin = kept.has(i + 1) ? (it.t[i] ? it.t[i][2] : "k") : "x";
      return el(`span.chip.o-${origin}`, { title: kept.has(i + 1) ? "kept" : "rejected" }, PB.visible(text));
    });
    const own = it.t.filter(([, , origin]) => "co".includes(origin));
    const said = own.map(([, text, origin]) => el(`span.chip.o-${origin}`, { title: "the target's own" }, PB.visible(text)));
    return el("div.window", {}, ...chips, said.length ? el("span.then", {}, "→") : null, ...said);
  }

  // Nodes by depth from left to right, the kept path above.
  _tree(it, number) {
    const { svg } = PB;
    const nodes = it.g.x.length;
    const parent = it.g.p;
    const kept = new Set(it.g.k);
    const depth = [0];
    parent.forEach((up, i) => depth.push(depth[up] + 1));
    const children = Array.from({ length: nodes + 1 }, () => []);
    parent.forEach((up, i) => children[up].push(i + 1));
    for (const each of children) each.sort((a, b) => kept.has(b) - kept.has(a));
    const row = [];
    let next = 0;
    const place = (node) => {
      if (!children[node].length) row[node] = next++;
      else {
        children[node].forEach(place);
        row[node] = row[children[node][0]];
      }
    };
    place(0);
    const [dx, dy] = [104, 24];
    const [wide, high] = [(Math.max(...depth) + 1) * dx, next * dy + 6];
    const drawing = svg("svg", { viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, class: "tree" });
    const x = (node) => depth[node] * dx + 2;
    const y = (node) => row[node] * dy + 15;
    for (let node = 1; node <= nodes; node++) {
      const up = parent[node - 1];
      const [x0, x1] = [x(up) + dx - 22, x(node) - 4];
      const path = `M${x0} ${y(up)}C${x0 + 9} ${y(up)} ${x1 - 9} ${y(node)} ${x1} ${y(node)}`;
      drawing.append(svg("path", { d: path, class: kept.has(node) ? "kept" : "" }));
    }
    const pending = number ? this.lane.tokens[this.lane.ends[number - 1] - 1].text : "";
    for (let node = 0; node <= nodes; node++) {
      const text = PB.visible(node ? it.g.x[node - 1] : pending);
      const state = node === 0 ? "root" : kept.has(node) ? "kept" : "rejected";
      const group = svg("g", { class: `node ${state}`, transform: `translate(${x(node)} ${y(node)})` });
      group.append(svg("rect", { x: -2, y: -10, width: dx - 22, height: 20, rx: 4 }));
      const label = svg("text", { x: 4, y: 4 });
      label.textContent = text.length > 10 ? `${text.slice(0, 9)}…` : text;
      group.append(label);
      drawing.append(group);
    }
    return PB.el("div", {}, PB.el("div.scroll", {}, drawing), this._plain(it));
  }
};
