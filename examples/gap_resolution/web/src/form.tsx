/** The form of a gap, made from its schema. The library does the structure, the looks are ours. */

// Not by the package's own entry, which brings a validator that compiles for its tests.
import Form from "@rjsf/core/lib/components/Form.js";
import type {
  ArrayFieldItemTemplateProps,
  ArrayFieldTemplateProps,
  FieldTemplateProps,
  ObjectFieldTemplateProps,
  RegistryWidgetsType,
  RJSFSchema,
  TemplatesType,
  UiSchema,
  WidgetProps,
} from "@rjsf/utils";
import {
  type ChangeEvent,
  type HTMLAttributes,
  type RefObject,
  useLayoutEffect,
  useMemo,
  useRef,
} from "react";
import { useLocal } from "reattach-react";
import type { GapShown } from "./state";
import { validator } from "./validator";

/** The id of the whole answer; parts of it are called `answer_0_name`. */
export const ANSWER = "answer";

export interface GapFormProps {
  gap: GapShown;
  draft: unknown;
  wrong: boolean;
  /** Another character, or another choice. */
  typed(value: unknown): void;
  /** The value was chosen as a whole: it counts. */
  chosen(): void;
  /** The field was left: what it holds counts. */
  left(): void;
}

interface FormContext {
  gap: GapShown;
  wrong: boolean;
  left(): void;
  /** What comes next is a whole answer: it counts at once. */
  choose(): void;
}

export function GapForm({ gap, draft, wrong, typed, chosen, left }: GapFormProps) {
  const uiSchema = useMemo(() => uiOf(gap), [gap]);
  const schema = useMemo(() => schemaOf(gap), [gap]);
  // The library tells of a choice a moment after it was made: only then it can count.
  const choosing = useRef(false);
  const choose = () => {
    choosing.current = true;
  };
  const formContext: FormContext = { gap, wrong, left, choose };
  return (
    <Form
      tagName="div"
      className="field"
      schema={schema}
      uiSchema={uiSchema}
      formData={dataOf(gap, draft)}
      formContext={formContext}
      idPrefix={ANSWER}
      validator={validator}
      templates={TEMPLATES}
      widgets={WIDGETS}
      noHtml5Validate
      showErrorList={false}
      // Looking at a form writes nothing into it.
      experimental_defaultFormStateBehavior={{
        arrayMinItems: { populate: "never" },
        emptyObjectFields: "skipDefaults",
      }}
      onChange={({ formData }, id) => {
        // Without an id it is the library itself, filling in what nobody has typed.
        if (id === undefined) return;
        typed(formData ?? "");
        if (choosing.current) chosen();
        choosing.current = false;
      }}
    >
      {/* In place of a button of its own: the question has one. */}
      <span hidden />
    </Form>
  );
}

/** A number is typed as text: "1." is none yet, and is kept all the same. */
function schemaOf({ schema, kind }: GapShown): RJSFSchema {
  return kind === "number" ? { type: "string" } : schema;
}

function dataOf(gap: GapShown, draft: unknown): unknown {
  if (gap.kind === "list") return typeof draft === "string" ? lines(draft) : draft;
  if (gap.kind !== "form" || (draft !== "" && draft !== null)) return draft;
  // An empty list of people begins with one to be filled in.
  return gap.schema.type === "array" ? [{}] : {};
}

const UI: Partial<Record<GapShown["kind"], string>> = {
  long: "textarea",
  list: "lines",
  choice: "radio",
  removal: "radio",
  search: "search",
};

function uiOf({ kind }: GapShown): UiSchema {
  if (kind === "form") return { "ui:options": { orderable: false } };
  return { "ui:widget": UI[kind] ?? "text", "ui:emptyValue": "" };
}

// ── Widgets ────────────────────────────────────────────────────────────────────────────────────────

function contextOf({ registry }: WidgetProps): FormContext {
  return registry.formContext as FormContext;
}

/** How the whole answer is called and explained; a part of one has a label of its own. */
function described({ id, schema }: WidgetProps, { wrong }: FormContext) {
  if (id !== ANSWER) {
    return { "aria-describedby": schema.description ? `${id}__description` : undefined };
  }
  return {
    "aria-labelledby": "title",
    "aria-describedby": "description form verdict",
    "aria-invalid": wrong || undefined,
  };
}

