/** The page of one document: the question, the list of all of them, the file as it grows. */

import type { Device, RejectedChange } from "reattach";
import { attribute, h, painter, show, text } from "./dom";
import { type Field, makeField } from "./field";
import { newLines } from "./lines";
import { downloadAddress, watchDocument } from "./server";
import {
  answering,
  answerTo,
  connectionWord,
  type GapSession,
  type GapShown,
  type Progress,
  progressOf,
  type Shown,
  savedWord,
  typing,
} from "./state";

export interface Page {
  close(): void;
}

/** For this long after the last key, another device does not lead this one to another question. */
const TYPING_MS = 30_000;
/** "Saved" is said when it has been true for this long: a word that flickers tells nothing. */
const SETTLE_MS = 150;
const ANNOUNCE_MS = 1_200;
/** The server watches a document for a while after it was asked to; an open page asks again. */
const WATCH_MS = 5 * 60_000;
const WATCH_RETRY_MS = 2_000;

const WORDS: Record<Progress, string> = {
  open: "open",
  begun: "begun",
  unchecked: "being checked",
  wrong: "needs another answer",
  resolved: "resolved",
};

export function openPage(
  root: HTMLElement,
  session: GapSession,
  { id, startAnew }: { id: string; startAnew: () => void },
): Page {
  let { current_step: step } = session.state;
  let shared = step;
  let lastKey = Number.NEGATIVE_INFINITY;
  let field: Field | null = null;
  let fieldOf = "";

  // ── What there is to see ───────────────────────────────────────────────────────────────────────

  const name = h("h1", { class: "name" });
  const format = h("span", { class: "format" });
  const connection = h("span", { class: "connection", id: "connection" });
  const saved = h("span", { class: "saved", id: "saved" });
  const announced = h("p", { class: "hidden", role: "status", "aria-live": "polite" });
  const meter = h("progress", { "aria-labelledby": "count" });
  const count = h("p", { class: "count", id: "count" });
  const notices = h("div", { class: "notices", "aria-live": "polite" });

  const eyebrow = h("p", { class: "eyebrow" });
  const title = h("h2", { id: "title", tabindex: -1 });
  const description = h("p", { class: "description", id: "description" });
  const stands = h("p", { class: "stands" });
  const fieldPlace = h("div", { class: "field-place" });
  const verdict = h("p", { class: "verdict", id: "verdict", "aria-live": "polite" });
  const suggestions = h("p", { class: "suggestions" });
  const elsewhere = h("p", { class: "elsewhere" });
  const back = h("button", { type: "button", class: "secondary", text: "Previous" });
  const next = h("button", { type: "submit", class: "primary", text: "Next" });
  const take = h("a", { class: "primary", text: "Download the file" });
  const form = h(
    "form",
    { class: "question", id: "question", novalidate: true, "aria-labelledby": "title" },
    eyebrow,
    title,
    description,
    stands,
    fieldPlace,
    verdict,
    suggestions,
    h("p", { class: "actions" }, back, next, take),
    elsewhere,
  );

  const list = h("ol", { class: "gaps" });
  const sheet = h("pre", { tabindex: 0, role: "region", "aria-label": "The file as it stands" });
  const download = h("a", { class: "button", id: "download", text: "Download" });
  const behind = h("p", { class: "behind" });
  const devices = h("ul", { class: "devices" });

  root.replaceChildren(
    h(
      "header",
      { class: "top" },
      h("div", { class: "names" }, name, format),
      h("p", { class: "status" }, connection, saved),
      announced,
      h("div", { class: "progress" }, meter, count),
    ),
    h(
      "main",
      {},
      h(
        "div",
        { class: "asking" },
        notices,
        form,
        h("nav", { "aria-label": "All gaps" }, h("h2", { class: "small", text: "All gaps" }), list),
      ),
      h(
        "section",
        { class: "file", "aria-labelledby": "file" },
        h(
          "div",
          { class: "file-top" },
          h("h2", { class: "small", id: "file", text: "The file" }),
          download,
        ),
        sheet,
        behind,
      ),
    ),
    h(
      "footer",
      {},
      h(
        "section",
        { "aria-labelledby": "devices" },
        h("h2", { class: "small", id: "devices", text: "Devices on this document" }),
        devices,
      ),
      h(
        "p",
        { class: "foot-actions" },
        copyButton(),
        h("button", { type: "button", class: "quiet", text: "Start anew", onclick: startAnew }),
      ),
    ),
  );
  const skip = document.querySelector<HTMLAnchorElement>(".skip");
  if (skip) {
    show(skip, true);
    skip.onclick = (event) => {
      event.preventDefault();
      (field?.input ?? title).focus();
    };
  }

  // ── What one can do ────────────────────────────────────────────────────────────────────────────

  const gapAt = (state: Shown, at: number): GapShown | undefined => state.gaps_detected[at];

  /** Goes to another question, on all devices; what was typed into this one is its answer. */
  const goTo = (to: number, focus = true) => {
    const { state } = session;
    const gap = gapAt(state, step);
    const last = state.gaps_detected.length;
    step = Math.max(0, Math.min(to, last));
    shared = step;
    session.change([
      ...(gap ? answering(answerTo(state, gap)) : []),
      ...(state.current_step === step
        ? []
        : [{ op: "set", path: "/current_step", value: step } as const]),
    ]);
    lastKey = Number.NEGATIVE_INFINITY;
    render();
    if (focus) (field?.input ?? title).focus();
  };

  const type = (gap: GapShown, value: string) => {
    lastKey = performance.now();
    session.change(typing(answerTo(session.state, gap), value));
  };

  const settle = (gap: GapShown) => {
    session.change(answering(answerTo(session.state, gap)));
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    goTo(step + 1);
  });
  back.addEventListener("click", () => goTo(step - 1));

  // ── Painting ───────────────────────────────────────────────────────────────────────────────────

  const paintQuestion = painter((gap: GapShown | undefined, state: Shown, online: boolean) => {
    if (!gap) return paintEnd(state);
    const answer = answerTo(state, gap);
    const progress = progressOf(gap, answer);
    text(eyebrow, `Gap ${step + 1} of ${state.gaps_detected.length}`);
    text(title, gap.title);
    text(description, hint(gap));
    paintStands(gap, answer.draft);
    if (fieldOf !== gap.id) {
      fieldOf = gap.id;
      field = makeField(gap, "description form verdict", {
        typed: (value) => type(gap, value),
        done: () => settle(gap),
        next: () => goTo(step + 1),
      });
      fieldPlace.replaceChildren(
        h("span", { class: "label", id: "form" }, formOf(gap)),
        field.element,
      );
      paintSuggestions(gap);
    }
    field?.show(answer.draft, progress === "wrong");
    text(verdict, said(gap, progress, online));
    attribute(verdict, "data-progress", progress);
    show(fieldPlace, true);
    show(suggestions, suggestions.childElementCount > 0);
    show(verdict, true);
    show(take, false);
    back.disabled = step === 0;
    text(next, step + 1 < state.gaps_detected.length ? "Next" : "Finish");
    show(next, true);
  });

  /** Behind the last question: what is left, or that nothing is. */
  const paintEnd = (state: Shown) => {
    const left = state.gaps_detected.filter(
      (gap) => progressOf(gap, answerTo(state, gap)) !== "resolved",
    );
    fieldOf = "";
    field = null;
    fieldPlace.replaceChildren();
    show(fieldPlace, false);
    show(suggestions, false);
    show(stands, false);
    text(eyebrow, "The end");
    text(title, state.context.valid ? "The file is complete" : "Not quite complete");
    text(
      description,
      state.context.valid
        ? "It keeps to the format. Take it with you, and put it beside your source code."
        : `There ${left.length === 1 ? "is one gap" : `are ${left.length} gaps`} left: ${left.map((gap) => gap.title).join(", ")}.`,
    );
    show(verdict, false);
    show(take, state.context.valid);
    back.disabled = false;
    show(next, false);
  };

  const paintStands = (gap: GapShown, draft: string) => {
    show(stands, gap.found !== undefined);
    if (gap.found === undefined || stands.dataset.of === `${gap.id} ${draft === ""}`) return;
    stands.dataset.of = `${gap.id} ${draft === ""}`;
    const { found } = gap;
    const canEdit = draft === "" && gap.kind !== "choice" && gap.kind !== "search";
    stands.replaceChildren(
      "In the file: ",
      h("code", { text: found }),
      canEdit
        ? h("button", {
            type: "button",
            class: "quiet",
            text: "Mend it",
            onclick: () => {
              type(gap, found);
              render();
              field?.input.focus();
            },
          })
        : "",
    );
  };

  const paintSuggestions = (gap: GapShown) => {
    const fit = gap.kind === "text" || gap.kind === "search";
    suggestions.replaceChildren(
      ...(fit ? (gap.examples ?? []) : []).map((example) =>
        h("button", {
          type: "button",
          class: "suggestion",
          text: example,
          onclick: () => {
            type(gap, example);
            settle(gap);
            render();
          },
        }),
      ),
    );
  };

  const paintList = painter((state: Shown, at: number) => {
    const { gaps_detected: gaps } = state;
    while (list.children.length > gaps.length) list.lastElementChild?.remove();
    for (const [index, gap] of gaps.entries()) {
      const progress = progressOf(gap, answerTo(state, gap));
      let item = list.children[index];
      if (!item) {
        const button = h("button", { type: "button", onclick: () => goTo(index) });
        button.append(
          h("span", { class: "mark", "aria-hidden": "true" }),
          h("span"),
          h("span", { class: "word" }),
        );
        item = h("li", {}, button);
        list.append(item);
      }
      const [button] = item.children;
      const [, label, word] = button?.children ?? [];
      if (!button || !label || !word) continue;
      text(label, gap.title);
      text(word, WORDS[progress]);
      attribute(button, "data-progress", progress);
      attribute(button, "aria-current", index === at ? "step" : null);
    }
  });

  let before: string | null = null;
  const paintSheet = painter((original: string, now: string) => {
    const known = new Set((before ?? now).split("\n"));
    before = now;
    sheet.replaceChildren(
      ...newLines(original, now.replace(/\n$/, "")).map(({ text: line, fresh }) =>
        h(
          "span",
          {
            class: ["line", fresh && "new", fresh && !known.has(line) && "just"]
              .filter(Boolean)
              .join(" "),
          },
          // An empty line has a height, and is copied with the others.
          line || h("br"),
        ),
      ),
    );
  });

  const paintDownload = painter((valid: boolean) => {
    for (const link of [download, take]) {
      attribute(link, "href", valid ? downloadAddress(id) : null);
      attribute(link, "download", valid ? "CITATION.cff" : null);
    }
    // A link without an address is not in the way of the keyboard, and still says what it is.
    attribute(download, "role", valid ? null : "link");
    attribute(download, "aria-disabled", valid ? null : "true");
    attribute(download, "title", valid ? null : "When every gap is resolved");
  });

  const paintDevices = painter((all: readonly Device[]) => {
    const here = all.filter((device) => device.online);
    const away = all.length - here.length;
    devices.replaceChildren(
      ...here.map((device) => h("li", {}, device.name ?? "A device")),
      ...(away > 0 ? [h("li", { class: "away", text: `${away} more, away` })] : []),
    );
  });

  const dismissed = session.local<string[]>("dismissed");

  let noticed = new Map<string, HTMLElement>();

  /** A notice stays the same element for as long as it is true: a press on it is never lost. */
  const paintNotices = () => {
    const wanted = noticesNow();
    const next = new Map(wanted.map(([key, make]) => [key, noticed.get(key) ?? make()]));
    const same = next.size === noticed.size && [...next.keys()].every((key) => noticed.has(key));
    noticed = next;
    if (!same) notices.replaceChildren(...next.values());
  };

  const noticesNow = (): [key: string, make: () => HTMLElement][] => {
    const { status, rejected } = session;
    const found: [string, () => HTMLElement][] = [];
    if (status.connection === "closed" && status.error) {
      const { code } = status.error;
      found.push([`closed ${code}`, () => closedNotice(code)]);
    }
    if (status.storage === "memory") found.push(["memory", memoryNotice]);
    for (const one of rejected) found.push([one.ref, () => rejectedNotice(one)]);
    return [...found, ...conflictNotices()];
  };

  const closedNotice = (code: string) =>
    callout(
      code === "session_not_found"
        ? "The server does not know this document"
        : "The server closed this document",
      "What you typed is still on this device. You can keep a copy, or start anew; neither takes anything away.",
      h("button", { type: "button", class: "secondary", text: "Keep a copy", onclick: keepCopy }),
      h("button", { type: "button", class: "secondary", text: "Start anew", onclick: startAnew }),
    );

  const memoryNotice = () =>
    callout(
      "This browser keeps nothing on its disk",
      "What is not yet saved on the server is lost when this page closes.",
    );

  const rejectedNotice = (one: RejectedChange) =>
    callout(
      "The server did not take a change",
      `${one.message} (${one.code}).`,
      h("button", {
        type: "button",
        class: "secondary",
        text: "Send it again",
        onclick: () => again(one),
      }),
      h("button", {
        type: "button",
        class: "quiet",
        text: "Discard",
        onclick: () => one.discard(),
      }),
    );

  /** Two devices wrote one answer: the newer stands, and the other one is not lost. */
  const conflictNotices = (): [string, () => HTMLElement][] => {
    const { state, conflicts } = session;
    const hidden = new Set(dismissed.get());
    const newest = new Map<string, [string, () => HTMLElement]>();
    for (const { id: of, path, lost } of conflicts) {
      const gap = state.gaps_detected.find((one) => path.startsWith(`/user_responses/#${one.id}/`));
      const { value } = lost;
      if (!gap || hidden.has(of) || typeof value !== "string" || value.trim() === "") continue;
      // What grew into the present text is no other answer.
      if (answerTo(state, gap).draft.startsWith(value)) continue;
      newest.set(gap.id, [`${of} ${value}`, () => conflictNotice(of, gap, value)]);
    }
    return [...newest.values()];
  };

  const conflictNotice = (of: string, gap: GapShown, lost: string) => {
    const dismiss = () => dismissed.set([...(dismissed.get() ?? []), of]);
    const take = () => {
      dismiss();
      type(gap, lost);
      settle(gap);
    };
    return callout(
      `Two devices answered “${gap.title}”`,
      `The later one stands. The other one was: ${lost}`,
      h("button", { type: "button", class: "secondary", text: "Use the other one", onclick: take }),
      h("button", { type: "button", class: "quiet", text: "Dismiss", onclick: dismiss }),
    );
  };

  const again = (one: RejectedChange) => {
    try {
      one.sendAgain();
    } catch {
      // It makes no sense any more in the document of now: it stays in the list.
    }
  };

  const keepCopy = () => {
    const { state } = session;
    const copy = JSON.stringify({ state, unsent: session.export() }, null, 2);
    const address = URL.createObjectURL(new Blob([copy], { type: "application/json" }));
    h("a", { href: address, download: "gap-resolution.json" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  };

  // ── Status: down at once, up when it has settled ───────────────────────────────────────────────

  const RANK = { "Saving…": 0, "Saved on this device": 1, Saved: 2 } as const;
  let shownWord: keyof typeof RANK | null = null;
  let settling: ReturnType<typeof setTimeout> | undefined;
  let announcing: ReturnType<typeof setTimeout> | undefined;

  const paintSaved = (word: keyof typeof RANK) => {
    clearTimeout(settling);
    const say = () => {
      shownWord = word;
      text(saved, word);
      attribute(saved, "data-rank", RANK[word]);
      announce();
    };
    if (shownWord === null || RANK[word] <= RANK[shownWord]) say();
    else settling = setTimeout(say, SETTLE_MS);
  };

  const announce = () => {
    clearTimeout(announcing);
    announcing = setTimeout(
      () => text(announced, `${connection.textContent}, ${saved.textContent}`),
      ANNOUNCE_MS,
    );
  };

  const paintConnection = painter((word: string) => {
    text(connection, word);
    attribute(connection, "data-word", word);
    announce();
  });

  // ── The server's eye on this document ──────────────────────────────────────────────────────────

  let watching: ReturnType<typeof setTimeout> | undefined;
  const watch = async () => {
    clearTimeout(watching);
    if (session.status.connection !== "online") return;
    const done = await watchDocument(id);
    clearTimeout(watching);
    if (!closed) watching = setTimeout(watch, done ? WATCH_MS : WATCH_RETRY_MS);
  };
  let closed = false;
  // A server that has just been started watches nothing: each new connection asks.
  const online = () => void watch();
  session.addEventListener("connectionStatusChanged", online);

  // ── All of it ──────────────────────────────────────────────────────────────────────────────────

  const render = () => {
    const { state, status } = session;
    if (state.current_step !== shared) {
      shared = state.current_step;
      const busy =
        field?.input === document.activeElement && performance.now() - lastKey < TYPING_MS;
      if (!busy) step = shared;
    }
    step = Math.max(0, Math.min(step, state.gaps_detected.length));
    const isOnline = status.connection === "online";

    document.title = `${state.context.document_name} – gap resolution`;
    text(name, state.context.document_name);
    text(format, state.context.format);
    paintConnection(connectionWord(status));
    const word = savedWord(status);
    if (word !== pendingWord) {
      pendingWord = word;
      paintSaved(word);
    }
    const resolved = state.gaps_resolved.length;
    meter.max = Math.max(state.total_steps, 1);
    meter.value = resolved;
    text(count, `${resolved} of ${state.total_steps} gaps resolved`);

    paintQuestion(gapAt(state, step), state, isOnline);
    paintList(state, step);
    paintSheet(state.context.original, state.context.document);
    paintDownload(state.context.valid);
    paintDevices(session.devices);
    paintElsewhere(state, step);
    paintNotices();
    text(behind, isOnline ? "" : behindBy(state));
  };
  let pendingWord: string | null = null;

  const paintElsewhere = painter((state: Shown, at: number) => {
    const apart = state.current_step !== at;
    show(elsewhere, apart);
    if (!apart) return;
    const there = gapAt(state, state.current_step)?.title ?? "The end";
    elsewhere.replaceChildren(
      `Another device has gone on to “${there}”. `,
      h("button", {
        type: "button",
        class: "quiet",
        text: "Go there",
        onclick: () => goTo(session.state.current_step),
      }),
    );
  });

  const unsubscribe = session.subscribe(render);
  const undismiss = dismissed.subscribe(render);
  render();
  void watch();

  return {
    close() {
      closed = true;
      clearTimeout(watching);
      clearTimeout(settling);
      clearTimeout(announcing);
      session.removeEventListener("connectionStatusChanged", online);
      unsubscribe();
      undismiss();
    },
  };
}

function behindBy(state: Shown): string {
  const waiting = state.gaps_detected.filter(
    (gap) => answerTo(state, gap).answer !== gap.checked,
  ).length;
  if (waiting === 0) return "";
  const what = waiting === 1 ? "One answer comes" : `${waiting} answers come`;
  return `${what} in when the server is back.`;
}

/** How the answer is to be written, where its field alone does not show it. */
function formOf(gap: GapShown): string {
  switch (gap.kind) {
    case "list":
      return "One in each line";
    case "date":
      return "Year-month-day";
    default:
      return "";
  }
}

function hint(gap: GapShown): string {
  const [, example] = gap.examples ?? [];
  return gap.kind === "date" && example
    ? `${gap.description} For example ${example}.`
    : gap.description;
}

function said(gap: GapShown, progress: Progress, online: boolean): string {
  switch (progress) {
    case "resolved":
      return "Resolved.";
    case "wrong":
      return gap.problem ?? "";
    case "unchecked":
      return online ? "Being checked…" : "Kept. It is checked when the server is back.";
    case "begun":
      return "Kept as you type. It counts when you go on.";
    case "open":
      return gap.problem ?? "";
  }
}

function callout(title: string, message: string, ...actions: HTMLElement[]): HTMLElement {
  return h(
    "section",
    { class: "callout" },
    h("h2", { text: title }),
    h("p", { text: message }),
    actions.length > 0 && h("p", { class: "actions" }, ...actions),
  );
}

/** The address is the way in for another device; `clipboard` needs a secure context. */
function copyButton(): HTMLElement | null {
  if (!navigator.clipboard) return null;
  const button = h("button", {
    type: "button",
    class: "quiet",
    text: "Copy the link for another device",
  });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      text(button, "Copied");
    } catch {
      text(button, "Copy it from the address bar");
    }
    setTimeout(() => text(button, "Copy the link for another device"), 2_500);
  });
  return button;
}
