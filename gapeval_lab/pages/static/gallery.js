"use strict";
// Shows the cards that match every filter, and counts for each choice what it would show.
(() => {
  const form = document.querySelector(".filters");
  if (!form) return;
  const list = document.querySelector(".cards");
  const selects = [...form.querySelectorAll("select")];
  const search = form.querySelector("input");
  const shown = form.querySelector(".shown");
  const empty = document.querySelector(".empty");
  const cards = [...list.children].map((node) => ({
    node,
    values: node.dataset.f ? node.dataset.f.split(" ").map((one) => one.split(",")) : [],
    words: null,
  }));

  const wordsOf = (card) => (card.words ??= card.node.textContent.toLowerCase());
  const filter = () => {
    const wanted = selects.map((select) => select.value);
    const asked = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const counts = selects.map(() => ({}));
    let found = 0;
    for (const card of cards) {
      let misses = asked.every((word) => wordsOf(card).includes(word)) ? 0 : 2;
      let missed = -1;
      wanted.forEach((value, facet) => {
        if (value && !card.values[facet].includes(value)) {
          misses += 1;
          missed = facet;
        }
      });
      // A card that fails one filter alone would be shown by another choice of that filter.
      if (misses < 2) {
        card.values.forEach((values, facet) => {
          if (!misses || missed === facet) for (const value of values) counts[facet][value] = (counts[facet][value] ?? 0) + 1;
        });
      }
      card.node.hidden = misses > 0;
      if (!misses) card.node.classList.toggle("kept", ++found <= 24);
    }
    selects.forEach((select, facet) => {
      select.classList.toggle("set", select.value !== "");
      for (const option of select.options) {
        if (option.value) option.textContent = `${option.dataset.label} (${counts[facet][option.value] ?? 0})`;
      }
    });
    shown.textContent = `${found} of ${cards.length} items`;
    empty.hidden = found > 0;
    list.classList.add("cut");
  };

  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  search.addEventListener("input", filter);
  form.hidden = false;
  filter();
  performance.mark("gallery-ready");
})();