const KEYBOARD: Partial<Record<GapShown["kind"], HTMLAttributes<HTMLElement>["inputMode"]>> = {
  url: "url",
  email: "email",
  number: "decimal",
};

function TextWidget(props: WidgetProps) {
  const { id, value, onChange, options } = props;
  const context = contextOf(props);
  const { gap } = context;
  const root = id === ANSWER;
  const shown = String(value ?? "");
  const { ref, ...caret } = useCaret<HTMLInputElement>(shown);
  const input = (
    <input
      ref={ref}
      id={id}
      // Of type "text" whatever it holds: an email field keeps its caret to itself, a date field
      // half a date.
      type="text"
      inputMode={root ? KEYBOARD[gap.kind] : undefined}
      placeholder={root && gap.kind === "date" ? "YYYY-MM-DD" : undefined}
      list={options.enumOptions ? `${id}__choices` : undefined}
      // What a browser remembers of other forms is not the answer to this question.
      autoComplete="off"
      autoCapitalize={root && gap.kind !== "text" ? "off" : undefined}
      spellCheck={root && gap.kind !== "text" ? false : undefined}
      value={shown}
      onChange={(event) => onChange(event.target.value)}
      onBlur={() => root && context.left()}
      {...caret}
      {...described(props, context)}
    />
  );
  if (root && gap.kind === "date") return <WithCalendar {...props}>{input}</WithCalendar>;
  if (!options.enumOptions) return input;
  return (
    <>
      {input}
      <datalist id={`${id}__choices`}>
        {options.enumOptions.map(({ value: one }) => (
          <option key={String(one)} value={String(one)} />
        ))}
      </datalist>
    </>
  );
}

function WithCalendar({ children, ...props }: WidgetProps) {
  const { value, onChange } = props;
  const picker = useRef<HTMLInputElement>(null);
  const { choose } = contextOf(props);
  if (!("showPicker" in HTMLInputElement.prototype)) return children;
  return (
    <>
      {children}
      <span className="calendar">
        <button type="button" className="quiet" onClick={() => picker.current?.showPicker()}>
          Calendar
        </button>
        <input
          ref={picker}
          type="date"
          className="picker"
          tabIndex={-1}
          aria-hidden="true"
          value={/^\d{4}-\d\d-\d\d$/.test(String(value)) ? String(value) : ""}
          onChange={(event) => {
            choose();
            onChange(event.target.value);
            document.getElementById(ANSWER)?.focus();
          }}
        />
      </span>
    </>
  );
}

function TextareaWidget(props: WidgetProps) {
  const { value, onChange } = props;
  return <Textarea {...props} text={String(value ?? "")} typed={onChange} rows={7} />;
}

/**
 * A list of texts, one in each line. What was typed may be more than the list that it makes, an
 * empty line for example: this device keeps it as it was typed.
 */
function LinesWidget(props: WidgetProps) {
  const { gap } = contextOf(props);
  const [raw, setRaw] = useLocal<string>(`raw:${gap.id}`);
  const value = Array.isArray(props.value) ? props.value.map(String) : [];
  const fits = raw !== undefined && lines(raw).join("\n") === value.join("\n");
  return (
    <Textarea
      {...props}
      text={fits ? raw : value.join("\n")}
      typed={(text) => {
        setRaw(text);
        props.onChange(lines(text));
      }}
      rows={5}
    />
  );
}

function lines(text: string): string[] {
  const found = text.split(/[\n,;]/).map((line) => line.trim());
  return [...new Set(found.filter((line) => line !== ""))];
}

type TextareaProps = WidgetProps & { text: string; typed(text: string): void; rows: number };

function Textarea({ text, typed, rows, ...props }: TextareaProps) {
  const context = contextOf(props);
  const { ref, ...caret } = useCaret<HTMLTextAreaElement>(text);
  return (
    <textarea
      ref={ref}
      id={props.id}
      rows={rows}
      autoComplete="off"
      spellCheck={context.gap.kind === "long"}
      value={text}
      onChange={(event) => typed(event.target.value)}
      onBlur={() => props.id === ANSWER && context.left()}
      {...caret}
      {...described(props, context)}
    />
  );
}

