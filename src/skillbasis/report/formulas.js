// Formulas of an example, set when it is unfolded. What does not parse, is too long or too deep stays text.
// A page that puts its examples in later calls `formulas.set`; one with a switch calls `formulas.choose`.
const formulas = (() => {
  "use strict";
  const FORMULA = /\$\$([^]+?)\$\$|\\\[([^]+?)\\\]|\\\(([^]+?)\\\)|(?<![\\$\w])\$(?!\s)((?:[^$\\\n]|\\.)+?)(?<!\s)\$(?![\d$])/g;
  const MAX_CHARS = 20000; // of a text: an opening delimiter that is never closed is looked for to the end
  const MAX_FORMULA = 1000;
  const MAX_FORMULAS = 200;
  const written = new WeakMap(); // element -> its content before formulas were set
  let wanted = true;

  const typeset = (tex, display) => {
    const place = document.createElement("span");
    try {
      katex.render(tex, place, {
        displayMode: display, throwOnError: true, strict: "ignore", maxExpand: 100, maxSize: 10,
        trust: () => { throw new Error("links and pictures stay as written"); },
      });
    } catch {
      return null; // as written
    }
    return place;
  };
  // The stretch of an element's text as a range; found words in it are elements of their own, so it may cross them.
  const rangeOf = (nodes, start, end) => {
    const range = document.createRange();
    const at = (place, isEnd) => nodes.find(({from, node}) => place < from + node.length || (isEnd && place === from + node.length));
    const first = at(start, false);
    const last = at(end, true);
    range.setStart(first.node, start - first.from);
    range.setEnd(last.node, end - last.from);
    return range;
  };
  const textNodes = (element) => {
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    const nodes = [];
    for (let from = 0; walker.nextNode(); from += walker.currentNode.length) nodes.push({node: walker.currentNode, from});
    return nodes;
  };
  const set = (element) => {
    const text = element.textContent;
    if (!wanted || !window.katex || written.has(element) || text.length > MAX_CHARS) return;
    const places = [];
    for (const found of text.matchAll(FORMULA)) {
      const tex = found.slice(1).find((part) => part !== undefined);
      if (tex.length > MAX_FORMULA) continue;
      if (places.length === MAX_FORMULAS) break;
      const place = typeset(tex, found[1] !== undefined || found[2] !== undefined);
      if (place) places.push({place, start: found.index, end: found.index + found[0].length});
    }
    if (!places.length) return;
    written.set(element, [...element.cloneNode(true).childNodes]);
    const nodes = textNodes(element);
    for (const {place, start, end} of places.reverse()) { // from the end, so that what lies before keeps its place
      const range = rangeOf(nodes, start, end);
      const within = range.commonAncestorContainer.parentElement.closest("mark");
      const marked = !within && range.cloneContents().querySelector("mark");
      range.deleteContents();
      const mark = document.createElement("mark");
      if (marked) mark.append(place);
      range.insertNode(marked ? mark : place);
    }
  };
  const unset = (element) => {
    if (!written.has(element)) return;
    element.replaceChildren(...written.get(element));
    written.delete(element);
  };
  const choose = (on, elements) => {
    wanted = on;
    for (const element of elements) (on ? set : unset)(element);
  };
  document.addEventListener("toggle", (event) => {
    const example = event.target;
    if (example.open && example.matches("details.exemplar")) example.querySelectorAll("pre").forEach((text) => set(text));
  }, true);
  return {set, choose};
})();
