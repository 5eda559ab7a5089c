/** A text field for several people at once: each keeps every key and their own caret. */

import { type RefObject, useLayoutEffect, useRef, useState } from "react";
import { carryPosition } from "reattach/form";

/** Somebody made `after` of what the field showed; `caret` is where their selection ends now. */
export type Typed = (before: string, after: string, caret: number) => void;

export interface TextProps<T> {
  ref: RefObject<T | null>;
  defaultValue: string;
  onInput(event: { nativeEvent: Event }): void;
  onCompositionEnd(): void;
}

/**
 * Shows `text` in a field of its own keeping: what others do to the text is put in around the caret,
 * and not into a word that an input method is still composing.
 */
export function useText<T extends HTMLInputElement | HTMLTextAreaElement>(
  text: string,
  typed: Typed,
): TextProps<T> {
  const ref = useRef<T>(null);
  const [first] = useState(text);
  /** What the field shows, and its user has seen. */
  const shown = useRef(first);
  const composing = useRef(false);
  const newest = useRef(text);
  newest.current = text;

  const show = () => {
    const { current: field } = ref;
    const { current: next } = newest;
    if (!field || composing.current) return;
    const { value: before, selectionStart, selectionEnd, selectionDirection } = field;
    shown.current = next;
    if (before === next) return;
    field.value = next;
    if (field !== document.activeElement) return;
    field.setSelectionRange(
      carryPosition(selectionStart ?? 0, before, next),
      carryPosition(selectionEnd ?? 0, before, next),
      selectionDirection ?? undefined,
    );
  };
  // biome-ignore lint/correctness/useExhaustiveDependencies: a new text is what is to be shown
  useLayoutEffect(show, [text]);

  const tell = () => {
    const { current: field } = ref;
    if (!field) return;
    const before = shown.current;
    shown.current = field.value;
    if (before !== field.value) {
      typed(before, field.value, field.selectionEnd ?? field.value.length);
    }
  };
  return {
    ref,
    defaultValue: first,
    onInput({ nativeEvent }) {
      composing.current = nativeEvent instanceof InputEvent && nativeEvent.isComposing;
      if (!composing.current) tell();
    },
    onCompositionEnd() {
      composing.current = false;
      tell();
      // What came meanwhile, where nothing was composed in the end.
      show();
    },
  };
}
