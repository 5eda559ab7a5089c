/** Which document: the one in the address, else the last one on this device, else a new one. */

import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { connect, type Session } from "reattach";
import { SessionProvider } from "reattach-react";
import { deviceName } from "./device";
import { DocumentPage } from "./document";
import { keepKey, keyTo, remember, remembered } from "./last";
import { base, join, type Place, Refused } from "./server";
import { Missing, type MissingProps, Notice, Start, Waiting, whyMissing } from "./start";
import { isOurs, type State } from "./state";

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
  const { id, key } = place;
  const here = shown.at === "document" && shown.place.id === id && shown.session;
  // One that the server had closed may be open to another key.
  if (here && here.status.connection !== "closed") return;
  const session = connect<State>({
    url: base,
    session: id,
    device: { name: deviceName() },
    // Without one, the browser's cookie says who is there.
    ...(key !== undefined && { token: key }),
  });
  session.ready.then(
    () => void remember(id),
    // The page says so itself.
    () => {},
  );
  go({ at: "document", place, session });
}

async function route(): Promise<void> {
  const asked = location.hash;
  const named = decode(asked.slice(1));
  if (named.startsWith("join=")) {
    // Out of the address at once: it is good for others, too.
    history.replaceState(null, "", location.pathname + location.search);
    const [key = "", id = ""] = named.slice("join=".length).split("/");
    return redeem(id, key);
  }
  const id = ID.test(named) ? named : await remembered();
  if (id === null || !ID.test(id)) return location.hash === asked ? go({ at: "start" }) : undefined;
  const key = await keyTo(id);
  if (location.hash !== asked) return;
  history.replaceState(null, "", `#${id}`);
  openSession({ id, key });
}

/** Goes where a link from another device leads. */
async function redeem(id: string, key: string): Promise<void> {
  try {
    await opened(await join(id, key), true);
  } catch (error) {
    go(
      error instanceof Refused
        ? {
            at: "lost",
            title: "This link is over",
            reason: "It has had its ten minutes. Make another one on the device that it came from.",
          }
        : {
            at: "lost",
            title: "This link needs the server",
            reason: "It cannot be reached just now.",
            tryAgain: () => void redeem(id, key),
          },
    );
  }
}

/** Goes to a document that the server has just let this device in on. */
async function opened(place: Place, instead = false): Promise<void> {
  if (place.key !== undefined) await keepKey(place.id, place.key);
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
          key={`${now.place.id} ${now.place.key}`}
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
