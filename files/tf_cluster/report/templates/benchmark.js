// Draws the heat maps of a benchmark from data in the page. The block keeps its names local.
{
  const plot = document.getElementById("links");
  const figure = JSON.parse(document.getElementById("links-figure").textContent);
  const colour = () => ({ "font.color": getComputedStyle(document.body).color });
  const more = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]] };
  Plotly.newPlot(plot, figure.data, figure.layout, more).then(() => Plotly.relayout(plot, colour()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Plotly.relayout(plot, colour()));
}
