/** The little that a page without a framework needs. */

type Child = Node | string | null | undefined | false;

/** An element with properties (`class`, `text`, `on…` included; others are attributes) and children. */
export function h<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  properties: Readonly<Record<string, unknown>> = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[Name] {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value as EventListener);
    else if (key === "text") element.textContent = String(value);
    else attribute(element, key, value);
  }
  element.append(...children.filter((child) => child instanceof Node || typeof child === "string"));
  return element;
}

/** Sets an attribute, or removes it (`false`, `null`, `undefined`); only where that changes it. */
export function attribute(element: Element, name: string, value: unknown): void {
  if (value === false || value === null || value === undefined) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

/** Sets text only where that changes it: screen readers and selections are left in peace. */
export function text(element: Element, value: string): void {
  if (element.textContent !== value) element.textContent = value;
}

export function show(element: HTMLElement, shown: boolean): void {
  if (element.hidden === shown) element.hidden = !shown;
}

/** A painter that runs only when what it paints has changed. */
export function painter<Values extends readonly unknown[]>(
  paint: (...values: Values) => void,
): (...values: Values) => void {
  let before: Values | null = null;
  return (...values) => {
    if (before?.every((value, index) => value === values[index])) return;
    before = values;
    paint(...values);
  };
}
