// The guide's chart: points ordered by event time, a break where time is missing, and a table as the accessible
// alternative. If there are more points a second than fit, it draws means and ranges of 100 ms.
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { Buckets, type EventRing, type Point } from "./EventRing.ts";

const BUCKET_MS = 100;
const BUCKETS_MAX = 300;
/** Factor of the usual distance of points above which the line has a break. */
const GAP_FACTOR = 8;
const HEIGHT = 200;

export class RealTimeChartWidget {
  readonly #buckets = new Buckets(BUCKET_MS, BUCKETS_MAX);
  readonly #arrivals: number[] = [];
  #plot: uPlot | undefined;
  #dense = false;
  readonly #resize: ResizeObserver;

  constructor(
    readonly element: HTMLElement,
    readonly ring: EventRing,
  ) {
    this.#resize = new ResizeObserver(() => this.#fit());
    this.#resize.observe(element);
  }

  /** Adds a live point, so that a fast stream is drawn in time steps. */
  add(point: Point): void {
    this.#buckets.add(point);
    this.#arrivals.push(performance.now());
    if (this.#arrivals.length > this.ring.max) this.#arrivals.shift();
  }

  /** Draws the current points of the ring. */
  draw(): void {
    const dense = this.#isDense();
    if (dense !== this.#dense || !this.#plot) this.#make(dense);
    if (dense) {
      const [xs, means, lows, highs] = this.#buckets.series();
      this.#plot?.setData([xs, means, lows, highs]);
    } else {
      const [xs, ys] = this.ring.pairs(this.#gapMs());
      this.#plot?.setData([xs, ys]);
    }
  }

  /** Returns one sentence that describes the line. */
  summary(): string {
    const values = this.ring.points.map((point) => point.value);
    if (!values.length) return "No values yet.";
    const show = (value: number): string => value.toLocaleString(undefined, { maximumFractionDigits: 1 });
    return `${values.length} values from ${show(Math.min(...values))} to ${show(Math.max(...values))}, last ${show(values.at(-1) ?? 0)}.`;
  }

  /** Recreates the chart with the colours of the current theme. */
  restyle(): void {
    this.#make(this.#dense);
    this.draw();
  }

  close(): void {
    this.#resize.disconnect();
    this.#plot?.destroy();
  }

  // Dense: the ring would cover less than a second.
  #isDense(): boolean {
    const first = this.#arrivals[0];
    return this.#arrivals.length >= this.ring.max && first !== undefined && performance.now() - first < 1000;
  }

  #gapMs(): number {
    const { points } = this.ring;
    const steps = points.slice(1).map((point, i) => point.at - (points[i]?.at ?? 0)).sort((a, b) => a - b);
    const usual = steps[Math.floor(steps.length / 2)] ?? 0;
    return usual > 0 ? Math.max(usual * GAP_FACTOR, 2000) : Infinity;
  }

  #make(dense: boolean): void {
    this.#dense = dense;
    this.#plot?.destroy();
    const style = getComputedStyle(this.element);
    const [text, line] = [style.color, style.borderTopColor];
    const accent = style.outlineColor;
    const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "11px system-ui" };
    const faint = { stroke: accent, width: 1, alpha: 0.35, points: { show: false } };
    this.#plot = new uPlot(
      {
        width: Math.max(this.element.clientWidth, 120),
        height: HEIGHT,
        legend: { show: false },
        cursor: { drag: { x: false, y: false } },
        axes: [axis, { ...axis, size: 46 }],
        series: [{}, { stroke: accent, width: 2, spanGaps: false, points: { show: !dense, size: 4, stroke: accent, fill: accent } }, ...(dense ? [faint, faint] : [])],
      },
      dense ? [[], [], [], []] : [[], []],
      this.element,
    );
  }

  #fit(): void {
    const width = Math.max(this.element.clientWidth, 120);
    if (this.#plot && Math.abs(this.#plot.width - width) > 1) this.#plot.setSize({ width, height: HEIGHT });
  }
}
