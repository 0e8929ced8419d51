// Filters that a person has named. They stay in this browser; a link copies one to another person.
import { signal } from "@preact/signals";

export interface View {
  name: string;
  /** The query of the list, without `?`. */
  query: string;
}

const VIEWS_MAX = 50;
const key = (org: string): string => `views ${org}`;

function stored(org: string): View[] {
  try {
    const read: unknown = JSON.parse(localStorage.getItem(key(org)) ?? "[]");
    if (!Array.isArray(read)) return [];
    return read.flatMap((one: Partial<View> | null) => (typeof one?.name === "string" && typeof one.query === "string" ? [{ name: one.name, query: one.query }] : []));
  } catch {
    // Edited by hand, or by a version to come.
    return [];
  }
}

export const views = signal<{ org: string; list: View[] }>({ org: "", list: [] });

/** The views of an org. */
export function viewsOf(org: string): View[] {
  return views.value.org === org ? views.value.list : stored(org);
}

function keep(org: string, list: View[]): void {
  localStorage.setItem(key(org), JSON.stringify(list));
  views.value = { org, list };
}

/** Saves a view; one of the same name is replaced. */
export function saveView(org: string, view: View): void {
  keep(org, [...viewsOf(org).filter(({ name }) => name !== view.name), view].slice(-VIEWS_MAX));
}

export function removeView(org: string, name: string): void {
  keep(org, viewsOf(org).filter((view) => view.name !== name));
}
