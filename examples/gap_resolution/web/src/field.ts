/** One form field for a gap: the kind of input that its schema asks for. */

import { attribute, h } from "./dom";
import type { GapShown } from "./state";

export interface Field {
  readonly element: HTMLElement;
  /** What gets the focus. */
  readonly input: HTMLElement;
  /** Shows what is typed, here or on another device. */
  show(draft: string, wrong: boolean): void;
}

export interface Typing {
  /** Another character, or another choice. */
  typed(value: string): void;
  /** The value was chosen as a whole, or the field was left. */
  done(): void;
  next(): void;
}

/** `describedBy`: the ids of what explains the field. */
export function makeField(gap: GapShown, describedBy: string, on: Typing): Field {
  return gap.kind === "choice"
    ? choiceField(gap, describedBy, on)
    : textField(gap, describedBy, on);
}

type Input = HTMLInputElement | HTMLTextAreaElement;

function textField(gap: GapShown, describedBy: string, on: Typing): Field {
  const common = {
    id: "answer",
    name: gap.id,
    "aria-labelledby": "title",
    "aria-describedby": describedBy,
    // What a browser remembers of other forms is not the answer to this question.
    autocomplete: "off",
    ...(gap.kind !== "long" &&
      gap.kind !== "text" && { autocapitalize: "off", spellcheck: "false" }),
  };
  const long = gap.kind === "long" || gap.kind === "list";
  const input: Input = long
    ? h("textarea", { ...common, rows: gap.kind === "long" ? 7 : 5 })
    : h("input", { ...common, ...inputOf(gap) });
  input.addEventListener("input", () => on.typed(input.value));
  input.addEventListener("change", () => on.done());
  input.addEventListener("keydown", (event) => {
    const { key, ctrlKey, metaKey, isComposing } = event as KeyboardEvent;
    if (key !== "Enter" || isComposing || (long && !ctrlKey && !metaKey)) return;
    event.preventDefault();
    on.next();
  });
  return {
    element: h("div", { class: "field" }, input, extra(gap, input, on)),
    input,
    show(draft, wrong) {
      if (input.value !== draft) replace(input, draft);
      attribute(input, "aria-invalid", wrong ? "true" : null);
    },
  };
}

function inputOf(gap: GapShown): Record<string, unknown> {
  switch (gap.kind) {
    case "url":
      return { type: "url", inputmode: "url" };
    case "email":
      return { type: "email", inputmode: "email" };
    case "number":
      return { type: "text", inputmode: "decimal" };
    case "date":
      // A date field keeps half a date to itself, and half a date is to be kept as well: the
      // calendar stands beside a field for text.
      return { type: "text", placeholder: "YYYY-MM-DD", maxlength: 40 };
    case "search":
      return { type: "text", list: "choices" };
    default:
      return { type: "text" };
  }
}

function extra(gap: GapShown, input: Input, on: Typing): HTMLElement | null {
  if (gap.kind === "search") {
    const options = (gap.choices ?? []).map((value) => h("option", { value }));
    return h("datalist", { id: "choices" }, ...options);
  }
  if (gap.kind !== "date" || !("showPicker" in HTMLInputElement.prototype)) return null;
  const picker = h("input", { type: "date", class: "picker", tabindex: -1, "aria-hidden": "true" });
  picker.addEventListener("change", () => {
    on.typed(picker.value);
    on.done();
    input.focus();
  });
  const button = h("button", { type: "button", class: "quiet", text: "Calendar" });
  button.addEventListener("click", () => {
    picker.value = /^\d{4}-\d\d-\d\d$/.test(input.value) ? input.value : "";
    picker.showPicker();
  });
  return h("span", { class: "calendar" }, button, picker);
}

/** Another device's typing, with the caret left where it was. */
function replace(input: Input, value: string): void {
  const { activeElement } = document;
  // An email field tells nobody where its caret is.
  const [start, end] =
    activeElement === input ? [input.selectionStart, input.selectionEnd] : [null, null];
  input.value = value;
  if (start !== null && end !== null) input.setSelectionRange(start, end);
}

function choiceField(gap: GapShown, describedBy: string, on: Typing): Field {
  const radios = (gap.choices ?? []).map((value) =>
    h("input", {
      type: "radio",
      name: gap.id,
      value,
      onchange: () => {
        on.typed(value);
        on.done();
      },
      onkeydown: (event: KeyboardEvent) => {
        if (event.key !== "Enter") return;
        event.preventDefault();
        on.next();
      },
    }),
  );
  const element = h(
    "div",
    {
      class: "choices",
      role: "radiogroup",
      "aria-labelledby": "title",
      "aria-describedby": describedBy,
    },
    ...radios.map((radio) => h("label", {}, radio, radio.value)),
  );
  return {
    element,
    input: radios[0] ?? element,
    show(draft, wrong) {
      for (const radio of radios) radio.checked = radio.value === draft;
      attribute(element, "aria-invalid", wrong ? "true" : null);
    },
  };
}
