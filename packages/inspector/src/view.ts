// What is looked at stands in the address: it can be sent to somebody, and goes back and forth.

import { useCallback, useSyncExternalStore } from "react";

type Changes = { [name: string]: string | null };

const listeners = new Set<() => void>();

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  addEventListener("popstate", listener);
  return () => {
    listeners.delete(listener);
    removeEventListener("popstate", listener);
  };
}

/** The address of the same view with some of it changed; `fresh` leaves out everything else. */
export function address(changes: Changes, fresh = false): string {
  const search = new URLSearchParams(fresh ? "" : location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") search.delete(name);
    else search.set(name, value);
  }
  return search.size > 0 ? `?${search}` : location.pathname;
}

export function go(to: string, replace = false): void {
  if (replace) history.replaceState(null, "", to);
  else history.pushState(null, "", to);
  for (const listener of [...listeners]) listener();
}

/** The view, and how to change it: `replace` leaves no step to go back to. */
export function useView(): [URLSearchParams, (changes: Changes, replace?: boolean) => void] {
  const search = useSyncExternalStore(subscribe, () => location.search);
  const change = useCallback((changes: Changes, replace = false) => {
    go(address(changes), replace);
  }, []);
  return [new URLSearchParams(search), change];
}
