import { type CSSProperties, useEffect, useState } from "react";
import type { Status } from "reattach";
import { useStatus } from "./hooks.js";

/** Where one's work is: nowhere safe yet, nowhere while it cannot be, on this device, on the server. */
export type Saved = "saving" | "unsaved" | "device" | "server";

/** What is said of where one's work is, and of the connection. */
export interface Words {
  readonly saved: Readonly<Record<Saved, string>>;
  readonly connection: Readonly<Record<Status["connection"], string>>;
}

/** What `SaveStatus` says where it is given no other words. */
export const WORDS: Words = {
  saved: {
    saving: "Saving…",
    unsaved: "Not saved",
    device: "Saved on this device",
    server: "Saved",
  },
  connection: {
    connecting: "Connecting…",
    online: "Online",
    reconnecting: "Reconnecting…",
    offline: "Offline",
    closed: "Closed",
  },
};

/** What `SaveStatus` says of a status; each says no more than is true. */
export function savedAs(status: Status): Saved {
  if (status.saved) return "server";
  if (status.savedOnDevice) return "device";
  // Without a disk and without a server nothing is under way.
  return status.storage === "memory" && status.connection !== "online" ? "unsaved" : "saving";
}

export interface SaveStatusProps {
  className?: string;
  words?: Words;
}

/** A better word is said when it has been true for this long: one that flickers tells nothing. */
const SETTLE_MS = 150;
/** A screen reader is told when this long nothing has changed. */
const ANNOUNCE_MS = 1_200;

const RANK: Readonly<Record<Saved, number>> = { unsaved: 0, saving: 1, device: 2, server: 3 };

const HIDDEN: CSSProperties = {
  position: "absolute",
  width: 1,
  height: 1,
  overflow: "hidden",
  clipPath: "inset(50%)",
  whiteSpace: "nowrap",
};

/**
 * The connection and where one's work is, in words, for eyes and for screen readers. Style it by
 * `[data-connection]` and `[data-saved]`; each part has a `data-part`.
 */
export function SaveStatus({ className, words = WORDS }: SaveStatusProps) {
  const status = useStatus();
  const now = savedAs(status);
  const saved = useSettled(now);
  const connection = words.connection[status.connection];
  const said = useAnnounced(`${connection}. ${words.saved[saved]}`);
  return (
    <span className={className} data-connection={status.connection} data-saved={saved}>
      <span data-part="connection">{connection}</span>
      <span data-part="saved">{words.saved[saved]}</span>
      <span data-part="announced" role="status" style={HIDDEN}>
        {said}
      </span>
    </span>
  );
}

/** Worse news at once, better news when it has settled. */
function useSettled(now: Saved): Saved {
  const [shown, setShown] = useState(now);
  const better = RANK[now] > RANK[shown];
  if (now !== shown && !better) setShown(now);
  useEffect(() => {
    if (!better) return;
    const timer = setTimeout(() => setShown(now), SETTLE_MS);
    return () => clearTimeout(timer);
  }, [now, better]);
  return better ? shown : now;
}

function useAnnounced(text: string): string {
  const [said, setSaid] = useState("");
  useEffect(() => {
    const timer = setTimeout(() => setSaid(text), ANNOUNCE_MS);
    return () => clearTimeout(timer);
  }, [text]);
  return said;
}
