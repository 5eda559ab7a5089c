import {
  createContext,
  type ReactNode,
  useCallback,
  useContext,
  useEffect,
  useMemo,
  useSyncExternalStore,
} from "react";
import { type AnySession, Presence } from "./presence.js";

interface Provided {
  readonly session: AnySession;
  readonly presence: Presence;
}

const Context = createContext<Provided | null>(null);

export interface SessionProviderProps {
  /**
   * What `connect` answered. Make it where it is not made anew by each render: in a module, in the
   * router, in an event. Who made it closes it.
   */
  session: AnySession;
  /** Shown until the session has a state, which is milliseconds where this device knows it. */
  fallback?: ReactNode;
  /** Shown where it will have none: there is no such session for this user. */
  failed?: (error: { readonly code: string; readonly message: string }) => ReactNode;
  children?: ReactNode;
}

/** Hands a session to the hooks below it, and shows them once there is a state to be read. */
export function SessionProvider({ session, fallback, failed, children }: SessionProviderProps) {
  const subscribe = useCallback((onChange: () => void) => session.subscribe(onChange), [session]);
  const provided = useMemo(() => ({ session, presence: new Presence(session) }), [session]);
  useEffect(() => provided.presence.start(), [provided]);
  const phase = useSyncExternalStore(
    subscribe,
    () => phaseOf(session),
    () => "waiting" as const,
  );
  if (phase === "ready") return <Context.Provider value={provided}>{children}</Context.Provider>;
  const { error } = session.status;
  return <>{phase === "failed" && error && failed ? failed(error) : fallback}</>;
}

function phaseOf(session: AnySession): "ready" | "failed" | "waiting" {
  try {
    // Throws as long as there is none.
    session.state;
    return "ready";
  } catch {
    return session.status.connection === "closed" ? "failed" : "waiting";
  }
}

export function useProvided(): AnySession {
  return useContextOf().session;
}

export function usePresenceOf(): Presence {
  return useContextOf().presence;
}

function useContextOf(): Provided {
  const provided = useContext(Context);
  if (provided === null) {
    throw new Error("expected a <SessionProvider> above this component, found none");
  }
  return provided;
}
