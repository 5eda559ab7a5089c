/** Which document: the one in the address, else the last one on this device, else a new one. */

import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { connect, ReattachError, redeem, type Session } from "reattach";
import { SessionProvider } from "reattach-react";
import { deviceName } from "./device";
import { DocumentPage } from "./document";
import { keepToken, remember, remembered, tokenOf } from "./last";
import { base, type Place } from "./server";
import { Missing, type MissingProps, Notice, Start, Waiting, whyMissing } from "./start";
import { isOurs, type State } from "./state";

/** What the server would say to who has no token for a document. */
const UNKNOWN = { code: "session_not_found", message: "" };
const HANDOFF = "handoff=";
const ID = /^[\w.:~-]{1,128}$/;

/** What the address asks for. */
type Shown =
  | { at: "nowhere" }
  | { at: "start" }
  | { at: "document"; place: Place; session: Session<State> }
  | ({ at: "lost" } & Omit<MissingProps, "startAnew">);

let shown: Shown = { at: "nowhere" };
let show: (shown: Shown) => void = () => {};

function go(next: Shown): void {
  if (shown.at === "document") void shown.session.close();
  shown = next;
  show(next);
}

function openSession(place: Place): void {
  const { id, token } = place;
  const here = shown.at === "document" && shown.place.id === id && shown.session;
  // One that the server had closed may be open to another token.
  if (here && here.status.connection !== "closed") return;
  const session = connect<State>({
    url: base,
    session: id,
    device: { name: deviceName() },
    ...(token !== undefined && { token }),
  });
  const stop = session.subscribe(() => {
    // There is nothing to show, and a token that the server does not know gets no better.
    if (session.status.error?.code !== "not_authenticated") return;
    stop();
    go({ at: "lost", ...whyMissing(UNKNOWN) });
  });
  session.ready.then(
    () => {
      stop();
      void remember(id);
    },
    // The page says so itself.
    stop,
  );
  go({ at: "document", place, session });
}

async function route(): Promise<void> {
  const asked = location.hash;
  const named = decode(asked.slice(1));
  if (named.startsWith(HANDOFF)) {
    // Out of the address at once: whoever sees it first may use it.
    history.replaceState(null, "", location.pathname + location.search);
    return follow(named.slice(HANDOFF.length));
  }
  const id = ID.test(named) ? named : await remembered();
  if (id === null || !ID.test(id)) return location.hash === asked ? go({ at: "start" }) : undefined;
  const token = await tokenOf(id);
  if (location.hash !== asked) return;
  history.replaceState(null, "", `#${id}`);
  if (token === undefined) return go({ at: "lost", ...whyMissing(UNKNOWN) });
  openSession({ id, token });
}

/** Goes where a link from another device leads. */
async function follow(secret: string): Promise<void> {
  try {
    const device = { name: deviceName() };
    const { session: id, token } = await redeem(secret, { url: base, device });
    await opened({ id, token }, true);
  } catch (error) {
    go(
      error instanceof ReattachError && error.code !== "unreachable"
        ? {
            at: "lost",
            title: "This link is over",
            reason:
              "It is good for ten minutes, and for one device. Make another one on the device that " +
              "it came from.",
          }
        : {
            at: "lost",
            title: "This link needs the server",
            reason: "It cannot be reached just now.",
            tryAgain: () => void follow(secret),
          },
    );
  }
}

/** Goes to a document that the server has just let this device in on. */
async function opened(place: Place, instead = false): Promise<void> {
  if (place.token !== undefined) await keepToken(place.id, place.token);
  if (instead) history.replaceState(null, "", `#${place.id}`);
  else history.pushState(null, "", `#${place.id}`);
  openSession(place);
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}

/** Leaves this document where it is, on this device and on the server, and offers another. */
async function startAnew(): Promise<void> {
  await remember(null);
  history.pushState(null, "", location.pathname + location.search);
  go({ at: "start" });
}

function App() {
  const [now, setNow] = useState(shown);
  useEffect(() => {
    show = setNow;
    setNow(shown);
  }, []);
  switch (now.at) {
    case "nowhere":
      return null;
    case "start":
      return <Start opened={(place) => void opened(place)} />;
    case "lost":
      return <Missing {...now} startAnew={startAnew} />;
    case "document":
      return (
        <SessionProvider
          key={`${now.place.id} ${now.place.token}`}
          session={now.session}
          fallback={<Waiting startAnew={startAnew} />}
          failed={(error) => <Missing {...whyMissing(error)} startAnew={startAnew} />}
        >
          <Ours session={now.session}>
            <DocumentPage place={now.place} startAnew={startAnew} />
          </Ours>
        </SessionProvider>
      );
  }
}

/** Whoever may write the session may have made another thing of it. */
function Ours({ session, children }: { session: Session<State>; children: React.ReactNode }) {
  if (isOurs(session.state)) return children;
  return (
    <Notice title="This is another kind of session">
      <p className="lead">It holds no document with gaps.</p>
      <p className="actions">
        <button type="button" className="primary" onClick={startAnew}>
          Start anew
        </button>
      </p>
    </Notice>
  );
}

createRoot(document.querySelector("#app") as HTMLElement).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
addEventListener("hashchange", () => void route());
void route();

// So that the page starts without its server as well. Only in a secure context there is one.
navigator.serviceWorker?.register(new URL("worker.js", base)).catch(() => {
  // Without it the page needs the server to start, and loses nothing.
});
