/**
 * One line that makes an HTML form survive.
 *
 * @packageDocumentation
 */

import { ReattachError } from "./core/errors.js";
import { isObject, type Json, type JsonObject } from "./core/json.js";
import { byId, child, format, parse } from "./core/pointer.js";
import { carryPosition, carrySplice, spliceBetween } from "./core/typing.js";
import type { Session } from "./session.js";

export { carryPosition, carrySplice, type Splice, spliceBetween } from "./core/typing.js";

type Field = HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement;
type TextField = HTMLInputElement | HTMLTextAreaElement;

/** Inputs into which text is typed; the others hold one value, which is set as a whole. */
const TYPED = new Set(["text", "search", "url", "tel", "email", "textarea"]);
/**
 * What a form has and a session does not keep: secrets, files, which no page can put back, and what
 * no user fills in.
 */
const LEFT_OUT = new Set(["password", "file", "hidden", "submit", "button", "reset", "image"]);

/**
 * Binds a form's fields to the object at `path` (a JSON Pointer) in a session's state, both ways:
 * what is typed is there after a crash, and on every other device while it is typed. Returns what
 * ends it.
 *
 * ```ts
 * bindForm(document.querySelector("form"), session, "/order");
 * ```
 *
 * Each field stands under its `name`:
 *
 * | field | in the state |
 * | --- | --- |
 * | text, search, url, tel, email, textarea | its text, edited by splices: two people may type at once |
 * | number, range, date, time, color, … | its value, a string as the form would send it |
 * | select, radio | the chosen value; `null` where no radio is |
 * | checkbox | `true` or `false`; of several with one name, an object {value: true or false} |
 * | select multiple | an object {value: true or false} |
 *
 * Passwords, files and hidden fields are left out, and whatever has no name or is marked
 * `data-reattach="off"`; `contenteditable` too: what is in one is a document, not a value. Fields may
 * come and go while it is bound. What was typed before the session was ready is kept.
 *
 * Throws a `ReattachError` (`not_bound`) where there is no object at `path`: begin with one, as in
 * `create: { state: { order: {} } }`. Before `session.ready` that is said on the console, later.
 */
export function bindForm(form: HTMLFormElement, session: Session, path = ""): () => void {
  return new Binding(form, session, path).start();
}

class Binding {
  readonly #form: HTMLFormElement;
  readonly #session: Session;
  readonly #path: string;
  /** What each text field shows, and its user has seen. */
  readonly #shown = new WeakMap<TextField, string>();
  /** Fields that were changed before there was a state to change. */
  readonly #early = new Set<Field>();
  #composing: TextField | null = null;
  #ready = false;
  #over = false;

  constructor(form: HTMLFormElement, session: Session, path: string) {
    this.#form = form;
    this.#session = session;
    this.#path = format(parse(path));
  }

