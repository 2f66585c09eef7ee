// Four charts of the last five minutes, a point for each second that the page has seen.

import uPlot from "./vendor/uplot.js";
import { at, el, text } from "./dom.js";
import { milliseconds, number, when } from "./words.js";

const KEPT = 300;
/** Seconds that are shown at least. */
const LEAST = 60;
const HEIGHT = 132;
const CHARTS = [
  { title: "Tokens per second", format: (v) => number(v, v > 0 && v < 10 ? 1 : 0), floor: 1,
    series: [["answers", "first"], ["prompts", "second"]] },
  { title: "Requests", format: (v) => number(v), floor: 4, series: [["running", "first"], ["waiting", "second"]] },
  { title: "Time to first token", format: milliseconds, floor: 1, series: [["median", "first"], ["95 %", "second"]] },
  { title: "Between two tokens", format: milliseconds, floor: 1, series: [["median", "first"], ["95 %", "second"]] },
];

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

class Chart {
  constructor(about) {
    this.about = about;
    this.data = [[], ...about.series.map(() => [])];
    this.values = about.series.map(([, name]) => {
      const value = el("span", { class: "value" }, "–");
      value.style.setProperty("--swatch", `var(--${name})`);
      return value;
    });
    const legend = about.series.map(([title], n) => el("span", {}, this.values[n], ` ${title}`));
    this.plot = el("div", { class: "plot", "aria-hidden": "true" });
    this.node = el("figure", { class: "panel chart" }, el("figcaption", {}, el("h3", {}, about.title), legend), this.plot);
  }

  draw() {
    this.chart?.destroy();
    const axis = { stroke: color("muted"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const format = (_, values) => values.map((value) => (value === null ? "" : this.about.format(value)));
    this.chart = new uPlot({
      width: Math.max(160, this.plot.clientWidth), height: HEIGHT, legend: { show: false }, cursor: { show: false },
      scales: { x: { range: (_, low, high) => [high - Math.min(KEPT, Math.max(LEAST, high - low)), high] }, y: { range: (_, low, high) => [0, Math.max(this.about.floor, (high ?? 0) * 1.15)] } },
      axes: [{ ...axis, space: 64, size: 22, grid: { show: false }, values: (_, times) => times.map((time) => when(time).slice(-8, -3)) }, { ...axis, size: 58, space: 28, values: format }],
      series: [{}, ...this.about.series.map(([, name]) => ({ stroke: color(name), width: 1.5, points: { show: false } }))],
    }, this.data, this.plot);
  }

  add(time, values) {
    [time, ...values].forEach((value, n) => {
      this.data[n].push(value ?? null);
      if (this.data[n].length > KEPT) this.data[n].shift();
    });
    values.forEach((value, n) => text(this.values[n], value === null ? "–" : this.about.format(value)));
    if (this.plot.clientWidth) {
      if (!this.chart) this.draw();
      else this.chart.setData(this.data);
    }
  }

  fit() {
    if (this.chart && this.plot.clientWidth) this.chart.setSize({ width: this.plot.clientWidth, height: HEIGHT });
  }
}

const charts = CHARTS.map((about) => new Chart(about));
let before = null;

/** Once: put them on the page. */
export function show() {
  at("charts").append(...charts.map((chart) => chart.node));
  new ResizeObserver(() => charts.forEach((chart) => chart.fit())).observe(at("charts"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.chart && chart.draw()));
}

/** One more point, from an answer of ui/state. */
export function add(state) {
  const now = Date.now() / 1000;
  const lately = state.lately;
  const rate = (name) => {
    const grown = before ? lately[name] - before.lately[name] : null;
    return grown === null || grown < 0 ? null : grown / (now - before.now);
  };
  const waiting = Object.values(state.queued).reduce((sum, count) => sum + count, 0);
  const points = [
    [rate("completion_tokens"), rate("prompt_tokens")],
    [state.slots.active, waiting],
    [lately.ttft_ms.p50, lately.ttft_ms.p95],
    [lately.token_gap_ms.p50, lately.token_gap_ms.p95],
  ];
  charts.forEach((chart, n) => chart.add(now, points[n]));
  before = { now, lately };
}
