// What readers play with. Data stand in the page, as JSON beside what is shown where no script runs:
// a plain table of the first choice, or a sentence.
//
// Tables with choices: choose, sort, search, download. Two maps of the same cells: point at one, see
// it in the other and read what is known of it; arrow keys go from cell to cell.
(() => {
  const make = (tag, into, text = "", attributes = {}) => {
    const element = document.createElement(tag);
    element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    into?.append(element);
    return element;
  };
  const svg = (tag, into, attributes = {}) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    into.append(element);
    return element;
  };
  const RAMP = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"]; // viridis
  const number = (value, digits) => {
    if (typeof value === "string") return value;
    if (value === null) return "–";
    return value.toFixed(Number.isInteger(value) ? 0 : digits).replace("-", "−");
  };

  function unpacked(box) {
    const data = JSON.parse(box.querySelector("script").textContent);
    data.names.forEach((name, k) => {
      const words = data.words[name];
      if (words) for (const row of data.rows) row[k] = words[row[k]] ?? null;
    });
    return data;
  }

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
    const data = unpacked(box);
    const { choices, label, columns } = data, bars = data.bars ? columns : columns.slice(0, 1);
    const at = (name) => data.names.indexOf(name);
    const [low, high] = ["low", "high"].map(at);
    const chosen = choices.map((choice) => data.rows[0][at(choice.name)]);
    let sorted = at(columns[0]), down = true, words = [];
    const controls = make("div", null, "", { class: "scmoe-choices" });
    const status = make("p", null, "", { role: "status", class: "scmoe-status" });
    const old = box.querySelector("table");
    const table = make("table", null, "", { class: data.bars ? "scmoe-table scmoe-bars" : "scmoe-table" });
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

    function bar(row, value, rows, into) {
      const ends = value === at(columns[0]) ? [value, low, high] : [value];
      const known = rows.flatMap((row) => ends.map((end) => row[end])).filter(Number.isFinite);
      const from = Math.min(0, ...known), span = Math.max(0, ...known) - from || 1;
      const mark = (tag, start, end) => {
        make(tag, into).style.cssText = `left:${(100 * (start - from)) / span}%;width:${(100 * (end - start)) / span}%`;
      };
      if (row[value] === null) return;
      mark("b", Math.min(0, row[value]), Math.max(0, row[value]));
      if (ends.length > 1 && Number.isFinite(row[low])) mark("i", row[low], row[high]);
    }

    function body(rows) {
      table.tBodies[0]?.remove();
      const kept = rows.filter((row) => words.every((word) => String(row[at(label)]).toLowerCase().includes(word)));
      const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : (a ?? -Infinity) - (b ?? -Infinity));
      kept.sort((a, b) => (down ? -1 : 1) * order(a[sorted], b[sorted]));
      const into = make("tbody", table);
      for (const row of kept) {
        const line = make("tr", into);
        if (data.marked.includes(row[at(label)])) line.className = "scmoe-marked";
        make("th", line, row[at(label)], { scope: "row" });
        for (const name of columns) {
          if (bars.includes(name)) bar(row, at(name), rows, make("td", line, "", { class: "scmoe-bar", "aria-hidden": "true" }));
          make("td", line, number(row[at(name)], 3));
        }
      }
      status.textContent = `${chosen.join(" · ")}: ${kept.length} of ${rows.length}`;
    }

    function draw() {
      const rows = chosenRows();
      table.replaceChildren(caption);
      tools(rows);
      const head = make("tr", make("thead", table));
      for (const name of [label, ...columns.flatMap((name) => (bars.includes(name) ? ["", name] : [name]))]) {
        if (!name) {
          make("td", head);
          continue;
        }
        const cell = make("th", head, "", { scope: "col" });
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
  }

  function linked(box) {
    const data = unpacked(box);
    const columns = Object.fromEntries(
      data.names.map((name, k) => [name, data.rows.map((row) => row[k])]),
    );
    const shown = data.names.filter((name) => !Object.values(data.places).flat().includes(name));
    box.querySelector(".scmoe-unscripted").remove();
    const label = make("label", box, "colour by ");
    const select = make("select", label);
    shown.forEach((name) => make("option", select, name));
    const maps = make("div", box);
    maps.className = "scmoe-maps";
    const key = make("p", box);
    key.className = "scmoe-key";
    const facts = make("dl", make("div", box, "", { role: "status" }));
    const panels = Object.entries(data.places).map(([title, axes]) => panel(title, axes));

    function panel(title, axes) {
      const [x, y] = axes.map((name) => {
        const values = columns[name];
        const [least, most] = [Math.min(...values), Math.max(...values)];
        return values.map((value) => 3 + (94 * (value - least)) / (most - least || 1));
      });
      const figure = make("figure", maps);
      const map = svg("svg", figure, { viewBox: "0 0 100 100", tabindex: 0, role: "img", "aria-label": `${title}; arrow keys go from cell to cell` });
      make("figcaption", figure, title);
      const dots = x.map((_, i) => svg("circle", map, { cx: x[i], cy: y[i], r: 1.1 }));
      const order = x.map((_, i) => i).sort((a, b) => y[a] - y[b] || x[a] - x[b]);
      const point = (event) => {
        const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
        let best = 0;
        x.forEach((_, i) => {
          if ((x[i] - at.x) ** 2 + (y[i] - at.y) ** 2 < (x[best] - at.x) ** 2 + (y[best] - at.y) ** 2) best = i;
        });
        choose(best);
      };
      map.addEventListener("pointermove", point);
      map.addEventListener("pointerdown", point);
      map.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
        if (!step) return;
        event.preventDefault();
        choose(order[(order.indexOf(chosen) + step + order.length) % order.length]);
      });
      return dots;
    }

    let chosen = 0;
    function choose(i) {
      for (const dots of panels) {
        dots[chosen].removeAttribute("class");
        dots[i].setAttribute("class", "scmoe-chosen");
        dots[i].parentNode.append(dots[i]); // on top
      }
      chosen = i;
      facts.replaceChildren();
      for (const name of shown) {
        const pair = make("div", facts);
        make("dt", pair, name);
        make("dd", pair, number(columns[name][i], 2));
      }
    }

    function paint() {
      const name = select.value, values = columns[name], colours = data.colours[name];
      const known = values.filter(Number.isFinite);
      const [least, most] = [Math.min(...known), Math.max(...known)];
      const colour = (value) =>
        colours ? colours[value] : RAMP[Math.min(4, Math.floor((5 * (value - least)) / (most - least || 1)))];
      for (const dots of panels) dots.forEach((dot, i) => dot.setAttribute("fill", colour(values[i]) ?? "#999"));
      key.replaceChildren();
      const entries = colours ? Object.entries(colours) : RAMP.map((hue, k) => [number(least + ((most - least) * k) / 4, 2), hue]);
      for (const [text, hue] of entries) {
        const entry = make("span", key, text);
        entry.style.setProperty("--hue", hue);
      }
    }
    select.addEventListener("change", paint);
    paint();
    choose(0);
  }

  const kinds = { "scmoe-explore": explore, "scmoe-linked": linked };
  document.addEventListener("DOMContentLoaded", () => {
    const reached = new IntersectionObserver((seen, watch) => {
      for (const { isIntersecting, target } of seen) {
        if (!isIntersecting) continue;
        watch.unobserve(target);
        kinds[target.className](target);
        target.dataset.ready = "yes";
      }
    }, { rootMargin: "200px" });
    for (const kind of Object.keys(kinds))
      document.querySelectorAll(`.${kind}`).forEach((box) => reached.observe(box));
  });
})();
