/**
 * Renders `items` as the children of `parent`, in order. An element is reused by its key and drawn again only if its
 * `version` changed, so focus, selection and scroll position are kept.
 */
export function renderList<T>(
  parent: HTMLElement,
  items: readonly T[],
  key: (item: T) => string,
  version: (item: T) => string,
  draw: (item: T, element: HTMLElement) => void,
  tag: keyof HTMLElementTagNameMap = "li",
): void {
  const old = new Map([...parent.children].map((child) => [(child as HTMLElement).dataset.key ?? "", child as HTMLElement]));
  let at: Element | null = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    const known = old.get(name);
    const element = known ?? document.createElement(tag);
    old.delete(name);
    element.dataset.key = name;
    const drawn = version(item);
    if (element.dataset.version !== drawn) {
      element.dataset.version = drawn;
      element.replaceChildren();
      draw(item, element);
    }
    if (element === at) at = at.nextElementSibling;
    else parent.insertBefore(element, at);
  }
  for (const gone of old.values()) gone.remove();
}
