// Race: a prompt, two or three methods in turn, then all of them together on one clock.
"use strict";

PB.EXAMPLES = [
  ["a function", "Write a Python function that returns the n-th Fibonacci number, with a docstring and three tests."],
  ["repeat", "Repeat this list, then repeat it in reverse order: apple, pear, plum, cherry, quince, peach, apricot, fig."],
  ["a story", "Write a short story about a lighthouse keeper who finds a message in a bottle."],
  ["a sum", "Tom has 12 apples, gives away a third of them and buys 5 more. How many has he now? Explain each step."],
  ["explain", "Explain in a few sentences why the sky is blue, then repeat your first sentence word for word."],
  ["a table", "Write a Markdown table of the planets with their radius in km and their number of moons."],
];
PB.MOST_LANES = 4;

PB.parts.race = class {
  static title = "Race";

  constructor(page) {
    const { el } = PB;
    this.page = page;
    this.lanes = [];
    this.names = [];
    this.running = false;
    this.prompt = el("textarea", { rows: 3, maxlength: 20000, "aria-label": "prompt", placeholder: "Ask the model something" });
    this.prompt.addEventListener("input", () => this._own());
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.go();
    });
    this.examples = el("div.chips", { "aria-label": "examples" });
    for (const [name, text] of PB.EXAMPLES) {
      const use = () => {
        this.prompt.value = text;
        this._own();
      };
      this.examples.append(el("button", { type: "button", onclick: use, title: text }, name));
    }
    this.methods = el("div.methods", { "aria-label": "methods" });
    this.options = el("div.options", { hidden: true });
    this.button = el("button.button.main", { type: "button", onclick: () => (this.running ? this.stop() : this.go()) }, "Race");
    this.notice = el("p.notice", { role: "status" }, "Measured one after the other, replayed together.");
    this.board = el("div.lanes");
    this.player = new PB.Player();
    this.ghosts = el("input", { type: "checkbox", onchange: () => this.lanes.forEach((lane) => lane.ghosts(this.ghosts.checked)) });
    this.under = el("div.under", { hidden: true }, PB.legend(), el("label", {}, this.ghosts, "show rejected drafts"));
    this._composer();
    this.root = el("section", {}, this.composer, this.board, this.under, this.player.root);
  }

  _composer() {
    const { el, page } = { ...PB, page: this.page };
    this.benchmark = el("select", { "aria-label": "benchmark", onchange: () => this._questions() }, el("option", { value: "" }, "own prompt"));
    for (const name of page.benchmarks) this.benchmark.append(el("option", { value: name }, name));
    this.question = el("select", { "aria-label": "question", hidden: true, onchange: () => this._asked() });
    this.examples.append(el("label", {}, "or", this.benchmark), this.question);
    this.most = el("select", { onchange: () => this._remember() });
    for (const count of [32, 64, 128, 256, 512, 1024]) this.most.append(el("option", { value: count }, `${count} tokens`));
    this.most.value = String(page.max_new_tokens);
    if (!this.most.value) this.most.value = "128";
    this.temperature = el("input", { type: "number", min: 0, max: 10, step: 0.1, value: 0, onchange: () => this._remember() });
    this.seed = el("input", { type: "number", min: 0, step: 1, value: 0, onchange: () => this._remember() });
    this.composer = el(
      "div.card.composer",
      {},
      this.prompt,
      this.examples,
      this.methods,
      this.options,
      el(
        "div.bar-row",
        {},
        el("label", {}, "at most", this.most),
        el("label", { title: "0 is greedy: then every lossless method gives the same tokens" }, "temperature", this.temperature),
        el("label", {}, "seed", this.seed),
        this.button,
      ),
      this.notice,
    );
  }

  // The address says what is asked. One that says nothing, as behind a tab's button, leaves all as it is.
  open(query) {
    if (this.opened && !query.size) return this._remember();
    if (this.running) return;
    this.opened = true;
    const known = new Set(this.page.methods.map((method) => method.name));
    const wanted = (query.get("methods") || "").split(",").filter((name) => known.has(name.split("@")[0]));
    const ours = [this.page.baseline, ...["sps", "pld"].filter((name) => this._able(name))];
    this.names = (wanted.length ? wanted : ours).slice(0, PB.MOST_LANES);
    this.prompt.value = query.get("prompt") || PB.EXAMPLES[0][1];
    if (query.get("tokens")) this.most.value = query.get("tokens");
    if (query.get("temperature")) this.temperature.value = query.get("temperature");
    if (query.get("seed")) this.seed.value = query.get("seed");
    if (query.get("benchmark")) {
      this.benchmark.value = query.get("benchmark");
      this._questions(query.get("question"));
    }
    this._choosers();
  }

  _able(name) {
    const method = this.page.methods.find((each) => each.name === name);
    return method && !method.missing;
  }

  _choosers() {
    const { el } = PB;
    const another = { type: "button", onclick: () => this._another(), title: "one more column" };
    this.methods.replaceChildren(
      ...this.names.map((name, place) => this._chooser(name, place)),
      this.names.length < PB.MOST_LANES ? el("button.button", another, "+ method") : "",
    );
    this.options.hidden = this.open_options === undefined || !this.names[this.open_options];
    if (!this.options.hidden) this._showOptions(this.open_options);
    this._remember();
  }

  _chooser(name, place) {
    const { el } = PB;
    const chosen = el("select", { "aria-label": `method ${place + 1}`, onchange: () => this._set(place, chosen.value) });
    for (const method of this.page.methods) {
      const label = method.missing ? `${method.name} (${method.missing})` : method.name;
      chosen.append(el("option", { value: method.name, disabled: !!method.missing, title: method.about }, label));
    }
    const base = name.split("@")[0];
    chosen.value = base;
    if (name !== base) chosen.selectedOptions[0].textContent = name;
    const method = this.page.methods.find((each) => each.name === base);
    const drop = () => {
      this.names.splice(place, 1);
      this.open_options = undefined;
      this._choosers();
    };
    const more = () => {
      this.open_options = this.open_options === place ? undefined : place;
      this._choosers();
    };
    return el(
      "span.method",
      {},
      el("span.nth", {}, String(place + 1)),
      chosen,
      method.options.length ? el("button", { type: "button", onclick: more, title: "options", "aria-label": `options of ${base}` }, "⚙") : "",
      this.names.length > 1 ? el("button", { type: "button", onclick: drop, title: "leave out", "aria-label": `leave out ${base}` }, "×") : "",
    );
  }

  _set(place, name) {
    this.names[place] = name;
    this._choosers();
  }

  _another() {
    const free = this.page.methods.find((method) => !method.missing && !this.names.includes(method.name) && method.loop !== "alone");
    const liked = ["pearl", "eagle3", "medusa"].find((name) => this._able(name) && !this.names.includes(name));
    if (free) this.names.push(liked || free.name);
    this._choosers();
  }

  _showOptions(place) {
    const { el } = PB;
    const [base, ...typed] = this.names[place].split("@");
    const values = Object.fromEntries(typed.map((each) => each.split("=")));
    const method = this.page.methods.find((each) => each.name === base);
    const change = (name, value) => {
      if (value === "") delete values[name];
      else values[name] = value;
      this._set(place, [base, ...Object.entries(values).map(([key, each]) => `${key}=${each}`)].join("@"));
    };
    this.options.replaceChildren(
      ...method.options.map((option) => {
        const field = el("input", { type: "text", value: values[option.name] ?? "", placeholder: `${option.default}`, size: 8 });
        field.addEventListener("change", () => change(option.name, field.value.trim()));
        const words = option.words.map((word) => el("option", { value: word }));
        const list = words.length ? el("datalist", { id: `words-${option.name}` }, ...words) : "";
        if (option.words.length) field.setAttribute("list", `words-${option.name}`);
        return el("label", {}, el("span", {}, option.name), field, list, el("small", {}, `${option.help} (${option.expected})`));
      }),
    );
  }

  // A race waits for its questions.
  _questions(chosen) {
    this.loading = this._load(this.benchmark.value, chosen);
  }

  async _load(benchmark, chosen) {
    this.question.hidden = !benchmark;
    if (!benchmark) return this._remember();
    let questions = [];
    try {
      questions = await PB.get(`/api/questions/${encodeURIComponent(benchmark)}`);
    } catch (error) {
      this.tell(error.message, true);
    }
    if (this.benchmark.value !== benchmark) return; // another is chosen meanwhile, or a prompt is typed
    if (!questions.length) return this._own();
    this.asked = new Map(questions.map((question) => [String(question.id), question]));
    const option = ({ id, category, text }) =>
      PB.el("option", { value: id }, `${id} · ${category} · ${text.trim().slice(0, 60)}`);
    this.question.replaceChildren(...questions.map(option));
    if (chosen) this.question.value = chosen;
    this._asked();
  }

  _asked() {
    const question = this.asked.get(this.question.value);
    if (question) this.prompt.value = question.text;
    this._remember();
  }

  _own() {
    this.benchmark.value = "";
    this.question.hidden = true;
    this._remember();
  }

  _remember() {
    const benchmark = this.benchmark.value;
    PB.address.write("race", {
      methods: this.names.join(","),
      prompt: benchmark ? "" : this.prompt.value,
      benchmark,
      question: benchmark ? this.question.value : "",
      tokens: this.most.value,
      temperature: Number(this.temperature.value) || "",
      seed: Number(this.seed.value) || "",
    });
  }

  _request() {
    const asked = {
      methods: this.names,
      max_new_tokens: Number(this.most.value),
      temperature: Number(this.temperature.value),
      seed: Number(this.seed.value),
    };
    if (!this.benchmark.value) return { ...asked, prompt: this.prompt.value };
    const question = this.asked.get(this.question.value);
    return { ...asked, benchmark: this.benchmark.value, question: question.id };
  }

  tell(text, wrong = false) {
    this.notice.textContent = text;
    this.notice.classList.toggle("error", wrong);
  }

  _busy(running) {
    this.running = running;
    this.button.textContent = running ? "Stop" : "Race";
    this.button.classList.toggle("stop", running);
    this.button.disabled = false;
  }

  async go() {
    this._busy(true);
    this.unwanted = false;
    this.player.hide();
    this.board.replaceChildren();
    this.lanes = [];
    this.tell("The models are loaded on the first race.");
    try {
      await this.loading;
      const response = await PB.post("/api/race", this._request());
      if (!response.ok) throw new Error(await PB.refusal(response));
      for await (const event of PB.events(response)) this._event(event);
    } catch (error) {
      this.tell(error.message, true);
    }
    this._busy(false);
    this._replay();
  }

  async stop() {
    this.button.disabled = true;
    this.tell("Stopping …");
    this.unwanted = true;
    if (this.lanes.length) await PB.post("/api/stop", {}); // else the server may not have the race yet
  }

  _event(event) {
    const lane = this.lanes[event.lane];
    if (event.type === "race") this._begin(event.lanes);
    else if (event.type === "prompt") this.tokens = event.tokens;
    else if (event.type === "devices") this.devices = event.text;
    else if (event.type === "phase") {
      lane.setPhase(event.name);
      this.tell(`${lane.about.name}: ${PB.PHASES[event.name]} …`);
    } else if (event.type === "passes") lane.add(event.passes);
    else if (event.type === "answer") lane.answered(event.wall, event.prefill, event.finish, event.settled);
    else if (event.type === "chances") lane.chances = event.p;
    else if (event.type === "refused") lane.refused(event.error);
    else if (event.type === "end") this._end(event);
  }

  _begin(lanes) {
    const exact = Number(this.temperature.value) === 0;
    for (const about of lanes) {
      const method = this.page.methods.find((each) => each.name === about.name.split("@")[0]);
      this.lanes.push(new PB.Lane(about, { first: this.lanes[0], exact: exact && method.lossless }));
    }
    this.board.replaceChildren(...this.lanes.map((lane) => lane.root));
    this.under.hidden = false;
    if (this.unwanted) PB.post("/api/stop", {});
  }

  _end(event) {
    if (event.error) return this.tell(event.error, true);
    const where = [this.tokens ? `${this.tokens} tokens of prompt` : "", this.devices].filter(Boolean).join(" · ");
    this.tell(event.stopped ? "Stopped." : `Measured one after the other, replayed together${where ? ` · ${where}` : ""}.`);
    for (const lane of this.lanes) if (["wait", "load", "warm-up"].includes(lane.phase)) lane.setPhase(event.stopped ? "stopped" : lane.phase);
  }

  _replay() {
    const complete = this.lanes.filter((lane) => lane.passes.length);
    this.lanes.forEach((lane) => lane.ghosts(this.ghosts.checked));
    if (!complete.length) return;
    this.player.load(complete);
    if (complete.length > 1) this.player.play(0);
  }
};
