// Tables with choices: choose, sort, search, download. The data stand in the page, as JSON beside
// a plain table of the first choice; that table stays where no script runs.
(() => {
  const make = (tag, into, text = "", attributes = {}) => {
    const element = document.createElement(tag);
    element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    into?.append(element);
    return element;
  };
  const number = (value) =>
    value === null ? "–" : value.toFixed(Number.isInteger(value) ? 0 : 3).replace("-", "−");

  function control(choice, options, chosen, changed, into) {
    const label = make("label", into, `${choice.name} `);
    if (choice.kind === "slider") {
      const told = make("span", null, options[chosen]);
      const range = make("input", label, "", { type: "range", min: 0, max: options.length - 1 });
      range.value = chosen;
      range.setAttribute("aria-valuetext", options[chosen]);
      range.addEventListener("input", () => changed(+range.value));
      label.append(told);
      return;
    }
    const select = make("select", label);
    options.forEach((option) => make("option", select, option));
    select.selectedIndex = chosen;
    select.addEventListener("change", () => changed(select.selectedIndex));
  }

  function explore(box) {
    const data = JSON.parse(box.querySelector("script").textContent);
    const { choices, label, columns } = data;
    const at = (name) => data.names.indexOf(name);
    for (const [name, words] of Object.entries(data.words))
      for (const row of data.rows) row[at(name)] = words[row[at(name)]];
    const [value, low, high] = ["value", "low", "high"].map(at);
    const chosen = choices.map((choice) => data.rows[0][at(choice.name)]);
    let sorted = value, down = true, words = [];
    const controls = make("div", null, "", { class: "scmoe-choices" });
    const status = make("p", null, "", { role: "status", class: "scmoe-status" });
    const old = box.querySelector("table");
    const table = make("table", null, "", { class: "scmoe-table" });
    const caption = old.caption;
    old.replaceWith(controls, status, table);

    function chosenRows() {
      let rows = data.rows;
      controls.replaceChildren();
      choices.forEach((choice, i) => {
        const options = [...new Set(rows.map((row) => row[at(choice.name)]))];
        if (!options.includes(chosen[i])) chosen[i] = options[0];
        const change = (k) => { chosen[i] = options[k]; draw(); focus(i); };
        control(choice, options.map(String), options.indexOf(chosen[i]), change, controls);
        rows = rows.filter((row) => row[at(choice.name)] === chosen[i]);
      });
      return rows;
    }
    const focus = (i) => controls.querySelectorAll("select, input[type=range]")[i]?.focus();

    function tools(rows) {
      const find = make("label", controls, "search ");
      const input = make("input", find, "", { type: "search" });
      input.value = words.join(" ");
      input.addEventListener("input", () => {
        words = input.value.toLowerCase().split(/\s+/);
        body(rows);
      });
      const button = make("button", controls, "CSV", { type: "button", title: "Download all rows" });
      button.addEventListener("click", () => {
        const quote = (cell) => (/[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
        const lines = [data.names, ...data.rows].map((row) => row.map((cell) => quote(String(cell ?? ""))).join(","));
        const link = make("a", null, "", { download: `${data.file}.csv` });
        link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
        link.click();
        URL.revokeObjectURL(link.href);
      });
    }

    function body(rows) {
      table.tBodies[0]?.remove();
      const known = rows.flatMap((row) => [row[value], row[low], row[high]]).filter(Number.isFinite);
      const from = Math.min(0, ...known), to = Math.max(0, ...known), span = to - from || 1;
      const share = (x) => `${(100 * (x - from)) / span}%`;
      const kept = rows.filter((row) => words.every((word) => String(row[at(label)]).toLowerCase().includes(word)));
      const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : (a ?? -Infinity) - (b ?? -Infinity));
      kept.sort((a, b) => (down ? -1 : 1) * order(a[sorted], b[sorted]));
      const into = make("tbody", table);
      for (const row of kept) {
        const line = make("tr", into);
        if (data.marked.includes(row[at(label)])) line.className = "scmoe-marked";
        make("th", line, row[at(label)], { scope: "row" });
        const bar = make("td", line, "", { class: "scmoe-bar", "aria-hidden": "true" });
        if (row[value] !== null) {
          const [left, right] = [Math.min(0, row[value]), Math.max(0, row[value])];
          make("b", bar).style.cssText = `left:${share(left)};width:${(100 * (right - left)) / span}%`;
          if (Number.isFinite(row[low]))
            make("i", bar).style.cssText = `left:${share(row[low])};width:${(100 * (row[high] - row[low])) / span}%`;
        }
        for (const name of columns) {
          const cell = row[at(name)];
          make("td", line, typeof cell === "string" ? cell : number(cell));
        }
      }
      status.textContent = `${chosen.join(" · ")}: ${kept.length} of ${rows.length}`;
    }

    function draw() {
      const rows = chosenRows();
      table.replaceChildren(caption);
      tools(rows);
      const head = make("tr", make("thead", table));
      for (const name of [label, "", ...columns]) {
        const cell = make("th", head, "", { scope: "col" });
        if (!name) continue;
        const which = at(name);
        const button = make("button", cell, name, { type: "button" });
        cell.setAttribute("aria-sort", sorted !== which ? "none" : down ? "descending" : "ascending");
        button.addEventListener("click", () => {
          down = sorted === which ? !down : true;
          sorted = which;
          draw();
        });
      }
      body(rows);
    }
    draw();
    box.dataset.ready = "yes";
  }

  document.addEventListener("DOMContentLoaded", () => {
    const reached = new IntersectionObserver((seen, watch) => {
      for (const { isIntersecting, target } of seen) {
        if (!isIntersecting) continue;
        watch.unobserve(target);
        explore(target);
      }
    }, { rootMargin: "200px" });
    document.querySelectorAll(".scmoe-explore").forEach((box) => reached.observe(box));
  });
})();
