// Two maps of the same cells: point at a cell in one, see it in the other and read what is known of
// it. Arrow keys go from cell to cell.
(() => {
  const RAMP = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"]; // viridis
  const svg = (tag, into, attributes = {}) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    into.append(element);
    return element;
  };
  const html = (tag, into, text = "") => {
    const element = document.createElement(tag);
    element.textContent = text;
    into.append(element);
    return element;
  };
  const told = (value) =>
    typeof value === "string" ? value : value === null ? "–" : value.toFixed(Number.isInteger(value) ? 0 : 2).replace("-", "−");

  function linked(box) {
    const data = JSON.parse(box.querySelector("script").textContent);
    const column = (name) => {
      const values = data.rows.map((row) => row[data.names.indexOf(name)]);
      return data.words[name] ? values.map((code) => data.words[name][code]) : values;
    };
    const columns = Object.fromEntries(data.names.map((name) => [name, column(name)]));
    const shown = data.names.filter((name) => !Object.values(data.places).flat().includes(name));
    box.querySelector("p").remove();
    const label = html("label", box, "colour by ");
    const select = html("select", label);
    shown.forEach((name) => html("option", select, name));
    const maps = html("div", box);
    maps.className = "scmoe-maps";
    const key = html("p", box);
    key.className = "scmoe-key";
    const facts = html("dl", box);
    facts.setAttribute("role", "status");
    const panels = Object.entries(data.places).map(([title, axes]) => panel(title, axes));

    function panel(title, axes) {
      const [x, y] = axes.map((name) => {
        const values = columns[name];
        const [least, most] = [Math.min(...values), Math.max(...values)];
        return values.map((value) => 3 + (94 * (value - least)) / (most - least || 1));
      });
      const figure = html("figure", maps);
      const map = svg("svg", figure, { viewBox: "0 0 100 100", tabindex: 0, role: "img", "aria-label": `${title}; arrow keys go from cell to cell` });
      html("figcaption", figure, title);
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
        const pair = html("div", facts);
        html("dt", pair, name);
        html("dd", pair, told(columns[name][i]));
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
      const entries = colours ? Object.entries(colours) : RAMP.map((hue, k) => [told(least + ((most - least) * k) / 4), hue]);
      for (const [text, hue] of entries) {
        const entry = html("span", key, text);
        entry.style.setProperty("--hue", hue);
      }
    }
    select.addEventListener("change", paint);
    paint();
    choose(0);
    box.dataset.ready = "yes";
  }

  document.addEventListener("DOMContentLoaded", () => {
    const reached = new IntersectionObserver((seen, watch) => {
      for (const { isIntersecting, target } of seen) {
        if (!isIntersecting) continue;
        watch.unobserve(target);
        linked(target);
      }
    }, { rootMargin: "200px" });
    document.querySelectorAll(".scmoe-linked").forEach((box) => reached.observe(box));
  });
})();
