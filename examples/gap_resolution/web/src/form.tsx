/** The form of a gap, made from its schema. The library does the structure, the looks are ours. */

// Not by the package's own entry, which brings a validator that compiles for its tests.
import Form from "@rjsf/core/lib/components/Form.js";
import StringField from "@rjsf/core/lib/components/fields/StringField.js";
import type {
  ArrayFieldItemTemplateProps,
  ArrayFieldTemplateProps,
  FieldProps,
  FieldTemplateProps,
  ObjectFieldTemplateProps,
  RegistryWidgetsType,
  RJSFSchema,
  TemplatesType,
  UiSchema,
  WidgetProps,
} from "@rjsf/utils";
import {
  cloneElement,
  createContext,
  type HTMLAttributes,
  useContext,
  useMemo,
  useRef,
} from "react";
import { type GapShown, isChoice, type Place } from "./state";
import { type Typed, useText } from "./text-field";
import { validator } from "./validator";

/** The id of the whole answer; parts of it are called `answer_0_name`. */
export const ANSWER = "answer";

export interface GapFormProps {
  gap: GapShown;
  draft: unknown;
  wrong: boolean;
  /** Somebody typed into a text within the draft; false where it can only be written as a whole. */
  edited(place: Place, ...typed: Parameters<Typed>): boolean;
  /** Another value of the whole. */
  typed(value: unknown): void;
  /** The value was chosen as a whole: it counts. */
  chosen(): void;
  /** The field was left: what it holds counts. */
  left(): void;
}

interface FormContext {
  gap: GapShown;
  wrong: boolean;
  edited: GapFormProps["edited"];
  left(): void;
  /** What comes next is a whole answer: it counts at once. */
  choose(): void;
}

export function GapForm({ gap, draft, wrong, edited, typed, chosen, left }: GapFormProps) {
  const uiSchema = useMemo(() => uiOf(gap), [gap]);
  const schema = useMemo(() => schemaOf(gap), [gap]);
  // The library tells of a choice a moment after it was made: only then it can count.
  const choosing = useRef(false);
  const choose = () => {
    choosing.current = true;
  };
  const formContext: FormContext = { gap, wrong, edited, left, choose };
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
      fields={FIELDS}
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

/** A number is typed as text: "1." is none yet, and is kept all the same. So is a list of texts. */
function schemaOf({ schema, kind }: GapShown): RJSFSchema {
  return kind === "number" || kind === "list" ? { type: "string" } : schema;
}

function dataOf(gap: GapShown, draft: unknown): unknown {
  if (gap.kind === "list") return Array.isArray(draft) ? draft.join("\n") : draft;
  if (isChoice(gap)) return draft ?? undefined;
  if (gap.kind !== "form") return draft;
  // A list begins with one to be filled in.
  if (gap.schema.type === "array") return Array.isArray(draft) && draft.length > 0 ? draft : [{}];
  return draft === "" || draft === null ? {} : draft;
}

const UI: Partial<Record<GapShown["kind"], string>> = {
  long: "textarea",
  list: "textarea",
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
    return { "aria-describedby": schema.description ? descriptionOf(id) : undefined };
  }
  return {
    "aria-labelledby": "title",
    "aria-describedby": "description form verdict",
    "aria-invalid": wrong || undefined,
  };
}

/** The id of what explains a field: without the space that a field's name may have. */
function descriptionOf(id: string): string {
  return `${id.replaceAll(/\s/g, "-")}__description`;
}

const KEYBOARD: Partial<Record<GapShown["kind"], HTMLAttributes<HTMLElement>["inputMode"]>> = {
  url: "url",
  email: "email",
  number: "decimal",
};

/** Where the text of a widget stands in the draft: the library tells its fields alone. */
const PlaceContext = createContext<Place>([]);

function PlacedStringField(props: FieldProps) {
  return (
    <PlaceContext.Provider value={props.fieldPathId.path}>
      <StringField {...props} />
    </PlaceContext.Provider>
  );
}

const FIELDS = { StringField: PlacedStringField };

function useTyped({ schema, onChange, registry }: WidgetProps): Typed {
  const place = useContext(PlaceContext);
  const { edited } = registry.formContext as FormContext;
  return (before, after, caret) => {
    const isText = schema.type === "string" || (schema.type === undefined && !schema.enum);
    if (!isText || !edited(place, before, after, caret)) onChange(after);
  };
}

function TextWidget(props: WidgetProps) {
  const { id, value, options } = props;
  const context = contextOf(props);
  const { gap } = context;
  const root = id === ANSWER;
  const text = useText<HTMLInputElement>(String(value ?? ""), useTyped(props));
  const input = (
    <input
      {...text}
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
      onBlur={() => root && context.left()}
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
  const context = contextOf(props);
  const { kind } = context.gap;
  const text = useText<HTMLTextAreaElement>(String(props.value ?? ""), useTyped(props));
  return (
    <textarea
      {...text}
      id={props.id}
      rows={kind === "list" ? 5 : 7}
      autoComplete="off"
      spellCheck={kind === "long"}
      onBlur={() => props.id === ANSWER && context.left()}
      {...described(props, context)}
    />
  );
}

function CheckboxWidget({ id, value, label, onChange }: WidgetProps) {
  return (
    <label className="choice">
      <input
        type="checkbox"
        id={id}
        checked={value === true}
        onChange={(event) => onChange(event.target.checked)}
      />
      {label}
    </label>
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
  CheckboxWidget,
};

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
        <p className="help" id={descriptionOf(id)}>
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

function ArrayFieldTemplate(props: ArrayFieldTemplateProps) {
  const { items, canAdd, onAddClick, registry, formData } = props;
  const { gap } = registry.formContext as FormContext;
  // The library names all of them anew when their number changes from outside, which would take
  // the field away from whoever is typing into it.
  const ids: readonly unknown[] = Array.isArray(formData) ? formData.map((one) => one?.id) : [];
  return (
    // biome-ignore lint/a11y/useSemanticElements: a fieldset cannot be named by the question's title
    <div
      className="items"
      role="group"
      aria-labelledby="title"
      aria-describedby="description verdict"
    >
      {items.map((item, index) => cloneElement(item, { key: String(ids[index] ?? index) }))}
      {canAdd && (
        <button type="button" className="secondary add" onClick={onAddClick}>
          Add another {/s$/.test(gap.title) ? gap.title.slice(0, -1).toLowerCase() : "one"}
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
