// What scrolls can be reached and scrolled by keyboard; what does not scroll is no stop on the way.
// A box above each folded table keeps the rows that hold all words typed into it.
document.addEventListener("DOMContentLoaded", () => {
  const scrolling = "main :is(.cell_output, .cell_output div, .drawing, .math, pre, .pst-scrollable-table-container)";
  const stops = new ResizeObserver((boxes) => {
    for (const { target } of boxes) {
      const overflow = /auto|scroll/.test(getComputedStyle(target).overflow);
      const wide = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
      if (overflow && wide) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const box of document.querySelectorAll(scrolling)) stops.observe(box);
  for (const folded of document.querySelectorAll("details.scmoe-folded")) {
    const box = document.createElement("input");
    box.type = "search";
    box.placeholder = "words that rows hold";
    box.setAttribute("aria-label", "Keep the rows that hold these words");
    box.addEventListener("input", () => {
      const words = box.value.toLowerCase().split(/\s+/);
      for (const row of folded.querySelectorAll("tbody tr")) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
    folded.querySelector("summary").after(box);
  }
});