  start(): () => void {
    const { ownerDocument: page } = this.#form;
    // Not at the form: a field may belong to it from elsewhere on the page.
    const on = new AbortController();
    const { signal } = on;
    const listen = (type: string, told: (field: Field, event: Event) => void) =>
      page.addEventListener(
        type,
        (event) => {
          const field = event.target as Field;
          if (field.form === this.#form && isKept(field)) told(field, event);
        },
        { signal, capture: true },
      );
    listen("input", (field, event) => {
      const composing = event instanceof InputEvent && event.isComposing;
      this.#composing = composing ? asTyped(field) : null;
      if (!composing) this.#tell(field);
    });
    listen("compositionend", (field) => {
      this.#composing = null;
      this.#tell(field);
      // What others did meanwhile, where nothing was composed in the end.
      this.#show();
    });
    this.#form.addEventListener(
      "reset",
      // The fields have their first values once everybody was told of it.
      () =>
        setTimeout(() => {
          for (const field of this.#over ? [] : this.#fields()) this.#tell(field);
        }),
      { signal },
    );
    const changes = new MutationObserver(() => this.#show());
    changes.observe(this.#form, { childList: true, subtree: true });
    const unsubscribe = this.#session.subscribe(() => this.#show());

    if (this.#isReady()) this.#begin();
    else {
      this.#session.ready.then(
        () => this.#over || this.#begin(),
        () => {}, // told by `session.ready`
      );
    }
    return () => {
      this.#over = true;
      on.abort();
      changes.disconnect();
      unsubscribe();
    };
  }

  #isReady(): boolean {
    try {
      return this.#session.state !== undefined;
    } catch {
      return false;
    }
  }

  #begin(): void {
    if (!isObject(this.#values())) {
      throw new ReattachError(
        "not_bound",
        `expected an object at "${this.#path}" in the state: begin with one, as in create: { state: … }`,
      );
    }
    this.#ready = true;
    for (const field of this.#fields()) {
      const touched = this.#early.has(field) || this.#value(field) === undefined;
      // Also what the browser put back by itself, where the session knows of nothing.
      if (touched && !isAsWritten(field)) this.#tell(field);
    }
    this.#early.clear();
    this.#show();
  }

  // ── From the state to the fields ───────────────────────────────────────────────────────────────

  #show(): void {
    if (!this.#ready || this.#over) return;
    for (const field of this.#fields()) {
      const value = this.#value(field);
      if (value === undefined || field === this.#composing) continue;
      const text = asTyped(field);
      if (text) this.#showText(text, asText(value));
      else if (field instanceof HTMLSelectElement) showSelect(field, value);
      else if (field instanceof HTMLInputElement) this.#showInput(field, value);
    }
  }

  #showInput(field: HTMLInputElement, value: Json): void {
    if (field.type === "radio") field.checked = value === field.value;
    else if (field.type === "checkbox") {
      const own = this.#isOneOfSeveral(field) ? partOf(value, field.value) : value;
      field.checked = own === true;
    } else if (field.value !== asText(value)) field.value = asText(value);
  }

  #showText(field: TextField, next: string): void {
    const { value: before, selectionStart, selectionEnd, selectionDirection } = field;
    this.#shown.set(field, next);
    if (before === next) return;
    field.value = next;
    // Some kinds of field have no selection that a page may see.
    if (selectionStart === null || selectionEnd === null) return;
    if (field !== field.ownerDocument.activeElement) return;
    field.setSelectionRange(
      carryPosition(selectionStart, before, next),
      carryPosition(selectionEnd, before, next),
      selectionDirection ?? undefined,
    );
  }

  // ── From the fields to the state ───────────────────────────────────────────────────────────────

  #tell(field: Field): void {
    if (!this.#ready) {
      this.#early.add(field);
      return;
    }
    const path = this.#path + format([field.name]);
    const value = this.#value(field);
    const text = asTyped(field);
    if (text) return this.#tellText(text, path, value);
    if (field instanceof HTMLInputElement && field.type === "radio") {
      const chosen = this.#named(field.name).find((one) => one.checked);
      return this.#set(path, value, chosen?.value ?? null);
    }
    if (field instanceof HTMLInputElement && field.type === "checkbox") {
      if (!this.#isOneOfSeveral(field)) return this.#set(path, value, field.checked);
      const boxes = this.#named(field.name);
      return this.#setParts(
        path,
        value,
        boxes.map((one) => [one.value, one.checked]),
      );
    }
    if (field instanceof HTMLSelectElement && field.multiple) {
      const options = [...field.options];
      return this.#setParts(
        path,
        value,
        options.map((one) => [one.value, one.selected]),
      );
    }
    this.#set(path, value, field.value);
  }

  #tellText(field: TextField, path: string, value: Json | undefined): void {
    const now = field.value;
    if (typeof value !== "string" && (value !== undefined || field.defaultValue !== "")) {
      // No text yet, or one that begins with what the page says: whoever types first, sets it.
      this.#shown.set(field, now);
      return this.#set(path, value, now);
    }
    const before = this.#shown.get(field) ?? (value === undefined ? "" : field.defaultValue);
    const splice = spliceBetween(before, now, field.selectionEnd ?? now.length);
    this.#shown.set(field, now);
    if (splice === null) return;
    for (const { index, remove, insert } of carrySplice(splice, before, value ?? "")) {
      this.#session.splice(path, index, remove, insert);
    }
  }

  #set(path: string, before: Json | undefined, value: Json): void {
    if (before !== value) this.#session.set(path, value);
  }

  /** Each by itself, so that two people may choose at once. */
  #setParts(
    path: string,
    before: Json | undefined,
    parts: readonly (readonly [string, boolean])[],
  ): void {
    if (!isObject(before)) {
      this.#session.set(path, Object.fromEntries(parts));
      return;
    }
    for (const [name, chosen] of parts) {
      this.#set(path + format([name]), partOf(before, name) ?? false, chosen);
    }
  }

  // ── What there is ──────────────────────────────────────────────────────────────────────────────

  #fields(): Field[] {
    return ([...this.#form.elements] as Field[]).filter(isKept);
  }

  #named(name: string): HTMLInputElement[] {
    return this.#fields().filter((one) => one.name === name) as HTMLInputElement[];
  }

  #isOneOfSeveral(field: HTMLInputElement): boolean {
    return this.#named(field.name).length > 1;
  }

  #values(): Json | undefined {
    let value = this.#session.state as Json | undefined;
    for (const token of parse(this.#path)) value = child(value, token, byId, this.#path);
    return value;
  }

  #value(field: Field): Json | undefined {
    return partOf(this.#values(), field.name);
  }
}

function isKept(field: Field): boolean {
  return (
    field.name !== "" &&
    field.dataset.reattach !== "off" &&
    (field instanceof HTMLTextAreaElement ||
      field instanceof HTMLSelectElement ||
      (field instanceof HTMLInputElement && !LEFT_OUT.has(field.type)))
  );
}

/** The field, if text is typed into it. */
function asTyped(field: Field): TextField | null {
  return TYPED.has(field.type) ? (field as TextField) : null;
}

/** Whether a field has the value that the page's HTML gives it. */
function isAsWritten(field: Field): boolean {
  if (field instanceof HTMLSelectElement) {
    const options = [...field.options];
    const said = options.some((one) => one.defaultSelected);
    if (!said && !field.multiple) return field.selectedIndex <= 0;
    return options.every((one) => one.selected === one.defaultSelected);
  }
  if (field.type === "checkbox" || field.type === "radio") {
    return (field as HTMLInputElement).checked === (field as HTMLInputElement).defaultChecked;
  }
  return field.value === field.defaultValue;
}

function showSelect(field: HTMLSelectElement, value: Json): void {
  if (field.multiple) {
    for (const one of field.options) one.selected = partOf(value, one.value) === true;
  } else if (field.value !== value && [...field.options].some((one) => one.value === value)) {
    // What is no choice of this page's stays in the state, and the field as it is.
    field.value = value as string;
  }
}

function partOf(value: Json | undefined, name: string): Json | undefined {
  return isObject(value) && Object.hasOwn(value, name) ? (value as JsonObject)[name] : undefined;
}

function asText(value: Json): string {
  return typeof value === "string" ? value : value === null ? "" : JSON.stringify(value);
}
