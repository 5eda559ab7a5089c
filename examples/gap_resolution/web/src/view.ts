/** Where somebody was on the page: kept on this device with the session, never sent. */

import type { LocalValue } from "reattach";

export interface View {
  /** The open gap's id; "" behind the last one. */
  gap: string;
  /** The id of the element that had the focus, where it was one of the form's. */
  focus: string | null;
  selection: readonly [start: number, end: number] | null;
  scroll: number;
}

/** Puts the page back to where it was. */
export function restoreView(view: View): void {
  const field = view.focus === null ? null : document.getElementById(view.focus);
  field?.focus({ preventScroll: true });
  if (view.selection && isText(field)) field.setSelectionRange(...view.selection);
  window.scrollTo({ top: view.scroll, behavior: "instant" });
}

/** Keeps where somebody is, as often as it changes; answers how to stop that. */
export function keepView(local: LocalValue<View>, gap: () => string): () => void {
  const keep = () => {
    const { activeElement: active } = document;
    const inForm = active instanceof HTMLElement && active.closest("#question") !== null;
    // Between two pages of a browser that is being closed nothing has the focus.
    if (!document.hasFocus() && !inForm) return;
    local.set({
      gap: gap(),
      focus: inForm && active.id !== "" ? active.id : null,
      selection:
        inForm && isText(active) ? [active.selectionStart ?? 0, active.selectionEnd ?? 0] : null,
      scroll: window.scrollY,
    });
  };
  const events = ["selectionchange", "focusin", "focusout", "scroll", "input"] as const;
  for (const event of events) document.addEventListener(event, keep, { passive: true });
  return () => {
    for (const event of events) document.removeEventListener(event, keep);
  };
}

function isText(element: Element | null): element is HTMLInputElement | HTMLTextAreaElement {
  return (
    element instanceof HTMLTextAreaElement ||
    (element instanceof HTMLInputElement && element.type === "text")
  );
}
