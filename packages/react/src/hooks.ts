import { useCallback, useMemo, useRef, useSyncExternalStore } from "react";
import type {
  Change,
  Conflict,
  DeepReadonly,
  Device,
  JsonObject,
  RejectedChange,
  Session,
  Status,
} from "reattach";
import { at } from "./path.js";
import type { Present } from "./presence.js";
import { usePresenceOf, useProvided } from "./provider.js";

/** The session itself, to change it with; renders nothing by itself. */
export function useSession<State extends object = JsonObject>(): Session<State>;
/**
 * A part of the state. The component renders when the part has changed: by identity, which is
 * enough for what stands in the state, since what did not change is the same object as before.
 * Give `isEqual` for what the selector makes anew each time.
 *
 * ```tsx
 * const title = useSession((state: Draft) => state.title);
 * ```
 *
 * What the selector gets is frozen: `DeepReadonly<Draft>` has the compiler say so.
 */
export function useSession<State extends object, Part>(
  selector: (state: State) => Part,
  isEqual?: (one: Part, other: Part) => boolean,
): Part;
export function useSession<Part>(
  selector?: (state: never) => Part,
  isEqual: (one: Part, other: Part) => boolean = Object.is,
): unknown {
  const session = useProvided();
  // Without a selector nothing is read, so nothing is rendered.
  const select = (selector ?? nothing) as (state: unknown) => Part;
  const before = useRef<{ readonly part: Part } | null>(null);
  const read = useMemo(() => {
    let last: { readonly state: unknown; readonly part: Part } | null = null;
    return () => {
      const { state } = session;
      if (last !== null && last.state === state) return last.part;
      const found = select(state);
      const known: { readonly part: Part } | null = last ?? before.current;
      const part = known && isEqual(known.part, found) ? known.part : found;
      last = { state, part };
      return part;
    };
  }, [session, select, isEqual]);
  const part = useSnapshot(session, read);
  // Only spares renders: a value of a render that was given up is as good.
  before.current = { part };
  return selector ? part : session;
}

/**
 * The value at a path (a JSON Pointer; elements of lists as `#id`), and a function that sets it.
 * Undefined where there is none.
 *
 * ```tsx
 * const [title, setTitle] = useField<string>("/title");
 * ```
 */
export function useField<T = unknown>(
  path: string,
): readonly [value: DeepReadonly<T> | undefined, set: (value: T) => Change] {
  const session = useProvided();
  const read = useCallback(
    () => at(session.state, path) as DeepReadonly<T> | undefined,
    [session, path],
  );
  const value = useSnapshot(session, read);
  const set = useCallback((next: T) => session.set(path, next), [session, path]);
  return [value, set];
}

/** A value of this device alone, and a function that keeps another: see `session.local`. */
export function useLocal<T>(
  key: string,
): readonly [value: T | undefined, set: (value: T | undefined) => void] {
  const session = useProvided();
  const local = useMemo(() => session.local<T>(key), [session, key]);
  const value = useSyncExternalStore(local.subscribe, local.get, local.get);
  return [value, local.set];
}

/** Whether it is online, and where the work is. */
export function useStatus(): Status {
  const session = useProvided();
  return useSnapshot(
    session,
    useCallback(() => session.status, [session]),
  );
}

/** The values that a merge did not keep, and that nobody has settled. */
export function useConflicts(): readonly Conflict[] {
  const session = useProvided();
  return useSnapshot(
    session,
    useCallback(() => session.conflicts, [session]),
  );
}

/** The changes that the server refused for good, oldest first. */
export function useRejected(): readonly RejectedChange[] {
  const session = useProvided();
  return useSnapshot(
    session,
    useCallback(() => session.rejected, [session]),
  );
}

/** The session's devices, as the server last said. */
export function useDevices(): readonly Device[] {
  const session = useProvided();
  return useSnapshot(
    session,
    useCallback(() => session.devices, [session]),
  );
}

/**
 * What the session's other devices last said of themselves, such as a caret or a name, and a function
 * that tells them this one's: at most 4 KiB of JSON, stored nowhere. It is told again when a device
 * comes, which has not heard it.
 *
 * ```tsx
 * const [others, tell] = usePresence<{ name: string }>();
 * ```
 */
export function usePresence<T = unknown>(): readonly [
  others: readonly Present<T>[],
  tell: (data: T) => void,
] {
  const { subscribe, others, tell } = usePresenceOf();
  const said = useSyncExternalStore(subscribe, others, others);
  return [said as readonly Present<T>[], tell];
}

function useSnapshot<T>(session: ReturnType<typeof useProvided>, read: () => T): T {
  const subscribe = useCallback((onChange: () => void) => session.subscribe(onChange), [session]);
  // The provider shows nothing of this on a server: there is no state there yet.
  return useSyncExternalStore(subscribe, read, read);
}

function nothing(): undefined {
  return undefined;
}
