// A slider and the field beside it show the same number.
document.addEventListener("input", (event) => {
  const other = document.getElementById(event.target.dataset.mirror ?? "");
  if (other) other.value = event.target.value;
});

// Formulas of texts as they come, while the switch says so; it keeps its place from page to page.
const TEXTS = "details.exemplar pre, #answers pre";
const KEY = "skillbasis-formulas";
const formulaSwitch = document.getElementById("set-formulas");
formulaSwitch.checked = localStorage.getItem(KEY) !== "as written";
const follow = () => formulas.choose(formulaSwitch.checked, document.querySelectorAll(TEXTS));
formulaSwitch.addEventListener("change", () => {
  localStorage.setItem(KEY, formulaSwitch.checked ? "set" : "as written");
  follow();
});
document.addEventListener("htmx:load", follow);
document.addEventListener("htmx:sseClose", follow); // an answer that is still coming stays as written
follow();

// On a narrow screen the results come first, unless the question has more to it than a text.
const narrowing = document.querySelector("details.narrowing:not([data-asked])");
if (narrowing && matchMedia("(max-width: 42rem)").matches) narrowing.open = false;