function RadioWidget(props: WidgetProps) {
  const { id, value, onChange, options } = props;
  const context = contextOf(props);
  const { "aria-invalid": invalid, ...names } = described(props, context) as {
    "aria-invalid"?: boolean;
  };
  return (
    <div className="choices" role="radiogroup" data-invalid={invalid} {...names}>
      {(options.enumOptions ?? []).map(({ value: one, label }, index) => (
        <label key={String(one)} className="choice">
          <input
            type="radio"
            id={index === 0 ? id : `${id}__${index}`}
            name={id}
            checked={value === one}
            onChange={() => {
              context.choose();
              onChange(one);
            }}
          />
          {label}
        </label>
      ))}
    </div>
  );
}

const WIDGETS: RegistryWidgetsType = {
  text: TextWidget,
  TextWidget,
  EmailWidget: TextWidget,
  URLWidget: TextWidget,
  SelectWidget: TextWidget,
  search: TextWidget,
  textarea: TextareaWidget,
  TextareaWidget,
  radio: RadioWidget,
  lines: LinesWidget,
};

/** Another device's typing moves what stands in the field; the caret here stays where it is. */
function useCaret<T extends HTMLInputElement | HTMLTextAreaElement>(
  value: string,
): {
  ref: RefObject<T | null>;
  onSelect(event: { currentTarget: T }): void;
  onInput(event: ChangeEvent<T> | { currentTarget: T }): void;
} {
  const ref = useRef<T>(null);
  const caret = useRef<readonly [number, number] | null>(null);
  const note = ({ currentTarget: { selectionStart, selectionEnd } }: { currentTarget: T }) => {
    if (selectionStart !== null) caret.current = [selectionStart, selectionEnd ?? selectionStart];
  };
  // biome-ignore lint/correctness/useExhaustiveDependencies: a new value is what moves the caret
  useLayoutEffect(() => {
    const { current: field } = ref;
    if (!field || !caret.current || field !== document.activeElement) return;
    if (field.selectionStart !== caret.current[0]) field.setSelectionRange(...caret.current);
  }, [value]);
  return { ref, onSelect: note, onInput: note };
}

// ── Templates ──────────────────────────────────────────────────────────────────────────────────────

function FieldTemplate({ id, label, children, schema, displayLabel }: FieldTemplateProps) {
  if (id === ANSWER || schema.type === "object" || schema.type === "array") return children;
  return (
    <div className="part">
      {displayLabel && (
        <label className="label" htmlFor={id}>
          {label}
        </label>
      )}
      {children}
      {schema.description && (
        <p className="help" id={`${id}__description`}>
          {schema.description}
        </p>
      )}
    </div>
  );
}

function ObjectFieldTemplate({ properties, fieldPathId }: ObjectFieldTemplateProps) {
  const parts = properties.map(({ name, content }) => (
    <div key={name} className="part-place">
      {content}
    </div>
  ));
  if (fieldPathId.$id !== ANSWER) return <div className="parts">{parts}</div>;
  return (
    // biome-ignore lint/a11y/useSemanticElements: a fieldset cannot be named by the question's title
    <div
      className="parts"
      role="group"
      aria-labelledby="title"
      aria-describedby="description verdict"
    >
      {parts}
    </div>
  );
}

function ArrayFieldTemplate({ items, canAdd, onAddClick, registry }: ArrayFieldTemplateProps) {
  const { gap } = registry.formContext as FormContext;
  return (
    // biome-ignore lint/a11y/useSemanticElements: a fieldset cannot be named by the question's title
    <div
      className="items"
      role="group"
      aria-labelledby="title"
      aria-describedby="description verdict"
    >
      {items}
      {canAdd && (
        <button type="button" className="secondary add" onClick={onAddClick}>
          Add another {gap.title.replace(/s$/, "").toLowerCase()}
        </button>
      )}
    </div>
  );
}

function ArrayFieldItemTemplate(props: ArrayFieldItemTemplateProps) {
  const { children, index, totalItems, buttonsProps, registry } = props;
  const { gap } = registry.formContext as FormContext;
  const name = `${gap.title.replace(/s$/, "")} ${index + 1}`;
  return (
    <fieldset className="item">
      <legend>{name}</legend>
      {children}
      {totalItems > 1 && (
        <button
          type="button"
          className="quiet remove"
          aria-label={`Remove ${name.toLowerCase()}`}
          onClick={buttonsProps.onRemoveItem}
        >
          Remove
        </button>
      )}
    </fieldset>
  );
}

const TEMPLATES: Partial<TemplatesType> = {
  FieldTemplate,
  ObjectFieldTemplate,
  ArrayFieldTemplate,
  ArrayFieldItemTemplate,
};
