// Draws the trace from data in the page: the figure and the spans of its views.
const plot = document.getElementById("trace");
const choice = document.getElementById("view");
const figure = JSON.parse(document.getElementById("figure").textContent);
const spans = JSON.parse(document.getElementById("spans").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function colours() {
  const style = getComputedStyle(document.body);
  return {
    "font.color": style.color,
    "hoverlabel.bgcolor": style.backgroundColor,
    "hoverlabel.font.color": style.color,
    "hoverlabel.bordercolor": style.color,
  };
}

function show(number) {
  choice.value = number;
  Plotly.relayout(plot, { "xaxis.range": [...spans[number]] });
}

figure.layout.xaxis.range = [...spans[choice.value]];
Plotly.newPlot(plot, figure.data, figure.layout, {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d"]],
}).then(() => Plotly.relayout(plot, colours()));
dark.addEventListener("change", () => Plotly.relayout(plot, colours()));
choice.addEventListener("change", () => show(choice.value));
for (const [id, by] of [["previous", -1], ["next", 1]]) {
  const button = document.getElementById(id);
  button.addEventListener("click", () => show((Number(choice.value) + by + spans.length) % spans.length));
}
plot.on("plotly_doubleclick", () => show(choice.value));
