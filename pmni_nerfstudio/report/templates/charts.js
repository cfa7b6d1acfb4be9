// Charts of curves. Their colors follow the page's, light or dark.
const themeColor = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const drawChart = (host, {lines, alt, xLabel, yLabel, height, logarithmic}) => {
  const width = () => host.clientWidth - 16;  // without the padding
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", alt);
  const font = "12px system-ui, sans-serif", digits = value => value == null ? "" : String(Number(value.toPrecision(4)));
  const make = () => {
    const ink = themeColor("--ink"), axis = label => ({label, font, labelFont: font, labelSize: 20,
      stroke: themeColor("--soft"), grid: {stroke: themeColor("--line"), width: 1}, ticks: {show: false},
      values: (_, ticks) => ticks.map(digits)});
    const series = lines.map(({name, color, dashed, points}) => ({
      label: name, stroke: color ?? ink, width: 1.8, dash: dashed ? [3, 3] : undefined, spanGaps: true,
      points: {show: points}, value: (_, value) => digits(value) || "–",
    }));
    const fromZero = (_, low, high) => [Math.min(0, low), high > 0 ? 1.05 * high : 1];
    const options = {
      width: width(), height,
      scales: {x: {time: false}, y: logarithmic ? {distr: 3} : {range: fromZero}},
      series: [{label: xLabel}, ...series],
      axes: [{...axis(xLabel), size: 34}, {...axis(yLabel || null), size: 56}],
      legend: {show: lines.length > 1, live: true},
    };
    return new libraries.uPlot(options, libraries.uPlot.join(lines.map(({x, y}) => [x, y])), host);
  };
  let chart = make();
  new ResizeObserver(() => chart.setSize({width: width(), height})).observe(host);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { chart.destroy(); chart = make(); });
  host.dataset.drawn = "chart";
};
