// Draws the plots and the scatter of any two directions. It loads nothing.
(() => {
  "use strict";
  const dark = matchMedia("screen and (prefers-color-scheme: dark)");
  const read = (id) => {
    const source = document.getElementById(id);
    return source && JSON.parse(source.textContent);
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // Plotly reads a small HTML in its labels.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const options = {responsive: true, displayModeBar: false};

  // Plots that were made with the page.
  const palette = new Map(read("palette") || []);
  const recolour = (key, value) => (dark.matches && palette.get(value)) || value;
  const drawFigures = () => {
    for (const source of document.querySelectorAll("script[data-figure]")) {
      const figure = JSON.parse(source.textContent, recolour);
      Plotly.react(document.getElementById(source.dataset.figure), figure.data, figure.layout, options);
    }
  };

  // The scatter: any two directions, coloured by any column.
  const SERIES = ["blue", "orange", "teal", "purple", "ochre", "rose"];
  const SYMBOLS = ["circle", "diamond", "square"];
  const MAX_KINDS = 12;
  const sample = read("scatter-data");
  const chosen = (id) => Number(document.getElementById(id).value);
  const markers = (rows, x, y, column, style, name) => ({
    type: "scatter", mode: "markers", name: plain(name),
    x: rows.map((row) => x[row]), y: rows.map((row) => y[row]),
    marker: {size: 5, opacity: 0.6, ...style},
    hovertext: rows.map((row) => [
      plain(sample.ids[row]), `${x[row]}, ${y[row]}`,
      column && plain(`${column.name}: ${column.numbers ? column.numbers[row] : column.categories[column.codes[row]]}`),
    ].filter(Boolean).join("<br>")),
    hoverinfo: "text",
  });
  const traces = (x, y, column) => {
    const all = sample.ids.map((_, row) => row);
    if (!column) return [markers(all, x, y, null, {color: colour("blue")}, "rows")];
    if (column.numbers) {
      const known = all.filter((row) => column.numbers[row] !== null);
      const colours = known.map((row) => column.numbers[row]);
      const sorted = [...colours].sort((a, b) => a - b);
      const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
      return [markers(known, x, y, column, {
        color: colours, cmin: at(0.02), cmax: at(0.98), showscale: true,
        colorscale: [[0, colour("orange")], [0.5, colour("grey")], [1, colour("blue")]],
        colorbar: {thickness: 10, outlinewidth: 0, tickfont: {color: colour("muted")}},
      }, column.name)];
    }
    const shown = column.categories.slice(0, MAX_KINDS).map((name, kind) => markers(
      all.filter((row) => column.codes[row] === kind), x, y, column,
      {color: colour(SERIES[kind % SERIES.length]), symbol: SYMBOLS[Math.floor(kind / SERIES.length)]}, name,
    ));
    const rest = all.filter((row) => column.codes[row] >= MAX_KINDS);
    if (rest.length) shown.push(markers(rest, x, y, column, {color: colour("grey"), symbol: "x"}, "others"));
    return shown;
  };
  const drawScatter = () => {
    const [i, j] = [chosen("scatter-x"), chosen("scatter-y")];
    const column = sample.columns[chosen("scatter-colour")];
    const axis = (k) => ({
      title: {text: `score on ${plain(sample.names[k])}`, font: {color: colour("muted"), size: 13}},
      gridcolor: colour("rule"), zeroline: true, zerolinecolor: colour("grey"), zerolinewidth: 1,
      tickfont: {color: colour("muted")}, automargin: true, fixedrange: true,
    });
    const place = document.getElementById("plot-scores");
    const several = Boolean(column && column.categories);
    Plotly.react(place, traces(sample.scores[i], sample.scores[j], column), {
      height: 480, margin: {l: 8, r: 12, t: 12, b: 8}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: {family: "system-ui, sans-serif", size: 13, color: colour("ink")},
      hoverlabel: {bgcolor: colour("panel"), bordercolor: colour("rule"), font: {color: colour("ink")}, align: "left"},
      xaxis: axis(i), yaxis: axis(j), dragmode: false, hovermode: "closest", showlegend: several,
      legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0, itemsizing: "constant"},
    }, options);
    const by = column ? `, coloured by ${column.name}` : "";
    place.setAttribute("aria-label", `Scores of rows on ${sample.names[i]} and ${sample.names[j]}${by}`);
  };

  const draw = () => {
    if (!window.Plotly) return;
    drawFigures();
    if (sample) drawScatter();
  };
  if (sample) {
    for (const id of ["scatter-x", "scatter-y", "scatter-colour"]) {
      document.getElementById(id).addEventListener("change", drawScatter);
    }
  }
  dark.addEventListener("change", draw);
  draw();
})();
