/** Which document: the one in the address, else the last one on this device, else a new one. */

import { connect } from "reattach";
import { h, text } from "./dom";
import { remember, remembered } from "./last";
import { openPage, type Page } from "./page";
import { base, openDocument } from "./server";
import { connectionWord, type GapSession, type State } from "./state";

const ID = /^[\w.:~-]{1,128}$/;

const app = document.querySelector<HTMLElement>("#app") as HTMLElement;
let leave: () => void = () => {};

function route(): void {
  leave();
  leave = () => {};
  const named = decode(location.hash.slice(1));
  if (ID.test(named)) openSession(named);
  else void openLast();
}

async function openLast(): Promise<void> {
  let left = false;
  leave = () => {
    left = true;
  };
  const last = await remembered();
  if (left) return;
  if (last !== null && ID.test(last)) {
    history.replaceState(null, "", `#${last}`);
    openSession(last);
  } else start();
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}

/** A session that this device knows nothing of yet, or that the server knows nothing of. */
function openSession(id: string): void {
  const session: GapSession = connect<State>({
    url: base,
    session: id,
    device: { name: deviceName() },
  });
  let page: Page | null = null;
  let left = false;

  const line = h("p", { class: "lead", role: "status" });
  const wait = notice("Looking for your document", line);
  const unsubscribe = session.subscribe(() => {
    const waits = connectionWord(session.status) !== "Online";
    text(line, waits ? "The server cannot be reached yet. This page goes on trying." : "");
  });
  // What is on this device comes within milliseconds: that needs no word.
  const soon = setTimeout(() => app.replaceChildren(wait), 300);

  leave = () => {
    left = true;
    clearTimeout(soon);
    unsubscribe();
    page?.close();
    void session.close();
  };

  session.ready.then(
    () => {
      if (left) return;
      clearTimeout(soon);
      unsubscribe();
      if (!isOurs(session)) {
        missing("This is another kind of session", "It holds no document with gaps.");
        return;
      }
      void remember(id);
      page = openPage(app, session, { id, startAnew });
    },
    (error: unknown) => {
      if (left) return;
      clearTimeout(soon);
      const reason = error instanceof Error ? error.message : String(error);
      missing("There is no such document", `The server says: ${reason}.`);
    },
  );
}

function isOurs(session: GapSession): boolean {
  const { gaps_detected, gaps_resolved, user_responses, context } = session.state;
  return (
    [gaps_detected, gaps_resolved, user_responses].every((list) => Array.isArray(list)) &&
    typeof context?.document === "string"
  );
}

/** Leaves this document where it is, on this device and on the server, and offers another. */
async function startAnew(): Promise<void> {
  await remember(null);
  history.pushState(null, "", location.pathname + location.search);
  route();
}

function start(): void {
  const failed = h("p", { class: "problem", role: "alert" });
  const button = h("button", {
    class: "primary",
    type: "button",
    text: "Open the unfinished file",
  });
  button.addEventListener("click", async () => {
    button.disabled = true;
    text(failed, "");
    try {
      location.hash = await openDocument();
    } catch {
      text(failed, "The server cannot be reached just now. Try again in a moment.");
      button.disabled = false;
    }
  });
  app.replaceChildren(
    notice(
      "A citation file, almost finished",
      h("p", {
        class: "lead",
        text: "A research package has a CITATION.cff that does not yet keep to its format. Here you fill what is missing, one question at a time, and take the finished file with you.",
      }),
      h("p", {
        class: "lead",
        text: "Every key is kept as you type it: close the tab, lose the network, pull the plug. You go on where you were, on this device or another.",
      }),
      h("p", { class: "actions" }, button),
      failed,
    ),
  );
}

function missing(title: string, reason: string): void {
  const button = h("button", {
    class: "primary",
    type: "button",
    text: "Start anew",
    onclick: startAnew,
  });
  app.replaceChildren(
    notice(
      title,
      h("p", { class: "lead", text: reason }),
      h("p", {
        class: "lead",
        text: "Whatever this device keeps of it stays on this device.",
      }),
      h("p", { class: "actions" }, button),
    ),
  );
}

function notice(title: string, ...content: Node[]): HTMLElement {
  return h("main", { class: "notice" }, h("h1", { text: title }), ...content);
}

/** How the session's other devices see this one: "Firefox on Windows". */
function deviceName(): string {
  const agent = navigator.userAgent;
  const find = (names: Readonly<Record<string, RegExp>>, otherwise: string) =>
    Object.entries(names).find(([, mark]) => mark.test(agent))?.[0] ?? otherwise;
  const browser = find(
    {
      Edge: /Edg/,
      Opera: /OPR/,
      Firefox: /Firefox|FxiOS/,
      Chrome: /Chrom|CriOS/,
      Safari: /Safari/,
    },
    "A browser",
  );
  const system = find(
    {
      Android: /Android/,
      iPhone: /iPhone/,
      iPad: /iPad/,
      Windows: /Windows/,
      Mac: /Mac OS/,
      Linux: /Linux/,
    },
    "",
  );
  return system ? `${browser} on ${system}` : browser;
}

addEventListener("hashchange", route);
route();
