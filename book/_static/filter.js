// A box above each folded table keeps the rows that hold all words typed into it.
document.addEventListener("DOMContentLoaded", () => {
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
