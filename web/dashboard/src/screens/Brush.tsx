// A chart on which a range of time is chosen by dragging over it. The same is reached by fields or buttons beside it.
import { useSignal } from "@preact/signals";
import type { ComponentChildren, JSX } from "preact";
import { useRef } from "preact/hooks";
import { type Range, chosen } from "../lanes.ts";

/** Pixels from which a press is a drag and not a click. */
const DRAG_PX = 6;

interface Drag {
  /** The part of the chart that has the time axis, and the range that it shows: it may follow the present meanwhile. */
  area: DOMRect;
  range: Range;
  begin: number;
  end: number;
  isDrag: boolean;
}

/** `area` selects the elements that are as wide as the time axis. */
export function Brush({ area, range, onRange, children }: { area: string; range: Range; onRange: (range: Range) => void; children: ComponentChildren }): JSX.Element {
  const drag = useSignal<Drag | null>(null);
  const box = useRef<HTMLDivElement>(null);
  const down = (event: PointerEvent): void => {
    const found = event.button === 0 ? (event.target as Element).closest(area) : null;
    drag.value = found ? { area: found.getBoundingClientRect(), range, begin: event.clientX, end: event.clientX, isDrag: false } : null;
  };
  const move = (event: PointerEvent): void => {
    const known = drag.value;
    if (!known) return;
    const isDrag = known.isDrag || Math.abs(event.clientX - known.begin) >= DRAG_PX;
    // The end of a drag is no click on what lies under it.
    if (isDrag && !known.isDrag) box.current?.setPointerCapture(event.pointerId);
    drag.value = { ...known, end: event.clientX, isDrag };
  };
  const up = (): void => {
    const known = drag.value;
    drag.value = null;
    if (known?.isDrag) onRange(chosen(known.range, share(known, known.begin), share(known, known.end)));
  };
  const left = box.current?.getBoundingClientRect().left ?? 0;
  const shown = drag.value?.isDrag ? drag.value : null;
  return (
    <div ref={box} class="brush" onPointerDown={down} onPointerMove={move} onPointerUp={up} onPointerCancel={() => (drag.value = null)}>
      {children}
      {shown ? <span class="brush-range" style={{ left: `${clamped(shown, Math.min(shown.begin, shown.end)) - left}px`, width: `${Math.abs(clamped(shown, shown.end) - clamped(shown, shown.begin))}px` }} /> : null}
    </div>
  );
}

function clamped({ area }: Drag, x: number): number {
  return Math.min(area.right, Math.max(area.left, x));
}

function share(drag: Drag, x: number): number {
  return (clamped(drag, x) - drag.area.left) / Math.max(1, drag.area.width);
}
