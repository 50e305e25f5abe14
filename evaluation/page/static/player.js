// The clock that all lanes share: play, faster and slower, and a scrubber.
"use strict";

PB.SPEEDS = [0.25, 0.5, 1, 2, 4];

PB.Player = class {
  // `changed`: called with the time whenever it has changed.
  constructor(changed) {
    const { el } = PB;
    this.changed = changed;
    this.lanes = [];
    this.time = 0;
    this.rate = 1;
    this.playing = false;
    this.button = el("button.play", { type: "button", onclick: () => this.toggle(), "aria-label": "play" }, "▶");
    this.scrubber = el("input", { type: "range", min: 0, max: 1000, value: 0, "aria-label": "time" });
    this.scrubber.addEventListener("input", () => {
      this.pause();
      this.seek((this.scrubber.value / 1000) * this.length);
    });
    this.clock = el("output", {}, "0.00 s");
    this.rates = el("div.rates", { role: "group", "aria-label": "speed" });
    for (const rate of PB.SPEEDS) {
      const title = `${rate} times as fast`;
      this.rates.append(el("button", { type: "button", title, onclick: () => this.setRate(rate) }, `${rate}x`));
    }
    this.root = el("div.player", { hidden: true }, this.button, this.scrubber, this.clock, this.rates);
    this.setRate(1);
  }

  setRate(rate) {
    this.rate = rate;
    PB.SPEEDS.forEach((each, i) => this.rates.children[i].classList.toggle("on", each === rate));
  }

  // The lanes that are to be replayed, from the beginning.
  load(lanes) {
    this.lanes = lanes;
    this.length = Math.max(0.001, ...lanes.map((lane) => lane.seconds));
    this.root.hidden = !lanes.length;
    this.seek(this.length);
  }

  seek(time) {
    this.time = Math.min(Math.max(0, time), this.length);
    this.scrubber.value = Math.round((1000 * this.time) / this.length);
    this.clock.textContent = `${this.time.toFixed(2)} s`;
    for (const lane of this.lanes) lane.at(this.time >= this.length ? Infinity : this.time);
    for (const lane of this.lanes) lane.figures();
    if (this.changed) this.changed(this.time);
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  play(from = this.time >= this.length ? 0 : this.time) {
    this.playing = true;
    this.button.textContent = "❚❚";
    this.button.setAttribute("aria-label", "pause");
    let last = performance.now();
    const run = {};
    this.run = run;
    this.seek(from);
    const step = (now) => {
      if (!this.playing || this.run !== run) return; // paused and played again within a frame, there would be two
      this.seek(this.time + (this.rate * (now - last)) / 1000);
      last = now;
      if (this.time >= this.length) this.pause();
      else requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  pause() {
    this.playing = false;
    this.button.textContent = "▶";
    this.button.setAttribute("aria-label", "play");
  }

  hide() {
    this.pause();
    this.lanes = [];
    this.root.hidden = true;
  }
};

// What the colours and lines of tokens mean; only those that occur in the lanes, or all.
PB.legend = (letters = Object.keys(PB.ORIGINS)) =>
  PB.el(
    "ul.legend",
    { "aria-label": "where a token came from" },
    ...letters.map((letter) => {
      const [name, meaning] = PB.ORIGINS[letter];
      return PB.el("li", { title: meaning }, PB.el(`span.key.o-${letter}`, {}, "token"), name);
    }),
  );
